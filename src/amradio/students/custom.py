"""A student of the user's own: any torch module, passed in Python."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..features import Features
from .base import CLIP_MEAN, CLIP_STD, Student


class CustomStudent(Student):
    """A torch module as a student.

    The module gets normalised images [B, 3, H, W] and answers with a map [B, D, H / patch_size, W / patch_size], or with a pair: summary
    [B, num_summaries * S] and that map. Without a summary the mean of the map is one. Its channels are found out by running it once.
    Whoever needs more (sizes of another rule, random numbers of a step) writes a subclass of `Student`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        patch_size: int,
        step: int | None = None,
        num_summaries: int = 1,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ):
        """Runs the module once on zeros to find its channels.

        Args:
            module: takes normalised images [B, 3, H, W] and returns a map [B, D, H / patch_size, W / patch_size], or (summary, map).
            patch_size: px of the side of a cell of the map.
            step: px of which the sides of images are multiples; None for `patch_size`.
            num_summaries: how many summaries the module returns side by side, [B, num_summaries * S].
            mean: of RGB in [0, 1], 3 numbers; images are normalised with it.
            std: of RGB in [0, 1], 3 numbers.

        Raises UserError where the module fails or returns tensors of other shapes.
        """
        super().__init__()
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
        self.module = module
        self.patch_size, self.num_summaries, self.step = patch_size, num_summaries, step or patch_size
        if self.step % patch_size:
            raise UserError(f"student: step {self.step} is no multiple of patch_size {patch_size}")
        summary, cells = self._try()
        self.summary_dim, self.spatial_dim = summary.shape[1] // num_summaries, cells.shape[1]

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest (height, width) whose sides are multiples of `step`, at least one.

        Args:
            height: px of an image.
            width: px of an image.
        """
        return max(round(height / self.step), 1) * self.step, max(round(width / self.step), 1) * self.step

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features of a batch: summary [B, num_summaries * S] and spatial [B, H / patch_size, W / patch_size, D].

        Args:
            images: [B, 3, H, W], RGB in [0, 1], of a legal size; UserError names the nearest for others.
            draws: random numbers of the step, not used.
        """
        del draws
        summary, cells = self._answer(self.condition(images))
        return Features(summary, cells.permute(0, 2, 3, 1))

    def _answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(summary [B, n * S], map [B, D, H, W]) of normalised images."""
        output: Any = self.module(images)
        if isinstance(output, Tensor):
            return output.mean((2, 3)), output
        summary, cells = output
        return summary, cells

    def _try(self) -> tuple[Tensor, Tensor]:
        """The answer to one image of 2 x 3 steps, checked."""
        height, width = 2 * self.step, 3 * self.step
        where = next((p for p in self.module.parameters()), torch.empty(()))
        was_training = self.module.training
        try:
            with torch.no_grad():
                self.module.eval()
                summary, cells = self._answer(torch.zeros(1, 3, height, width, dtype=where.dtype, device=where.device))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise UserError(
                f"student: the module failed on images [1, 3, {height}, {width}]: {error}; it answers with a map [B, D, H, W], or "
                "with a pair (summary [B, S], map)"
            ) from None
        finally:
            self.module.train(was_training)
        cell = (height // self.patch_size, width // self.patch_size)
        if cells.ndim != 4 or tuple(cells.shape[2:]) != cell:
            raise UserError(
                f"student: of images [1, 3, {height}, {width}] the module's map is {list(cells.shape)}; with patch_size {self.patch_size} "
                f"it has to be [1, D, {cell[0]}, {cell[1]}]"
            )
        if summary.ndim != 2 or summary.shape[1] % self.num_summaries:
            raise UserError(
                f"student: the module's summary is {list(summary.shape)}; it has to be [1, S] with S a multiple of num_summaries "
                f"{self.num_summaries}"
            )
        return summary, cells
