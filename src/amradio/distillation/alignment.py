"""Alignment: a prediction and its target on one grid, over the region that both views show."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..features import Kind, resize_grid
from .pointwise import wide
from .views import Region

GridRule = Literal["larger", "smaller"]
"""Which of two grids maps are compared on: the larger (AM-RADIO) or the smaller (RADIOv2.5)."""


class Pair(NamedTuple):
    """A head's prediction and its target, both in target space and on one grid."""

    teacher: str
    kind: Kind
    prediction: Tensor
    """[B, D] or [B, h, w, D]."""
    target: Tensor
    """Of the same shape."""
    valid: Tensor | None = None
    """bool [B, h, w], the cells of maps that count; None for all."""

    @property
    def name(self) -> str:
        """`clip/summary`."""
        return f"{self.teacher}/{self.kind}"


def align(prediction: Tensor, target: Tensor, rule: GridRule) -> tuple[Tensor, Tensor]:
    """Two maps [B, h, w, D] of the same images on the larger or the smaller of their grids. rule: one of `GridRule`."""
    grids = [(x.shape[1], x.shape[2]) for x in (prediction, target)]
    grid = (max if rule == "larger" else min)(grids, key=lambda g: g[0] * g[1])
    return resize_grid(prediction, grid), resize_grid(target, grid)


def align_regions(
    prediction: Tensor, target: Tensor, rule: GridRule, regions: tuple[Region, Region]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two maps [B, h, w, D] of views that show different regions of the images, on the cells of one of them.

    rule: the cells are those of the larger or the smaller grid, of two alike those of the target. regions: what prediction and target show.
    Returns both maps, float32 or wider, and bool [B, h, w]: the cells that both views show in full; None for all of them.
    """
    if regions[0].is_whole and regions[1].is_whole:
        return *align(prediction, target, rule), None
    cells = [x.shape[1] * x.shape[2] for x in (prediction, target)]
    if cells[0] > cells[1] if rule == "larger" else cells[0] < cells[1]:
        target, valid = _resample(target, regions[1], prediction, regions[0])
    else:
        prediction, valid = _resample(prediction, regions[0], target, regions[1])
    return prediction, target, valid


FINEST = 4096
"""Parts of a cell to which positions are rounded, so that cells that meet do so exactly and are copied, not interpolated."""


def _resample(spatial: Tensor, region: Region, other: Tensor, wanted: Region) -> tuple[Tensor, Tensor]:
    """A map [B, H, W, D] of `region` at the cells of the map `other` [B, h, w, ...] of `wanted`, bilinearly: [B, h, w, D].

    And bool [B, h, w], the cells that lie within the map; the others have the values of its edge.
    """
    values = wide(spatial)
    valid: list[Tensor] = []
    for axis, (start, length, wanted_start, wanted_length) in enumerate(zip(region[:2], region[2:], wanted[:2], wanted[2:], strict=True)):
        count, wanted_count = spatial.shape[1 + axis], other.shape[1 + axis]
        edges = torch.arange(wanted_count + 1, dtype=torch.float64, device=spatial.device) * (wanted_length / wanted_count)
        edges = (_column(wanted_start, edges) + edges - _column(start, edges)) / length * count
        edges = ((edges * FINEST).round() / FINEST).expand(len(spatial), -1)
        centres = ((edges[:, 1:] + edges[:, :-1]) / 2 - 0.5).clamp(0, count - 1)
        values = _interpolated(values, centres) if axis == 0 else _interpolated(values.transpose(1, 2), centres).transpose(1, 2)
        valid.append((edges[:, :-1] >= 0) & (edges[:, 1:] <= count))
    return values, valid[0][:, :, None] & valid[1][:, None, :]


def _column(numbers: float | Tensor, like: Tensor) -> Tensor:
    """[B, 1] of a number for each image, [1, 1] of one for all."""
    return torch.as_tensor(numbers, dtype=like.dtype, device=like.device).reshape(-1, 1)


def _interpolated(values: Tensor, places: Tensor) -> Tensor:
    """[B, N, ...] -> [B, n, ...], linearly between the entries of dimension 1. places: float64 [B, n] in [0, N - 1]."""
    low = places.floor()
    share = (places - low).to(values.dtype)[..., None, None]
    images, first = torch.arange(len(values), device=values.device)[:, None], low.long()
    last = (first + 1).clamp(max=values.shape[1] - 1)
    return torch.lerp(values[images, first], values[images, last], share)
