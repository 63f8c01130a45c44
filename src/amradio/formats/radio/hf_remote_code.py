"""The Hugging Face layout of the official remote-code class: config.json and model.safetensors with `radio_model.*`, adaptors included.

vLLM, TensorRT-LLM and others read it without that class; no code file is written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...features import KINDS, Features
from ...files import read_json
from ...heads import AttentionHeadSettings, MlpHeadSettings
from ...network import HeadPart, Network, NetworkConfig
from ...students.eradio_settings import EradioSettings
from ...tensors import tensor_shapes, write_tensors
from ..base import ExportSettings, Format, LoadedModel, peek
from ..model_folder import ANCESTRY, CONFIG_FILE, WEIGHTS_FILE, ancestry, read_sharded
from . import Published, compare_rules, network_of, publish, supported_heads, to_our_names, unsupported_reasons, weights_in_file
from .heads import own_part, silent_part

MODEL = "radio_model."
BACKBONE, ROTATION, BETWEEN = f"{MODEL}model.", f"{MODEL}feature_normalizer.", f"{MODEL}inter_feature_normalizer."
ADAPTORS, CONDITIONER, SUMMARY_SLOTS = f"{MODEL}adaptors.", f"{MODEL}input_conditioner.", f"{MODEL}summary_idxs"
PARTS = {"summary": "head_mlp.", "spatial": "feat_mlp."}
MAX_SIZE = 2048
"""px that the official config states for E-RADIO, which has no position table."""
VERSIONS = {"base": "radio_v2.5-b", "large": "radio_v2.5-l", "eradio": "e-radio_v2", "v2": "radio_v2.5-g"}
"""The official config looks its `version` up in a list of released models; any other size goes by the name of the largest. By the word
behind the first `_` of the architecture (`dino_v2_g_student`: v2)."""


class RemoteCode(Format):
    """`hf`: the folder that the official export pushes to the hub, without its code."""

    name = "hf"
    reader = "amradio's own reader, in a fresh model, because the official code is not run"

    def recognises(self, path: Path) -> bool:
        """A folder whose config.json has `args` with `teachers`."""
        settings = (peek(path / CONFIG_FILE) or {}).get("args")
        return isinstance(settings, dict) and "teachers" in settings

    def read(self, path: Path, align_corners: bool | None = None) -> LoadedModel:
        """Reads config.json and the weights beside it; the code in the folder is not run."""
        config = read_json(path / CONFIG_FILE)
        state = read_sharded(path)
        stated = state.pop(SUMMARY_SLOTS, None)
        slots = None if stated is None else tuple(stated.flatten().long().tolist())
        published = _published(config, state)
        preferred = config.get("preferred_resolution")
        size = preferred[0] if isinstance(preferred, list) and preferred and isinstance(preferred[0], int) else None
        loaded = network_of(published, str(path / WEIGHTS_FILE), align_corners, slots)
        legal = size is not None and loaded.network.student.nearest_size(size, size) == (size, size)
        return loaded._replace(config=loaded.config.model_copy(update={"image_size": size})) if legal else loaded

    def unsupported_reasons(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """What the published code cannot rebuild: students, heads and sizes that it has not."""
        del network
        return unsupported_reasons(config)

    def supported_heads(self, config: NetworkConfig) -> tuple[str, ...]:
        """Heads of linear layers and MLPs; the layout has no attention heads."""
        plain = {name for name, head in config.heads.items() if not (head.spatial and isinstance(head.spatial.head, AttentionHeadSettings))}
        return tuple(name for name in supported_heads(config) if name in plain)

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        """Writes config.json, model.safetensors and the line that names the published code; none of that code is copied."""
        del settings
        published = publish(model)
        state = weights_in_file(published, groups_of(model.config.heads))
        state |= {CONDITIONER + key: tensor for key, tensor in published.conditioner.items()}
        slots = range(model.config.num_summaries) if model.config.summary_slots is None else model.config.summary_slots
        state[SUMMARY_SLOTS] = torch.tensor(list(slots))
        write_tensors(state, target / WEIGHTS_FILE, ancestry(model.config))
        text = json.dumps(_config(published, model), indent=2, sort_keys=True)
        (target / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> Mapping[str, Features]:
        """What the folder, read back by our own reader, computes: the official class is code that is not run here."""
        network = self.read(target).network.float().eval()
        with torch.inference_mode():
            return network(images, None, settings.heads)

    def rules(self, target: Path, model: LoadedModel, settings: ExportSettings) -> str:
        """Applies the published rules (positions, windows, layers) to what was written; UserError where they give another model."""
        all_shapes = tensor_shapes(target / WEIGHTS_FILE)
        shapes = {key.removeprefix(BACKBONE): shape for key, shape in all_shapes.items() if key.startswith(BACKBONE)}
        return compare_rules(read_json(target / CONFIG_FILE)["args"], shapes, model, self.sizes(model, settings))

    def stated_ancestors(self, target: Path) -> Any:
        """`distilled_from` as plain values, from the arguments in config.json."""
        return own_part(read_json(target / CONFIG_FILE)["args"])[ANCESTRY]

    def snippet(self, target: Path, settings: ExportSettings) -> str:
        """Lines that load it with `AutoModel.from_pretrained` and the published code."""
        names = f", heads={list(settings.heads)}" if settings.heads else ""
        official = f"adaptor_names={list(settings.heads)}, " if settings.heads else ""
        optimal = own_part(read_json(target / CONFIG_FILE)["args"]).get("window") == "optimal"
        windows = "\n# model.radio_model.model.set_optimal_window_size(images.shape[2:])  # E-RADIO: at each new size of the images"
        return (
            f'import amradio\nmodel = amradio.load("{target}")\nfeatures = model(images{names})  # images: RGB in [0, 1], [B, 3, H, W]\n'
            "# or the official class, with the .py files of a published RADIO model copied into the folder:\n"
            f'# model = transformers.AutoModel.from_pretrained("{target}", {official}trust_remote_code=True){windows if optimal else ""}'
        )


def groups_of(names: Mapping[str, Any]) -> dict[str, str]:
    """Start of our name -> start of the file's name."""
    groups = {"student.": BACKBONE, "rotation.": ROTATION, "block_normalizer.": BETWEEN}
    for name in names:
        groups |= {f"heads.{name}.{kind}.": f"{ADAPTORS}{name}.{part}" for kind, part in PARTS.items()}
    return groups


def _published(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Published:
    """The weights with the training's settings; where the config describes an adaptor, its token and upsampling are taken from there."""
    settings, stated = dict(config["args"]), config.get("adaptor_configs")
    adaptors = stated if isinstance(stated, dict) else {}
    teachers: list[Any] = []
    listed = settings.get("teachers")
    for teacher in listed if isinstance(listed, list) else []:
        entry = adaptors.get(teacher.get("name")) if isinstance(teacher, dict) else None
        changes = {}
        if isinstance(entry, dict):
            spatial = entry.get("feature")
            changes["fd_upsample_factor"] = (spatial.get("upsample_factor") or 1) if isinstance(spatial, dict) else 1
            if entry.get("head_idx") is not None:
                changes["token_slot"] = entry["head_idx"]
        teachers.append(teacher | changes if changes else teacher)
    names = {key.removeprefix(ADAPTORS).split(".")[0] for key in state if key.startswith(ADAPTORS)}
    conditioner = {key.removeprefix(CONDITIONER): tensor for key, tensor in state.items() if key.startswith(CONDITIONER)}
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(CONDITIONER)}
    weights, used = to_our_names(rest, groups_of(dict.fromkeys(sorted(names))))
    return Published(settings | {"teachers": teachers}, weights, conditioner, used)


def _config(published: Published, model: LoadedModel) -> dict[str, Any]:
    """What the official export writes, in the same words."""
    config, settings = model.config, dict(published.settings)
    dtype = str(settings["dtype"]).removeprefix("torch.")
    size = "eradio" if isinstance(config.student, EradioSettings) else settings["model"].split("_")[1]
    adaptors = {}
    for name, head in config.heads.items():
        summary, spatial = (head.part(kind) or silent_part(head) for kind in KINDS)
        adaptors[name] = {
            "head_idx": head.slot,
            "summary": _mlp(summary, model.network.student.summary_dim),
            "feature": _mlp(spatial, model.network.spatial_dim) | {"upsample_factor": _factor(spatial), "upsample_rank": None},
        }
    rotation = {"embed_dim": model.network.spatial_dim} if config.rotates else None
    image_size = config.image_size or (settings["cpe_max_size"] or MAX_SIZE) // 4
    return {
        "architectures": ["RADIOModel"],
        "auto_map": {"AutoConfig": "hf_model.RADIOConfig", "AutoModel": "hf_model.RADIOModel"},
        "args": settings | {"dtype": dtype},
        "version": VERSIONS.get(size, "radio_v2.5-h"),
        "patch_size": model.network.student.patch_size,
        "max_resolution": settings["cpe_max_size"] or MAX_SIZE,
        "preferred_resolution": [image_size, image_size],
        "adaptor_names": None,
        "adaptor_configs": adaptors,
        "vitdet_window_size": None,
        "feature_normalizer_config": rotation,
        "inter_feature_normalizer_config": _between(model),
        "dtype": dtype,
    }


def _between(model: LoadedModel) -> dict[str, Any] | None:
    normalizer = model.network.block_normalizer
    if normalizer is None:
        return None
    depth, dim = normalizer.means.shape
    return {"num_intermediates": depth, "embed_dim": dim, "rot_per_layer": normalizer.rotation.ndim == 3}


def _factor(part: HeadPart) -> int:
    return part.head.upsample_factor if isinstance(part.head, MlpHeadSettings) else 1


def _mlp(part: HeadPart, in_dim: int) -> dict[str, Any]:
    assert isinstance(part.head, MlpHeadSettings)
    hidden_dim = part.head.hidden_dim or max(in_dim, part.dim)
    return {"input_dim": in_dim, "hidden_dim": hidden_dim, "output_dim": part.dim, "num_inner": part.head.num_inner}
