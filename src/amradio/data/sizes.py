"""Sizes of images in training: which of several a step takes, or each of its images, is a function of the seed, the step and the image."""

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from .stateless_random import uniform

STREAM = 2
"""The stream of random numbers from which sizes are drawn; 0 and 1 are those of the loader."""


class DrawnSizes(NamedTuple):
    """Sizes of which one is drawn for each step, or for each image, as often as its weight says."""

    sizes: Sequence[tuple[int, int]]
    """(height, width) px, at least one."""
    weights: Sequence[float]
    """As many, above 0."""
    by_image: bool = False
    """Whether each image of a step has its own."""

    def numbers(self, seed: int, step: int, images: range) -> list[int]:
        """The number of the size of each image of a step: the same on any number of processes and after a resume."""
        first, count = (images.start, len(images)) if self.by_image else (0, 1)
        bounds = list(accumulate(self.weights))
        drawn = uniform(seed, STREAM, step, first, count, 8)[:, 0] if len(self.sizes) > 1 else [0.0] * count
        numbers = [bisect(bounds, float(number) * bounds[-1], hi=len(bounds) - 1) for number in drawn]
        return numbers if self.by_image else numbers * len(images)

    def number(self, seed: int, step: int) -> int:
        """The number of the size of all images of a step."""
        return self.numbers(seed, step, range(1))[0]

    def aspects(self, seed: int, step: int, images: range) -> list[float]:
        """Width over height of the size of each image of a step."""
        return [self.sizes[number][1] / self.sizes[number][0] for number in self.numbers(seed, step, images)]
