"""Relative positions of frozen encoders: read from their tables once for each grid, instead of in every call."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOST_RESULTS = 8
"""Results that a layer keeps: of two tables (rows and columns), for a few grids or after a move to another device."""

Reader = Callable[[int, int, Tensor], Tensor]


class Remembered:
    """A layer's `get_rel_pos` (transformers' SAM), with its results kept.

    The original makes its index on the CPU, so on a GPU every layer waits for a copy in every call.
    """

    def __init__(self, read: Reader):
        """read: (number of queries, number of keys, table [L, C]) -> [queries, keys, C]; depends on nothing else."""
        self.read = read
        self.results: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, q_size: int, k_size: int, rel_pos: Tensor) -> Tensor:
        """As the original; a table that was changed, moved or cast is read anew."""
        if torch.compiler.is_compiling():
            return self.read(q_size, k_size, rel_pos)
        key = (q_size, k_size, rel_pos.device, rel_pos.dtype, rel_pos.data_ptr(), rel_pos._version)
        if key not in self.results:
            if len(self.results) >= MOST_RESULTS:
                self.results.clear()
            with torch.inference_mode(False), torch.no_grad():
                self.results[key] = self.read(q_size, k_size, rel_pos.detach())
        return self.results[key]


def remember_relative_positions(encoder: nn.Module) -> None:
    """Gives every layer of a frozen encoder that has a `get_rel_pos` the remembering one, in place."""
    for layer in encoder.modules():
        read: Any = getattr(layer, "get_rel_pos", None)
        if read is not None:
            object.__setattr__(layer, "get_rel_pos", Remembered(read))
