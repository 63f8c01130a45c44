"""Whole images for models of one square size: overlapping squares, whose maps are put together."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..features import Features
from ..images import resize

LONGEST = 16
"""An image that is longer than this many times its short side is squashed to that: each square of it costs a pass of the model."""
FAR = 2**14
"""px beyond every size that a model takes at most."""
STRIDE = (2, 3)
"""Squares begin two thirds of their side from one another, as the windows of AM-RADIO's segmentation do."""


def only_side(legal: Callable[[int, int], tuple[int, int]]) -> int | None:
    """px of the only legal input, a square; None where there are several. legal: (height, width) -> the nearest legal size."""
    sizes = {legal(1, 1), legal(FAR, FAR // 2), legal(FAR // 2, FAR)}
    height, width = sizes.pop()
    return height if not sizes and height == width else None


class Tiled:
    """A model of one square size on whole images: overlapping squares along the long side, their maps put together.

    Where squares overlap, features are averaged; what a linear probe makes of the mean is the mean of what it makes of each.
    """

    def __init__(self, side: int, patch_size: int):
        """side: px of the model's input; patch_size: px of a cell of its map."""
        self.side, self.patch_size = side, patch_size
        self.stride = max(1, self.side * STRIDE[0] // STRIDE[1] // self.patch_size)

    def prepare(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] of any size -> the short side at the model's size, the long one that and a multiple of its patch."""
        height, width = images.shape[-2:]
        short, long = min(height, width), max(height, width)
        extra = round(self.side * (min(long / short, LONGEST) - 1) / self.patch_size) * self.patch_size
        return resize(images, (self.side + extra, self.side) if height > width else (self.side, self.side + extra))

    def encode(self, images: Tensor, model: Callable[[Tensor], Features]) -> Features:
        """Features of what `prepare` returns: the mean summary of the squares [B, D], and a map [B, h, w, D] from edge to edge.

        model: squares [B, 3, side, side] -> features.
        """
        height, width = images.shape[-2:]
        if height == width:
            return model(images)
        is_high = height > width
        cells = (max(height, width) - self.side) // self.patch_size
        begins = starts(cells + 1, 1, self.stride)
        windows = [slice(cell * self.patch_size, cell * self.patch_size + self.side) for cell in begins]
        squares = [model((images[..., window, :] if is_high else images[..., window]).contiguous()) for window in windows]
        summaries = [features.summary for features in squares if features.summary is not None]
        maps = [features.spatial for features in squares if features.spatial is not None]
        summary = torch.stack(summaries).mean(0) if summaries else None
        return Features(summary, _joined(maps, begins, cells, is_high) if maps else None)


def _joined(maps: Sequence[Tensor], begins: Sequence[int], extra: int, is_high: bool) -> Tensor:
    """Square maps [B, g, g, D] that begin at these cells -> one map, g + extra cells long; the mean where they overlap."""
    batch, side, _, dim = maps[0].shape
    total = maps[0].new_zeros(batch, side + extra, side, dim) if is_high else maps[0].new_zeros(batch, side, side + extra, dim)
    count = total.new_zeros(1, *total.shape[1:3], 1)
    for square, begin in zip(maps, begins, strict=True):
        window = (slice(None), slice(begin, begin + side)) if is_high else (slice(None), slice(None), slice(begin, begin + side))
        total[window] += square
        count[window] += 1
    return total / count


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an edge of `length` px, so that every pixel is covered; the last one ends at the edge."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]
