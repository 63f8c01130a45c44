"""Which sizes of images a model really received, as a table and the machine-readable results name them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..features import Features

Counts = dict[tuple[int, int], int]
"""{(height, width) px: images}."""


class Recorded:
    """A model that remembers the sizes of its inputs."""

    def __init__(self, model: Callable[[Tensor], Features]):
        self.model = model
        self.sizes: Counts = {}

    def __call__(self, images: Tensor) -> Features:
        """Features of images [B, 3, H, W] of a legal size."""
        height, width = images.shape[-2:]
        self.sizes[height, width] = self.sizes.get((height, width), 0) + len(images)
        return self.model(images)


def describe(sizes: Counts) -> str:
    """`224` for squares of one size, `512+` where the short side is always that and the long side varies, `448-512` else; `-` for none."""
    if not sizes:
        return "-"
    short = sorted({min(size) for size in sizes})
    if len(short) > 1:
        return f"{short[0]}-{short[-1]}"
    return f"{short[0]}" if all(height == width for height, width in sizes) else f"{short[0]}+"


def plain(sizes: Counts) -> Mapping[str, Any]:
    """As JSON takes it: `px` as of `describe`, and the least and the largest short and long side."""
    short, long = ([side_of(size) for size in sizes] for side_of in (min, max))
    return {"px": describe(sizes), "short_side": [min(short), max(short)], "long_side": [min(long), max(long)]}
