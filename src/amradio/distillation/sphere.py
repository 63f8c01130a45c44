"""Losses on the sphere of directions: by angles, and in the space that is tangent to it at a teacher's mean direction."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pointwise import ALONE, LossContext, wide

SMALLEST_SPREAD = 1e-6
"""Squared radians: a dispersion below this (summaries that never change) counts as this, as in NVIDIA TAO."""
SHORTEST = 1e-8
"""Vectors shorter than this have no direction; torch's own bound for cosines."""
NEAR, FAR = 1e-3, 1 - 1e-6
"""Of (1 - cosine) / 2: below the first series are exact to 1e-15 and the formulas are not; beyond the second (opposite directions)
gradients have no direction."""


class Sphere(nn.Module):
    """Where a teacher's target directions are, calibrated before a stage.

    Buffers, float32: `direction` [D], their mean, of length 1; `dispersion` [], the mean squared angle between it and them; and
    `tangent_variance` [], the sum over channels of the variance of their tangents.
    """

    direction: Tensor
    dispersion: Tensor
    tangent_variance: Tensor

    def __init__(self, dim: int):
        """dim: channels D. Before it is calibrated, angles are divided by 1."""
        super().__init__()
        self.register_buffer("direction", F.one_hot(torch.tensor(0), dim).float())
        self.register_buffer("dispersion", torch.tensor(1.0))
        self.register_buffer("tangent_variance", torch.tensor(1.0))

    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor], add_up: Callable[[Tensor], None]) -> None:
        """batches: targets [B, D] of this process, float64. add_up: sums a float64 tensor over all processes, in place."""
        device = self.direction.device
        directions = [F.normalize(batch.double(), dim=1, eps=SHORTEST) for batch in batches]
        sums = torch.zeros(self.direction.shape[0] + 1, dtype=torch.float64, device=device)
        for rows in directions:
            sums += torch.cat((rows.sum(0), rows.new_tensor([len(rows)]))).to(device)
        add_up(sums)
        count, mean = sums[-1], F.normalize(sums[:-1], dim=0, eps=SHORTEST)
        spread = torch.zeros_like(sums)
        for rows in directions:
            tangents = log_map(rows, mean.to(rows.device))
            spread += torch.cat((tangents.sum(0), tangents.square().sum()[None])).to(device)
        squares = torch.zeros_like(count)
        for rows in directions:
            squares += square_of_angle(rows @ mean.to(rows.device)).sum().to(device)
        add_up(spread)
        add_up(squares)
        self.direction.copy_(mean)
        self.dispersion.copy_((squares / count).clamp_min(SMALLEST_SPREAD))
        variance = spread[-1] / count - (spread[:-1] / count).square().sum()
        self.tangent_variance.copy_(variance.clamp_min(SMALLEST_SPREAD))


def angle(prediction: Tensor, target: Tensor, context: LossContext = ALONE) -> Tensor:
    """The squared angle between two summaries [B, D] over the teacher's dispersion (C-RADIOv4: L_angle)."""
    assert context.sphere is not None, "the directions of this teacher are not calibrated"
    return square_of_angle(F.cosine_similarity(wide(prediction), wide(target), dim=-1)) / context.sphere.dispersion


def tangent_sphere(prediction: Tensor, target: Tensor, context: LossContext = ALONE) -> Tensor:
    """The squared distance of the tangents of two summaries [B, D], over the teacher's variance of tangents."""
    assert context.sphere is not None, "the directions of this teacher are not calibrated"
    mean = context.sphere.direction
    one, other = (log_map(F.normalize(wide(rows), dim=-1, eps=SHORTEST), mean.to(wide(rows).dtype)) for rows in (prediction, target))
    return (one - other).square().sum(-1) / context.sphere.tangent_variance


def square_of_angle(cosine: Tensor) -> Tensor:
    """arccos(cosine)^2, with a gradient at 1 (where arccos has none)."""
    s = (1 - cosine) / 2  # the squared sine of half the angle
    series = 4 * s * (1 + s * (1 / 3 + s * (8 / 45 + s * (4 / 35 + s * (128 / 1575)))))
    exact = 4 * _inside(s).sqrt().asin().square()
    return torch.where(s < NEAR, series, exact)


def log_map(directions: Tensor, mean: Tensor) -> Tensor:
    """Tangents [..., D] at `mean` [D] that lead to unit vectors [..., D]: as long as the angle between them. A zero vector has none: 0."""
    cosine = directions @ mean
    s = (1 - cosine) / 2
    series = 1 + s * (2 / 3 + s * (8 / 15 + s * (16 / 35 + s * (128 / 315 + s * (256 / 693)))))
    inside = _inside(s)
    exact = inside.sqrt().asin() / (inside * (1 - inside)).sqrt()
    ratio = torch.where(s < NEAR, series, exact)  # the angle over its sine
    return ratio[..., None] * (directions - cosine[..., None] * mean)


def _inside(s: Tensor) -> Tensor:
    """Where the exact formulas have finite gradients; the rest of the values is not used."""
    return torch.where(s < NEAR, torch.full_like(s, 0.25), s).clamp(max=FAR)
