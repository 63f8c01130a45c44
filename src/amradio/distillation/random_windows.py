"""Windowed attention as augmentation (RADIOv2.5, C-RADIOv4): in some steps of training the student sees its patches in windows."""

from collections.abc import Sequence
from typing import NamedTuple

from ..data.stateless_random import uniform

STREAM = 3
"""The stream of random numbers from which windows are drawn; 0 and 1 are those of the loader, 2 that of sizes."""


class Windowing(NamedTuple):
    """The windowed mode of a step."""

    size: int
    """Patches along the side of a window."""
    num_global: int
    """Blocks in which all patches see one another."""


class RandomWindows(NamedTuple):
    """What windows are drawn from."""

    sizes: Sequence[int]
    """Patches along the side of a window."""
    probability: float
    """Of a step with windows, in (0, 1]."""
    num_global: int
    patch_size: int
    """px, of the student."""

    def fitting(self, size: tuple[int, int]) -> list[int]:
        """The windows that part the map of an image of `size` (height, width) px: they divide both sides, and one of them is longer."""
        grid = [side // self.patch_size for side in size]
        return [window for window in self.sizes if max(grid) > window and not any(side % window for side in grid)]

    def drawn(self, size: tuple[int, int], seed: int, step: int) -> Windowing | None:
        """The mode of a step, None for global attention: a function of these alone, so the same on all processes and after a resume.

        size: (height, width) px of the student's images in that step.
        """
        fitting = self.fitting(size)
        whether, which, *_ = uniform(seed, STREAM, step, 0, 1, 8)[0].tolist()
        if not fitting or whether >= self.probability:
            return None
        return Windowing(fitting[int(which * len(fitting))], self.num_global)
