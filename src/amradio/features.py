"""The one currency between rooms: the features that a backbone or a head computes for a batch of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["summary", "spatial"]
KINDS: tuple[Kind, ...] = ("summary", "spatial")


class Features(NamedTuple):
    """The features of a batch of images, of a backbone or of a head."""

    summary: Tensor | None
    """[B, D], None where the model has none (SAM)."""
    spatial: Tensor | None
    """[B, H, W, D], channels last, row-major; None where the model has none."""

    def of(self, kind: Kind) -> Tensor | None:
        """The features of one kind, None where the model has none.

        Args:
            kind: `summary` or `spatial`.
        """
        return self.summary if kind == "summary" else self.spatial

    def items(self) -> Iterator[tuple[Kind, Tensor]]:
        """(kind, features) of every kind that the model has, the summary first."""
        if self.summary is not None:
            yield "summary", self.summary
        if self.spatial is not None:
            yield "spatial", self.spatial


def resize_grid(spatial: Tensor, grid: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinearly resizes a map of features [B, H, W, D] to [B, *grid, D], same dtype."""
    if tuple(spatial.shape[1:3]) == grid:
        return spatial
    import torch.nn.functional as F

    channels_first = spatial.permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, grid, mode="bilinear", align_corners=align_corners)
    return resized.permute(0, 2, 3, 1)
