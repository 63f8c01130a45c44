"""Alignment: a prediction and its target on one grid, over the region that both views show."""

from typing import Literal, NamedTuple

from torch import Tensor

from ..features import Kind, resize_grid
from .views import WHOLE, Region

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


def align(prediction: Tensor, target: Tensor, rule: GridRule, regions: tuple[Region, Region] = (WHOLE, WHOLE)) -> tuple[Tensor, Tensor]:
    """Two maps [B, h, w, D] over the region that both show, on the larger or the smaller of their grids.

    rule: one of `GridRule`. regions: of the images, that prediction and target cover; where they differ, each map is cropped to what they
    have in common, which must be whole cells of both (views are shifted by multiples of the patch).
    """
    common = regions[0].intersection(regions[1])
    prediction, target = crop_map(prediction, regions[0], common), crop_map(target, regions[1], common)
    grids = [(x.shape[1], x.shape[2]) for x in (prediction, target)]
    grid = (max if rule == "larger" else min)(grids, key=lambda g: g[0] * g[1])
    return resize_grid(prediction, grid), resize_grid(target, grid)


def crop_map(spatial: Tensor, region: Region, wanted: Region) -> Tensor:
    """The cells of a map [B, H, W, D] of `region` that show `wanted`, a part of it; AssertionError where these are no whole cells."""
    if region == wanted:
        return spatial
    rows = _cells(wanted.top - region.top, wanted.height, region.height, spatial.shape[1])
    columns = _cells(wanted.left - region.left, wanted.width, region.width, spatial.shape[2])
    return spatial[:, rows, columns]


def _cells(offset: float, length: float, side: float, count: int) -> slice:
    """The cells that a stretch covers, of `count` cells along `side`."""
    first, last = offset / side * count, (offset + length) / side * count
    assert max(abs(first - round(first)), abs(last - round(last))) < 1e-3, f"cells {first} to {last} of {count} are no whole cells"
    return slice(round(first), round(last))
