"""The heads of a published model: their layers from their weights, and their teachers' facts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...features import KINDS, Kind
from ...heads import AttentionHeadSettings, MlpHeadSettings, MlpV1HeadSettings
from ...network import HeadConfig, HeadPart
from .layout import Published

ATTENTION_HEADS, ATTENTION_DEPTH = 16, 2
"""Of the published attention head; its weights do not tell the first."""
TYPES = {"open_clip": "open_clip", "openai_clip": "clip", "siglip2": "siglip", "dino_v2": "dinov2", "dino_v3": "dinov3", "sam": "sam"}
"""`type` of a published teacher -> ours."""
SIGLIP_MODELS = {
    "siglip2-g-384": "google/siglip2-giant-opt-patch16-384",
    "siglip2-so400m": "google/siglip2-so400m-patch16-naflex",
}
"""`model` of a published siglip2 teacher -> its name on the hub."""
OWN_KEY = "amradio"
"""Of a teacher and of the settings, in files that we wrote: what the published layout has no word for."""


def head_config(published: Published, teacher: Mapping[str, Any], slot: int, where: str) -> HeadConfig | None:
    """The head of one teacher as its weights show it, None where the file has none for it."""
    name = teacher["name"]
    parts: dict[Kind, HeadPart] = {}
    for kind in KINDS:
        weights = published.below(f"heads.{name}.{kind}.")
        if weights:
            factor = int(teacher.get("fd_upsample_factor") or 1) if kind == "spatial" else 1
            parts[kind] = _part(weights, factor, f"{where}: {published.name_in_file(f'heads.{name}.{kind}.')}")
    if not parts:
        return None
    size = own_part(teacher).get("image_size")
    size = size if isinstance(size, int) and size > 0 else None
    return HeadConfig(**parts, slot=slot if "summary" in parts else 0, image_size=size, teacher=facts_of(teacher))


def _part(weights: Mapping[str, Tensor], factor: int, where: str) -> HeadPart:
    if "fc2.weight" in weights:
        return _part_v1(weights, factor, where)
    start = "mlp." if "mlp.fc1.weight" in weights else ""
    _check_present(weights, (f"{start}fc1.weight", f"{start}final.2.weight"), where)
    hidden, rows = len(weights[f"{start}fc1.weight"]), len(weights[f"{start}final.2.weight"])
    if rows % factor**2:
        raise UserError(f"{where}{start}final.2.weight: {rows} rows are no multiple of {factor}^2 (fd_upsample_factor)")
    count = len({match[1] for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))})
    if start:
        head = AttentionHeadSettings(depth=count, num_heads=ATTENTION_HEADS, hidden_dim=hidden, upsample_factor=factor)
    else:
        head = MlpHeadSettings(hidden_dim=hidden, num_inner=count, upsample_factor=factor)
    return HeadPart(head=head, dim=rows // factor**2)


def _part_v1(weights: Mapping[str, Tensor], factor: int, where: str) -> HeadPart:
    """An MLP of version 1, whose `inner` has three layers for each hidden one: linear, norm, ReLU."""
    if factor != 1:
        raise UserError(f"{where}*: an MLP of version 1 does not upsample, and fd_upsample_factor is {factor}; the file is damaged")
    _check_present(weights, ("fc1.weight",), where)
    count = len({int(match[1]) // 3 for key in weights if (match := re.match(r"inner\.(\d+)\.", key))})
    head = MlpV1HeadSettings(hidden_dim=len(weights["fc1.weight"]), num_inner=count)
    return HeadPart(head=head, dim=len(weights["fc2.weight"]))


def _check_present(weights: Mapping[str, Tensor], keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if key not in weights]
    if missing:
        raise UserError(*(f"{where}{key} is missing; the file is not whole" for key in missing))


def facts_of(teacher: Mapping[str, Any]) -> dict[str, str | int | float | None]:
    """What the card says of a published teacher: our `type` and `source` where it has one, and the size it saw."""
    kind = str(teacher.get("type", "not stated"))
    model = str(teacher.get("model", teacher["name"]))
    if kind == "open_clip" and teacher.get("pretrained"):
        model = f"{model} {teacher['pretrained']}"
    facts: dict[str, str | int | float | None] = {"type": TYPES.get(kind, kind), "source": SIGLIP_MODELS.get(model, model), "licence": None}
    if isinstance(teacher.get("input_size"), int):
        facts["input_size"] = teacher["input_size"]
    stored = own_part(teacher).get("teacher")
    return facts | (
        {key: value for key, value in stored.items() if isinstance(value, (str, int, float)) or value is None} if stored else {}
    )


def own_part(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What we wrote beside the published words; empty in files of others."""
    part = settings.get(OWN_KEY)
    return part if isinstance(part, Mapping) else {}


def entry_of(name: str, head: HeadConfig) -> dict[str, Any]:
    """The teacher of a head as the published list has it; the reverse of `facts_of`, with the whole of our facts beside it."""
    facts = head.teacher
    source = str(facts.get("source") or name)
    kind = next((theirs for theirs, ours in TYPES.items() if ours == facts.get("type")), str(facts.get("type") or "generic"))
    entry: dict[str, Any] = {"name": name, "type": kind, "model": source}
    # Of these two the official loader builds the text tower by name; any other type is a head and no more.
    if kind == "siglip2":
        known = {hub: word for word, hub in SIGLIP_MODELS.items()}
        entry |= {"model": known[source]} if source in known else {"type": "siglip"}
    elif kind == "open_clip":
        model, _, tag = source.partition(" ")
        entry |= {"model": model, "pretrained": tag} if tag else {"type": "clip"}
    if "input_size" in facts:
        entry["input_size"] = facts["input_size"]
    spatial = head.spatial and head.spatial.head
    if isinstance(spatial, (MlpHeadSettings, AttentionHeadSettings)) and spatial.upsample_factor > 1:
        entry["fd_upsample_factor"] = spatial.upsample_factor
    if isinstance(spatial, AttentionHeadSettings):
        entry["spatial_mlp_version"] = "attn"
    kinds = [kind for kind in KINDS if head.part(kind) is not None]
    return entry | {OWN_KEY: {"kinds": kinds, "teacher": dict(facts), "image_size": head.image_size}}


def silent_part(head: HeadConfig) -> HeadPart:
    """The MLP that stands for the kind that a head has not: one hidden channel, as many outputs as the other kind."""
    other = head.spatial or head.summary
    assert other is not None
    return HeadPart(head=MlpHeadSettings(hidden_dim=1), dim=other.dim)


def silent_head(in_dim: int, out_dim: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of an MLP that says zeros, for a kind that a head has not: the official loader wants both."""
    shapes = {"fc1.weight": (1, in_dim), "fc1.bias": (1,), "final.0.weight": (1,), "final.0.bias": (1,)}
    shapes |= {"final.2.weight": (out_dim, 1), "final.2.bias": (out_dim,)}
    return {key: torch.zeros(shape, dtype=dtype) for key, shape in shapes.items()}
