"""What every student is: a backbone with its own preprocessing that speaks `Features`."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import Settings
from ..errors import UserError
from ..features import Features

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NUM_DRAWS = 8
"""Columns of `draws`: uniform random numbers that one sample may spend in one step."""


class StudentRow(NamedTuple):
    """One line of `amradio students`."""

    type: str
    size: str
    dim: int
    depth: int
    num_heads: int
    patch_size: int
    parameters: int
    """Of the backbone with its default settings and four summaries, position table included."""


class StudentSettings(Settings):
    """What is common to all students; each kind adds its own keys and `build`."""

    @property
    def shares_summary(self) -> bool:
        """Whether all heads read one and the same summary, so that the student has one however many teachers there are."""
        return False

    def build(self, num_summaries: int) -> "Student":
        """A freshly initialised student (or one started from the weights that the settings name).

        num_summaries: how many summaries the heads read, one per teacher that has one.
        """
        raise NotImplementedError

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """The sizes of this kind of student; counted without allocating the weights."""
        raise NotImplementedError


class Student(nn.Module):
    """A backbone that is trained.

    Attributes: `patch_size` px per cell of the spatial output; `summary_dim` channels of ONE summary; `num_summaries` of them;
    `spatial_dim` channels of the map. Images are RGB in [0, 1]; mean and std are buffers of the model.
    `started_from` says which weights it began with, None for random ones.
    """

    mean: Tensor
    std: Tensor
    patch_size: int
    summary_dim: int
    spatial_dim: int
    num_summaries: int
    started_from: "StartReport | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The legal input size nearest to height x width px."""
        raise NotImplementedError

    def no_decay(self) -> set[str]:
        """Names of parameters beyond norms and biases that weight decay leaves alone (tokens, position tables)."""
        return set()

    def fuse_attention(self, fused: bool) -> None:
        """Computes attention in one fused kernel or step by step: the same numbers, but one is quicker. Does nothing without attention."""
        del fused

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features of a batch.

        images: [B, 3, H, W], RGB in [0, 1], of a legal size, else ValueError that names the nearest.
        draws: [B, 8] uniform in [0, 1), the random numbers of each sample in training (None: drawn from the global generator).
        Returns summary [B, num_summaries * summary_dim], summaries one after another, and spatial [B, H', W', spatial_dim].
        """
        raise NotImplementedError

    def intermediates(self, images: Tensor, indices: Sequence[int]) -> list[Features]:
        """Features after each block of `indices` (negative counts from the end), in that order; shapes as of `forward`.

        Raises UserError where the student has no such blocks.
        """
        del images, indices
        raise UserError(f"{type(self).__name__}: this student has no intermediate features; a 'vit' student has")

    def condition(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> zero mean and unit deviation per channel; UserError where the size is not legal."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images: found shape {tuple(images.shape)}; give [B, 3, H, W], RGB in [0, 1]")
        height, width = int(images.shape[2]), int(images.shape[3])
        legal = self.nearest_size(height, width)
        if legal != (height, width):
            raise UserError(f"images: {height}x{width} px is not a size this student takes; the nearest is {legal[0]}x{legal[1]} px")
        return (images - self.mean) / self.std


class StartReport(NamedTuple):
    """What became of the weights that a student was started from; names of the student's parameters."""

    source: str
    matched: tuple[str, ...]
    """Taken over as they are."""
    changed: tuple[str, ...]
    """Taken over after resampling, folding or taking only some rows."""
    left: tuple[str, ...]
    """Still random, because the source has no such tensor or one of another shape."""
    unused: tuple[str, ...]
    """Names in the source that the student has no place for."""

    def __str__(self) -> str:
        def few(names: tuple[str, ...]) -> str:
            return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")

        parts = [f"{self.source}: {len(self.matched)} tensors taken as they are"]
        parts += [f"adapted: {few(self.changed)}"] if self.changed else []
        parts += [f"still random: {few(self.left)}"] if self.left else []
        parts += [f"unused: {few(self.unused)}"] if self.unused else []
        return "; ".join(parts)
