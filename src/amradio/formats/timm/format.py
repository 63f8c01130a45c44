"""timm: one safetensors state dict that plain `timm.create_model(..., checkpoint_path=...)` loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ...config import validate
from ...errors import UserError
from ...features import Features
from ...network import Network, NetworkConfig
from ...students.base import CLIP_MEAN, CLIP_STD
from ...students.timm_settings import TimmSettings
from ...students.vit_settings import VitSettings
from ...tensors import read_tensors, stated_in, tensor_shapes, write_tensors
from ..base import ExportSettings, Format, LoadedModel, peek
from ..building import filled
from ..model_folder import ANCESTRY, CONFIG_FILE, WEIGHTS_FILE, ancestry
from ..vit_weights import fold_normalisation
from .backbone import Backbone
from .base import Call, Family
from .radio_vit import PATCH_BIAS, RadioVit, is_radio, layout_of

WRITTEN = "amradio_backbone"
"""Key of the metadata with the config of a model that was written here."""


class Timm(Format):
    """`timm`: the backbone. A ViT goes into a `naflexvit_*_radio_*`, a backbone of timm into itself.

    Read are files written here, `naflexvit_*_radio_*`, and `vit_*_radio_*` with their table of one size. The metadata of a file written
    here say the call that loads it, and which prefix tokens are summaries, which timm does not distinguish.
    """

    name = "timm"
    suffix = ".safetensors"
    reader = "timm"

    def recognises(self, path: Path) -> bool:
        """A safetensors file that was written here or has the keys of a radio ViT of timm, or a folder of timm's with one."""
        file = path / WEIGHTS_FILE if path.is_dir() else path
        if file.suffix != ".safetensors" or not file.is_file() or (path.is_dir() and not _folder_config(path)):
            return False
        try:
            return WRITTEN in stated_in(file) or is_radio(set(tensor_shapes(file)))
        except UserError:
            return False

    def read(self, path: Path, align_corners: bool | None = None) -> LoadedModel:
        """Reads a folder of timm. Without metadata of ours the first prefix token is the only summary, as timm has it."""
        file = path / WEIGHTS_FILE if path.is_dir() else path
        tensors, metadata, beside = read_tensors(file), stated_in(file), _folder_config(path)
        if WRITTEN in metadata:
            config = _written_config(metadata, str(file))
            weights = _family(config).our_weights(tensors, str(file))
        else:
            weights = RadioVit().our_weights(tensors, str(file))
            config = _config_of(weights, beside, str(file))
        if align_corners is not None and isinstance(config.student, VitSettings):
            config = config.model_copy(update={"student": config.student.model_copy(update={"align_corners": align_corners})})
        bias = weights.pop(PATCH_BIAS, None)
        student = {f"student.{key}": tensor for key, tensor in weights.items()}
        network = filled(config, student, str(file), lambda key: key.removeprefix("student."))
        if isinstance(config.student, VitSettings):
            stated = beside.get("pretrained_cfg")
            stated = stated if isinstance(stated, dict) else {}
            mean, std = (stated.get(key, default) for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
            network.student.load_state_dict(fold_normalisation(network.student.state_dict(), mean, std, bias))
        return LoadedModel(config, network, ours=WRITTEN in metadata)

    def unsupported_reasons(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """Why no model of timm is this student, one sentence each."""
        return _family(config).unsupported_reasons(config, network)

    def supported_heads(self, config: NetworkConfig) -> tuple[str, ...]:
        """None: these are backbones."""
        del config
        return ()

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        """Writes config.json and model.safetensors as `timm.create_model("local-dir:...")` reads them."""
        del settings
        family = _family(model.config)
        call = family.call(model)
        backbone = model.config.without_start().model_copy(update={"heads": {}, "training": None})
        metadata = {
            "format": "pt",
            "architecture": call.architecture,
            "model_args": json.dumps(call.overrides),
            WRITTEN: backbone.model_dump_json(),
            **ancestry(model.config),
        }
        write_tensors(family.their_weights(model), target, metadata)

    def call(self, target: Path) -> Call:
        """What loads a file written here."""
        return _written(target)[0]

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> Mapping[str, Features] | None:
        """What timm computes from the folder. None where this timm has no such model."""
        del settings
        call, config = _written(target)
        if not timm.is_model(call.architecture.partition(".")[0]):
            return None
        family = _family(config)
        backbone: Any = timm.create_model(call.architecture, checkpoint_path=str(target), **call.overrides).eval()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in family.normalisation(config))
        with torch.inference_mode():
            return {"backbone": family.features(backbone, config, (images - mean) / std)}

    def stated_ancestors(self, target: Path) -> Any:
        """`distilled_from` as plain values, from config.json."""
        return json.loads(stated_in(target)[ANCESTRY])

    def snippet(self, target: Path, settings: ExportSettings) -> str:
        """Lines that load it with `timm.create_model`."""
        del settings
        call, config = _written(target)
        family = _family(config)
        overrides = "".join(f", {key}={value!r}" for key, value in call.overrides.items())
        mean, std = (list(values) for values in family.normalisation(config))
        return "\n".join(
            (
                "import timm",
                "import torch",
                f'model = timm.create_model("{call.architecture}", checkpoint_path="{target}"{overrides}).eval()',
                f"mean, std = torch.tensor({mean}), torch.tensor({std})",
                "images = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)  # timm leaves this to you; images [B, 3, H, W] in [0, 1]",
                *family.lines(config),
            )
        )


def _family(config: NetworkConfig) -> Family:
    return Backbone() if isinstance(config.student, TimmSettings) else RadioVit()


def _folder_config(path: Path) -> Mapping[str, Any]:
    """timm's config.json in a folder or beside a file; empty where there is none of a radio ViT."""
    file = (path if path.is_dir() else path.parent) / CONFIG_FILE
    config = peek(file) or {}
    return config if "_radio_" in str(config.get("architecture")) else {}


def _written_config(metadata: Mapping[str, str], where: str) -> NetworkConfig:
    """What `write` left in the metadata."""
    try:
        stated = json.loads(metadata[WRITTEN])
    except ValueError as error:
        raise UserError(f"{where}: its metadata are no JSON ({error}); the file is damaged") from None
    return validate(NetworkConfig, stated, f"{where}: metadata: ").without_start()


def _written(target: Path) -> tuple[Call, NetworkConfig]:
    metadata = stated_in(target)
    overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(metadata["model_args"]).items()}
    return Call(metadata["architecture"], overrides), _written_config(metadata, str(target))


def _config_of(weights: Mapping[str, Tensor], beside: Mapping[str, Any], where: str) -> NetworkConfig:
    """The config of a file of timm's own. beside: its config.json, or empty."""
    layout = layout_of(weights, str(beside.get("architecture", "")), beside.get("model_args") or {}, where)
    size = (beside.get("pretrained_cfg") or {}).get("input_size", [None])[-1]
    return NetworkConfig(student=layout.settings(f"{where}: "), num_summaries=1, image_size=size)
