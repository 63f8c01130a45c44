"""What a loss is, and those that compare position by position: pure functions -> one number a sample, float32 inside.

Predictions and targets are [B, D] (summary) or [B, H, W, D] (spatial) in target space; every loss returns float32 [B] (float64 of float64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from .sphere import Sphere

Gather = Callable[["Tensor"], "tuple[Tensor, slice]"]
"""Rows of this process -> (the rows of all processes, which of them are its own), with gradients."""


def ungathered(rows: Tensor) -> tuple[Tensor, slice]:
    """The `Gather` of a single process."""
    return rows, slice(None)


class LossContext(NamedTuple):
    """What a loss may need beside prediction and target."""

    valid: Tensor | None = None
    """bool [B, H, W], the cells of the maps that count; None for all."""
    sphere: Sphere | None = None
    """Where the target directions of this teacher are, for losses with `needs_sphere`."""
    gather: Gather = ungathered


ALONE = LossContext()


class Loss(Protocol):
    """A loss of one kind of feature."""

    def __call__(self, prediction: Tensor, target: Tensor, context: LossContext = ALONE) -> Tensor:
        """[B, D] or [B, H, W, D] twice -> float32 [B]; a sample without a valid cell has 0."""
        ...


def cosine(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - cosine similarity over channels, mean over positions (AM-RADIO, section 3.3: L_cos)."""
    import torch.nn.functional as F

    return mean_of_cells(1 - F.cosine_similarity(wide(prediction), wide(target), dim=-1), valid)


def mse(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Squared error, mean over channels and positions (PHI-S, section 3)."""
    return mean_of_cells((wide(prediction) - wide(target)).square(), valid)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Huber-like error, quadratic below `beta`, mean over channels and positions."""
    import torch.nn.functional as F

    return mean_of_cells(F.smooth_l1_loss(wide(prediction), wide(target), beta=beta, reduction="none"), valid)


def dampened_mse(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """d^2 / 2 for differences below 1, beyond it 2 sqrt(d) - 1.5, mean over channels and positions (NVIDIA TAO)."""
    difference = (wide(prediction) - wide(target)).abs()
    root = difference.clamp_min(1).sqrt()  # its gradient at 0 would be infinite
    return mean_of_cells((difference.square() / 2).where(difference < 1, 2 * root - 1.5), valid)


def wide(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are that already."""
    return values if values.dtype.itemsize > 4 else values.float()


def mean_of_cells(values: Tensor, valid: Tensor | None) -> Tensor:
    """[B], [B, D], [B, H, W] or [B, H, W, D] -> [B], the mean over valid cells and channels."""
    if valid is None:
        return values.flatten(1).mean(1) if values.ndim > 1 else values
    if values.ndim == 4:
        values = values.mean(-1)
    return values.where(valid, values.new_zeros(())).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)
