"""timm: one safetensors state dict that plain `timm.create_model(..., checkpoint_path=...)` loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import validate
from ..errors import UserError
from ..features import Features
from ..network import Network, NetworkConfig, load_exactly
from ..students.base import CLIP_MEAN, CLIP_STD
from ..students.vit import Vit, VitSettings
from .base import ExportSettings, Format, Found
from .folder import CONFIG_FILE, WEIGHTS_FILE, read_weights
from .timm_radio import PATCH_BIAS, Call, call_for, is_radio, layout_of, naflex_names, published_names
from .vit_weights import fold_normalisation, without_idle_scales


class Timm(Format):
    """`timm`: the backbone. A ViT goes into a `naflexvit_*_radio_*`, which stretches positions at every size as RADIO does.

    Read are these, and the `vit_*_radio_*` with their table of one size. The metadata of a file written here say the call that loads it,
    and which prefix tokens are summaries, which timm does not distinguish.
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
            with safe_open(file, "pt") as opened:
                return "amradio_backbone" in (opened.metadata() or {}) or is_radio(set(opened.keys()))
        except (SafetensorError, OSError):
            return False

    def read(self, path: Path, align_corners: bool | None = None) -> Found:
        """See the base. Without metadata of ours the first prefix token is the only summary, as timm has it."""
        file = path / WEIGHTS_FILE if path.is_dir() else path
        tensors, metadata = read_weights(file), _metadata(file)
        weights = without_idle_scales(published_names(tensors, str(file)))
        bias = weights.pop(PATCH_BIAS, None)
        beside = _folder_config(path)
        config = _written_config(metadata, str(file)) if "amradio_backbone" in metadata else _config_of(weights, beside, str(file))
        if align_corners is not None:
            config = config.model_copy(update={"student": config.student.model_copy(update={"align_corners": align_corners})})
        network = config.build()
        load_exactly(network.student, weights, str(file))
        mean, std = (beside.get("pretrained_cfg", {}).get(key, own) for key, own in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
        network.student.load_state_dict(fold_normalisation(network.student.state_dict(), mean, std, bias))
        return Found(config, network)

    def lacks(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """See the base."""
        student = network.student
        if not isinstance(student, Vit):
            return (f"timm's radio models are ViTs, and this student is of type '{config.student.type}'; 'onnx' has a place for it",)
        rotates = "timm's radio ViTs have no place for the rotation of the map; 'torchhub' and 'hf' have"
        bare = "timm's radio ViTs have a class token, and this student has neither summaries nor registers"
        return (*([rotates] if config.rotates else []), *([] if student.num_prefix else [bare]))

    def carries(self, config: NetworkConfig) -> tuple[str, ...]:
        """None: these are backbones."""
        del config
        return ()

    def write(self, target: Path, model: Found, settings: ExportSettings) -> None:
        """See the base."""
        del settings
        student, chosen = model.network.student, model.config.student
        assert isinstance(student, Vit)
        assert isinstance(chosen, VitSettings)
        entry, call = call_for(chosen, student.num_prefix)
        backbone = model.config.without_start().model_copy(update={"heads": {}, "training": None})
        metadata = {
            "format": "pt",
            "architecture": call.architecture,
            "model_args": json.dumps(call.overrides),
            "amradio_backbone": backbone.model_dump_json(),
        }
        weights = naflex_names(student.state_dict(), entry)
        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, target, metadata)

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> Mapping[str, Features] | None:
        """See the base. None where this timm has no radio ViTs."""
        del settings
        call, config = _written(target)
        if not timm.is_model(call.architecture):
            return None
        model: Any = timm.create_model(call.architecture, checkpoint_path=str(target), **call.overrides).eval()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        with torch.inference_mode():
            tokens = model.forward_features((images - mean) / std)
        grid = [edge // config.student.patch_size for edge in images.shape[2:]]
        return {"backbone": Features(tokens[:, _slots(config)].flatten(1), tokens[:, model.num_prefix_tokens :].unflatten(1, grid))}

    def snippet(self, target: Path, settings: ExportSettings) -> str:
        """See the base."""
        del settings
        call, config = _written(target)
        overrides = "".join(f", {key}={value!r}" for key, value in call.overrides.items())
        return "\n".join(
            (
                "import timm",
                "import torch",
                f'model = timm.create_model("{call.architecture}", checkpoint_path="{target}"{overrides}).eval()',
                f"mean, std = torch.tensor({list(CLIP_MEAN)}), torch.tensor({list(CLIP_STD)})",
                "images = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)  # timm leaves this to you; images [B, 3, H, W] in [0, 1]",
                "tokens = model.forward_features(images)",
                f"summary = tokens[:, {_slots(config)}].flatten(1)  # [B, D]",
                "spatial = tokens[:, model.num_prefix_tokens:]  # [B, H * W, D], patches row by row",
            )
        )


def _slots(config: NetworkConfig) -> list[int]:
    return list(range(config.num_summaries)) if config.summary_slots is None else config.summary_slots


def _folder_config(path: Path) -> Mapping[str, Any]:
    """timm's config.json in a folder or beside a file; empty where there is none of a radio ViT."""
    file = (path if path.is_dir() else path.parent) / CONFIG_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "_radio_" in str(found.get("architecture")) else {}


def _metadata(file: Path) -> Mapping[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def _written_config(metadata: Mapping[str, str], where: str) -> NetworkConfig:
    """What `write` left in the metadata."""
    try:
        found = json.loads(metadata["amradio_backbone"])
    except ValueError as error:
        raise UserError(f"{where}: its metadata are no JSON ({error}); the file is damaged") from None
    return validate(NetworkConfig, found, f"{where}: metadata: ").without_start()


def _written(target: Path) -> tuple[Call, NetworkConfig]:
    metadata = _metadata(target)
    overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(metadata["model_args"]).items()}
    return Call(metadata["architecture"], overrides), _written_config(metadata, str(target))


def _config_of(weights: Mapping[str, Tensor], beside: Mapping[str, Any], where: str) -> NetworkConfig:
    """The config of a file of timm's own. beside: its config.json, or empty."""
    layout = layout_of(weights, str(beside.get("architecture", "")), beside.get("model_args") or {}, where)
    size = (beside.get("pretrained_cfg") or {}).get("input_size", [None])[-1]
    return NetworkConfig(student=layout.settings(f"{where}: "), num_summaries=1, image_size=size)
