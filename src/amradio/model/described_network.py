"""A network beside its configuration: names of heads, channels, legal sizes, dtype and device."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UserError, brief, nearest
from ..network import Network, NetworkConfig


class DescribedNetwork(nn.Module):
    """Base of `Model`: a network and what can be known of it without an image."""

    def __init__(self, config: NetworkConfig, network: Network):
        super().__init__()
        self.config = config
        self.network = network

    def __repr__(self) -> str:
        return describe(self)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        return tuple(self.config.heads)

    @property
    def patch_size(self) -> int:
        """Pixels per cell of the map."""
        return self.network.student.patch_size

    @property
    def window_size(self) -> int | None:
        """Patches of a window's side in windowed mode, None without windows."""
        return self.network.student.window_size

    @property
    def min_resolution_step(self) -> int:
        """px: the least legal side, of which the others are multiples (patch_size, times window_size where there are windows)."""
        return self.nearest_size(1, 1)[0]

    @property
    def image_size(self) -> int | None:
        """px at which most heads were trained last, the size to prefer; None where the file does not say."""
        return self.config.image_size

    @property
    def num_summaries(self) -> int:
        """Summaries of the student, one per teacher that has one; the backbone's summary may leave some out."""
        return self.network.student.num_summaries

    @property
    def summary_dim(self) -> int:
        """Channels of the backbone's summary: its summaries, one after another."""
        return self.network.summary_dim

    @property
    def spatial_dim(self) -> int:
        """Channels of the backbone's map."""
        return self.network.spatial_dim

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of the features."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights, where images must be."""
        return next(self.parameters()).device

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The legal input size (height, width) nearest to that of an image, in px.

        Args:
            height: px, 1 or more.
            width: px, 1 or more.

        Raises UserError where these are no whole numbers above 0.
        """
        _check_sides(height, width)
        return self.network.student.nearest_size(int(height), int(width))

    def _known(self, heads: str | Iterable[str]) -> list[str]:
        """The names as a list; UserError for one that is not there."""
        return head_names(heads, self.config.heads)


def describe(model: DescribedNetwork) -> str:
    """One line: what a model is, its size, and its heads."""
    student = model.config.student
    settings = student.model_dump()
    kind = " ".join(str(part) for part in (student.type, settings.get("size") or settings.get("model")) if part)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    trained = f"trained at {model.image_size} px, " if model.image_size else ""
    dtype = str(model.dtype).removeprefix("torch.")
    heads = f"heads: {', '.join(model.heads)}" if model.heads else "no heads"
    return f"Model({kind}, {millions:.1f} M parameters, patch {model.patch_size} px, {trained}{dtype} on {model.device}, {heads})"


def head_names(heads: str | Iterable[str], there: Iterable[str]) -> list[str]:
    """The names of heads as a list, each once; a text is one name. Raises UserError for those that are not among `there`."""
    wanted = list(dict.fromkeys([heads] if isinstance(heads, str) else heads))
    there = list(there)
    hint = "this model has no heads, only its backbone" if not there else ""
    problems = [f"heads: there is no head '{name}'; {hint or nearest(str(name), there)}" for name in wanted if name not in there]
    if problems:
        raise UserError(*problems)
    return wanted


def _check_sides(*sides: Any) -> None:
    wrong = [side for side in sides if not isinstance(side, int | np.integer) or side < 1]
    if wrong:
        raise UserError(f"nearest_size: expected height and width in px, whole numbers above 0, found {brief(wrong[0])}")
