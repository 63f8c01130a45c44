"""The one currency between rooms: what a backbone or a head says about a batch of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["summary", "spatial"]
KINDS: tuple[Kind, ...] = ("summary", "spatial")


class Features(NamedTuple):
    """What a backbone or a head says about a batch of images."""

    summary: Tensor | None
    """[B, D], None where the model has none (SAM)."""
    spatial: Tensor | None
    """[B, H, W, D], channels last, row-major; None where the model has none."""


def resize_grid(spatial: Tensor, grid: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinearly resizes a map of features [B, H, W, D] to [B, *grid, D], same dtype."""
    if tuple(spatial.shape[1:3]) == grid:
        return spatial
    import torch.nn.functional as F

    channels_first = spatial.permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, grid, mode="bilinear", align_corners=align_corners)
    return resized.permute(0, 2, 3, 1)
