"""From our network to a published model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...features import KINDS
from ...heads import AttentionHeadSettings, LinearHeadSettings
from ...network import HeadConfig, NetworkConfig
from ...students.base import CLIP_MEAN, CLIP_STD
from ...students.vit import SIZES, VitSettings, VitShape
from ..base import Found
from .heads import ATTENTION_DEPTH, ATTENTION_HEADS, OWN_KEY, entry_of, silent_head, silent_part
from .layout import Published

WITH_LAYER_SCALE = ("base", "large")
"""Sizes of which there is an architecture with LayerScale (`vit_base_patch16_v2_224`); the others get it through `init_values`."""


def carries(config: NetworkConfig) -> tuple[str, ...]:
    """Heads whose layers the published code has: MLPs, and attention heads of its own shape that do not upsample."""
    return tuple(name for name, head in config.heads.items() if all(_has_place(head, kind) for kind in KINDS))


def _has_place(head: HeadConfig, kind: str) -> bool:
    part = getattr(head, kind)
    if part is None:
        return True
    found = part.head
    if isinstance(found, AttentionHeadSettings):
        return (found.num_heads, found.depth, found.upsample_factor) == (ATTENTION_HEADS, ATTENTION_DEPTH, 1)
    return not isinstance(found, LinearHeadSettings)


def lacks(config: NetworkConfig) -> tuple[str, ...]:
    """Why the published code could not rebuild this model; empty where it can."""
    student = config.student
    if not isinstance(student, VitSettings):
        return (f"its student is of type '{student.type}'; only 'vit' has a place in it",)
    found = []
    slots = list(range(config.num_summaries)) if config.summary_slots is None else config.summary_slots
    if slots != sorted(set(slots)):
        found.append(f"summary_slots {slots} are not in ascending order, in which the published code reads them")
    if student.align_corners:
        found.append("its position table is read with align_corners true; the published code has read it with false since June 2025")
    names, num_prefix = len(_entries(config)), config.num_summaries + student.num_registers
    if config.num_summaries > 1 and names > num_prefix:
        found.append(f"the published code wants a summary token for each of {names} heads, there are {num_prefix}; leave heads out")
    return tuple(found)


def publish(model: Found) -> Published:
    """The model as the published code rebuilds it; `lacks` is empty and all heads are among `carries`.

    A head of one kind gets a silent one of the other, because the official loader wants both.
    """
    config, network = model.config, model.network
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    dtype = next(tensor.dtype for key, tensor in weights.items() if key.startswith("student.") and tensor.is_floating_point())
    for name, head in config.heads.items():
        for kind in KINDS:
            if getattr(head, kind) is None:
                in_dim = network.student.summary_dim if kind == "summary" else network.spatial_dim
                silent = silent_head(in_dim, silent_part(head).dim, dtype)
                weights |= {f"heads.{name}.{kind}.{key}": tensor for key, tensor in silent.items()}
    conditioner = {"norm_mean": torch.tensor(CLIP_MEAN).view(3, 1, 1), "norm_std": torch.tensor(CLIP_STD).view(3, 1, 1)}
    return Published(_settings(config, dtype), weights, conditioner, {})


def _settings(config: NetworkConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Every attribute that the official loader asks `args` for, and `amradio` with what it has no word for."""
    own = {
        "image_size": config.image_size,
        "training": config.training and config.training.model_dump(mode="json"),
        "origin": config.origin,
    }
    unused = dict.fromkeys(("in_chans", "input_size", "drop_path", "drop_block", "gp", "bn_momentum", "bn_eps", "damp"))
    return {
        **architecture(config),
        **unused,
        "pretrained": False,
        "num_classes": 0,
        "drop": 0.0,
        "torchscript": False,
        "initial_checkpoint": "",
        "teachers": _entries(config),
        "cls_token_per_teacher": config.num_summaries > 1,
        "model_norm": False,
        "dtype": dtype,
        "mlp_version": "v2",
        "spatial_mlp_version": None,
        "spectral_heads": False,
        "spectral_reparam": False,
        OWN_KEY: own,
    }


def architecture(config: NetworkConfig) -> dict[str, Any]:
    """`model`, `model_kwargs` and the tokens of a ViT."""
    student = config.student
    assert isinstance(student, VitSettings)
    shape = student.shape()
    size = next((name for name, own in SIZES.items() if own == shape), None)
    changes: dict[str, Any] = {} if size else _changes(shape)
    name = size or "base"
    middle = "patch16"
    if student.layer_scale is not None and name in WITH_LAYER_SCALE:
        middle = "patch16_v2"
    elif student.layer_scale is not None:
        changes["init_values"] = student.layer_scale
    if student.patch_size != 16:
        changes["patch_size"] = student.patch_size
    num_prefix = config.num_summaries + student.num_registers
    num_named = len({entry["name"] for entry in _entries(config)}) if config.num_summaries > 1 else 1
    return {
        "model": f"vit_{name}_{middle}_224",
        "model_kwargs": changes,
        "cpe_max_size": student.max_image_size,
        # Registers fill up to the next multiple, so the number of all tokens gives as many as there are.
        "register_multiple": num_prefix if num_prefix > num_named else None,
        "cpe_num_registers": None,
    }


def _changes(shape: VitShape) -> dict[str, Any]:
    changes: dict[str, Any] = {"embed_dim": shape.dim, "depth": shape.depth, "num_heads": shape.num_heads}
    if shape.mlp_dim != 4 * shape.dim:
        changes["mlp_ratio"] = (shape.mlp_dim + 0.5) / shape.dim  # the half keeps int() of the product from falling one short
    return changes


def _entries(config: NetworkConfig) -> list[dict[str, Any]]:
    """The list of teachers: the head that reads token n stands at place n, because that is how the published code counts.

    A token without a head gets an entry of its own; heads without a summary, or that share a token, follow behind.
    """
    slots = range(config.num_summaries) if config.summary_slots is None else config.summary_slots
    readers: dict[int, str] = {}
    for name, head in config.heads.items():
        if head.summary is not None:
            readers.setdefault(head.slot, name)
    if config.num_summaries == 1:
        order = sorted(config.heads, key=lambda name: name != readers.get(0))
        entries = [entry_of(name, config.heads[name]) for name in order] or [{"name": "unread_0", "type": "none"}]
        # The remote-code class counts use_summary even where all heads share one token.
        return [entry | {"use_summary": place == 0} for place, entry in enumerate(entries)]
    entries = []
    for slot in range(config.num_summaries):
        entry: Mapping[str, Any] = {"name": f"unread_{slot}", "type": "none"}
        if slot in readers:
            entry = entry_of(readers[slot], config.heads[readers[slot]])
        entries.append({**entry, "use_summary": slot in slots})
    behind = [name for name in config.heads if name not in readers.values()]
    return entries + [entry_of(name, config.heads[name]) | {"use_summary": False, "token_slot": config.heads[name].slot} for name in behind]


def spelt(published: Published, groups: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights under the names of a file. groups: start of our name -> start of the file's name."""
    return {published._replace(prefixes=groups).spell(key): tensor for key, tensor in published.weights.items()}
