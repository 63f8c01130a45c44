"""E-RADIO in the published layout: settings from the weights' shapes, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...network import NetworkConfig
from ...students.eradio import Eradio
from ...students.eradio_published import own_weights, published_weights, settings_from
from ...students.eradio_settings import SIZES, EradioSettings
from .heads import own_part
from .layout import Published, same_conditioner

STEM = "student.patch_embed.conv_down.0.conv.weight"
"""A weight that every E-RADIO has and no ViT."""
ARCHITECTURES = {
    "large": "eradio",
    "xxxtiny": "eradio_xxxtiny",
    "xxxtiny_8x_ws12": "eradio_xxxtiny_8x_ws12",
    "xxxtiny_8x_ws16": "eradio_xxxtiny_8x_ws16",
}
"""Our size -> the architecture's published name; the published code has no other shapes, and takes no changes of these."""


def read_eradio(published: Published, where: str) -> tuple[EradioSettings, Published]:
    """The student as its weights show it, and the model without what the student computes itself (listed as dead)."""
    if not same_conditioner(published, where):
        raise UserError(f"{where}: input_conditioner: not the mean and std of CLIP; an E-RADIO with others is not read here")
    weights = published.below("student.")
    try:
        settings = settings_from(weights, "optimal" if own_part(published.settings).get("window") == "optimal" else "fixed")
    except UserError as error:
        raise UserError(*(f"{where}: {problem}" for problem in error.problems)) from None
    with torch.device("meta"):
        student = settings.build(1)
    kept = {f"student.{key}" for key in own_weights(weights, student)}
    left_out = [key for key in published.weights if key.startswith("student.") and key not in kept]
    rest = {key: tensor for key, tensor in published.weights.items() if key not in left_out}
    shared = {**published.settings, "cls_token_per_teacher": False}
    ignored_keys = (*published.ignored_keys, *map(published.name_in_file, left_out))
    return settings, published._replace(settings=shared, weights=rest, ignored_keys=ignored_keys)


def lacks_eradio(student: EradioSettings) -> tuple[str, ...]:
    """Why the published code could not rebuild this student; empty where it can."""
    reasons = []
    if not student.shares_summary:
        reasons.append("its summaries are one per teacher; the published E-RADIO has the mean of the map for all")
    if _architecture(student) is None:
        reasons.append(f"its shape is none of the published E-RADIOs ({', '.join(ARCHITECTURES)}), and the published code takes no other")
    return tuple(reasons)


def _architecture(student: EradioSettings) -> str | None:
    return next((name for size, name in ARCHITECTURES.items() if student.neck and student.shape() == SIZES[size]), None)


def eradio_architecture(config: NetworkConfig) -> dict[str, Any]:
    """`model`, `model_kwargs` and the tokens of an E-RADIO."""
    assert isinstance(config.student, EradioSettings)
    model = _architecture(config.student)
    none = dict.fromkeys(("cpe_max_size", "register_multiple", "cpe_num_registers"))
    return {"model": model, "model_kwargs": {"return_full_features": True}, **none}


def eradio_weights(student: Eradio) -> Mapping[str, Tensor]:
    """The student's weights and the buffers that the published code wants beside them, under our names."""
    return {f"student.{key}": tensor for key, tensor in published_weights(student).items()}
