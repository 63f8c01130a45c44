"""Losses: pure functions (prediction, target) -> one number a sample, float32 inside.

Predictions and targets are [B, D] (summary) or [B, H, W, D] (spatial) in target space; every loss returns float32 [B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, Self

import pydantic

from ..config import Settings, Weight, one_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..features import Kind

Loss = Callable[["Tensor", "Tensor"], "Tensor"]


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cosine similarity over channels, mean over positions (AM-RADIO, section 3.3: L_cos)."""
    import torch.nn.functional as F

    return _per_sample(1 - F.cosine_similarity(prediction.float(), target.float(), dim=-1))


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error, mean over channels and positions (PHI-S, section 3)."""
    return _per_sample((prediction.float() - target.float()).square())


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Huber-like error, quadratic below `beta`, mean over channels and positions."""
    import torch.nn.functional as F

    return _per_sample(F.smooth_l1_loss(prediction.float(), target.float(), beta=beta, reduction="none"))


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.ndim > 1 else values


class LossTerm(Settings):
    """A loss of one kind of feature."""

    def build(self) -> Loss:
        """The loss as a pure function of prediction and target: float32 [B], one number a sample."""
        raise NotImplementedError


class CosineSettings(LossTerm):
    """1 - cosine similarity: direction alone. AM-RADIO's choice for summaries, with raw targets (`normalize.summary: none`)."""

    type: Literal["cosine"] = "cosine"

    def build(self) -> Loss:
        """The loss as a pure function."""
        return cosine


class MseSettings(LossTerm):
    """Squared error. With standardized targets the choice of PHI-S for spatial features."""

    type: Literal["mse"] = "mse"

    def build(self) -> Loss:
        """The loss as a pure function."""
        return mse


class SmoothL1Settings(LossTerm):
    """Squared error below `beta`, absolute error above."""

    type: Literal["smooth_l1"] = "smooth_l1"
    beta: Annotated[float, pydantic.Field(ge=0, le=1e6)] = 1.0
    """Where the loss turns from quadratic to linear; torch's default is 1, TAO's port uses 2."""

    def build(self) -> Loss:
        """The loss as a pure function."""
        return lambda prediction, target: smooth_l1(prediction, target, self.beta)


class MatchSettings(LossTerm):
    """AM-RADIO's spatial loss: a mix of cosine and smooth L1, so that magnitudes are learnt too (section 3.3: L_match)."""

    type: Literal["match"] = "match"
    cosine: Weight = 0.9
    """Weight of the cosine part (alpha of the paper)."""
    smooth_l1: Weight = 0.1
    """Weight of the smooth L1 part (beta of the paper)."""
    beta: Annotated[float, pydantic.Field(ge=0, le=1e6)] = 1.0
    """Where smooth L1 turns from quadratic to linear; not stated in the paper."""

    @pydantic.model_validator(mode="after")
    def _measures_something(self) -> Self:
        if self.cosine == 0 and self.smooth_l1 == 0:
            raise ValueError("both weights are 0, so nothing would be learnt; give cosine or smooth_l1 a weight")
        return self

    def build(self) -> Loss:
        """The loss as a pure function."""

        def match(prediction: Tensor, target: Tensor) -> Tensor:
            return self.cosine * cosine(prediction, target) + self.smooth_l1 * smooth_l1(prediction, target, self.beta)

        return match


LOSSES: tuple[type[LossTerm], ...] = (CosineSettings, MseSettings, SmoothL1Settings, MatchSettings)

if TYPE_CHECKING:
    AnyLoss = LossTerm
else:
    AnyLoss = one_of(LOSSES)


class LossSettings(Settings):
    """Which loss for which kind of feature."""

    summary: AnyLoss = MseSettings()
    """Loss of the summaries. With targets per channel the squared error also teaches how large a deviation is; the cosine leaves it free,
    and exported heads got worse the longer they trained (docs/LOG.md, 2026-11-26). AM-RADIO: cosine on raw targets."""
    spatial: AnyLoss = MseSettings()
    """Loss of the maps. On targets per channel MSE was measured to beat AM-RADIO's mix, on raw targets too (docs/LOG.md, 2026-11-26)."""
    grid: Literal["larger", "smaller"] = "larger"
    """Where student and teacher maps differ in size: the grid on which they are compared (AM-RADIO: larger, RADIOv2.5: smaller)."""

    def of(self, kind: Kind) -> LossTerm:
        """The loss of one kind of feature."""
        return self.summary if kind == "summary" else self.spatial
