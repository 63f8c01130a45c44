"""How near predictions are to their targets: one computation for the training log, held-out images and the evaluation `agreement`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import KINDS, Kind
from .alignment import GridRule, Pair
from .pointwise import mean_of_cells
from .statistics import Normalizer

HEADLINE = "standardized_cosine"
"""The measure that logs and tables show first."""
SMALLEST_NORM = 1e-6
"""A mean norm of standardized targets below this (targets that never change) counts as this, so that the ratio stays finite."""

Number = TypeVar("Number", float, Tensor)
MeanAndStd = tuple[Tensor, Tensor]
"""Of each channel of a teacher's feature, [D] each."""


@dataclass(frozen=True)
class AgreementProtocol:
    """How a run compares predictions with targets, so that evaluations beside it measure the same number."""

    grid: GridRule = "larger"
    """Which of two grids maps are compared on (`loss.grid` of the recipe)."""
    statistics: Mapping[tuple[str, Kind], MeanAndStd] = field(default_factory=dict)
    """By teacher and kind, as they were calibrated; none for those that were not."""


UNCALIBRATED = AgreementProtocol()
"""Of a model whose run is not known."""


@torch.no_grad()
def compare(prediction: Tensor, target: Tensor, mean: Tensor, std: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
    """Measures per sample, float32 [B], each the mean over valid positions; `norm_ratio` is made of their means by `with_norm_ratio`.

    prediction, target: [B, D] or [B, H, W, D] in raw teacher space, on one grid. mean, std: [D], of the raw targets; no std is 0 (see
    `normalize.set_statistics`). valid: bool [B, H, W]; None for all positions.
    cosine: in raw teacher space. constant_cosine: that of a constant prediction, the mean; the floor of the former.
    standardized_cosine: of both, centred and scaled per channel; a constant prediction scores about 0.
    prediction_norm, target_norm: lengths of the two, centred and scaled per channel.
    """
    prediction, target, mean, std = prediction.float(), target.float(), mean.float(), std.float()
    standard_prediction, standard_target = (prediction - mean) / std, (target - mean) / std
    measures = {
        HEADLINE: F.cosine_similarity(standard_prediction, standard_target, dim=-1),
        "cosine": F.cosine_similarity(prediction, target, dim=-1),
        "constant_cosine": F.cosine_similarity(mean.expand_as(target), target, dim=-1),
        "prediction_norm": standard_prediction.norm(dim=-1),
        "target_norm": standard_target.norm(dim=-1),
    }
    return {name: mean_of_cells(value, valid) for name, value in measures.items()}


def with_norm_ratio(means: Mapping[str, Number]) -> dict[str, Number]:
    """Means over samples of what `compare` returns, with `norm_ratio` in place of the two norms: mean prediction_norm / mean target_norm.

    1 is right. Below 1 predictions vary too little around the mean (0: a constant), above 1 too much. No cosine of standardized features
    depends on it, but what an exported head predicts does.
    """
    measures = {name: value for name, value in means.items() if name not in ("prediction_norm", "target_norm")}
    measures["norm_ratio"] = means["prediction_norm"] / (means["target_norm"] + SMALLEST_NORM)
    return measures


def measure(pair: Pair, normalizer: Normalizer) -> dict[str, Tensor]:
    """What `compare` measures of a pair in target space, per sample, float32 [B]."""
    return compare(normalizer.to_raw(pair.prediction), normalizer.to_raw(pair.target), normalizer.mean, normalizer.std, pair.valid)


def headline(numbers: Mapping[str, float]) -> str:
    """`clip 0.812/0.724  sam -/0.701`: the standardized cosine of summary / map for each teacher, `-` where a teacher has none.

    numbers: of a step, by `teacher/kind/measure`.
    """
    teachers = dict.fromkeys(name.split("/")[0] for name in numbers if name.endswith(f"/{HEADLINE}"))
    values = {teacher: [numbers.get(f"{teacher}/{kind}/{HEADLINE}") for kind in KINDS] for teacher in teachers}
    return "  ".join(f"{teacher} {'/'.join('-' if value is None else f'{value:.3f}' for value in row)}" for teacher, row in values.items())
