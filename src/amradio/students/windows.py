"""ViTDet's windowed attention (Li et al. 2022, section 3) as RADIO uses it: most blocks look within windows only."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError


def global_blocks(depth: int, num_global: int = 4, num_windowed: int | None = None) -> frozenset[int]:
    """Numbers of the blocks in which all tokens see one another: the last of every period, and the last block of all.

    The period is depth // num_global (RADIOv2.5-B, -L, -H and C-RADIOv4: 4; -g and C-RADIOv2-g: 8) or, where it is given,
    num_windowed + 1 (RADIOv2 and v2.1: 5). Raises UserError where no block would be left to window.
    """
    period = depth // max(num_global, 1) if num_windowed is None else num_windowed + 1
    if period < 2:
        asked = f"num_global {num_global}" if num_windowed is None else f"num_windowed {num_windowed}"
        raise UserError(f"{asked}: every one of {depth} blocks would be global; take another number, or no windows")
    return frozenset(block for block in range(depth) if block % period == period - 1 or block == depth - 1)


def to_windows(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """[B, H*W, D] row by row -> the same patches window by window, both in row-major order. H and W are multiples of `size`."""
    rows, columns = grid[0] // size, grid[1] // size
    parted = patches.unflatten(1, (rows, size, columns, size)).transpose(2, 3)
    return parted.reshape(patches.shape)


def from_windows(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Undoes `to_windows`."""
    rows, columns = grid[0] // size, grid[1] // size
    return patches.unflatten(1, (rows, columns, size, size)).transpose(2, 3).reshape(patches.shape)


class Parted(NamedTuple):
    """Tokens on their way through windowed and global blocks."""

    prefix: Tensor
    """[B, P, D] summaries and registers: as the last global block left them."""
    patches: Tensor
    """[B, N, D] window by window."""


class Windows:
    """Runs the blocks of a ViT: patches in windows of `size` x `size`, the prefix tokens set aside, but for the global blocks.

    The patches are put in window order once; a global block does not mind the order, for positions were added before.
    """

    def __init__(self, size: int, whole: frozenset[int], num_prefix: int):
        """whole: numbers of the global blocks."""
        self.size, self.whole, self.num_prefix = size, whole, num_prefix

    def enter(self, tokens: Tensor, grid: tuple[int, int]) -> Parted:
        """[B, P + N, D], prefix first and patches row by row -> parted."""
        return Parted(tokens[:, : self.num_prefix], to_windows(tokens[:, self.num_prefix :], grid, self.size))

    def step(self, block: Callable[[Tensor], Tensor], number: int, parted: Parted) -> Parted:
        """What block `number` makes of them."""
        prefix, patches = parted
        if number in self.whole:
            tokens = block(torch.cat([prefix, patches], 1))
            return Parted(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :])
        windows = patches.unflatten(1, (-1, self.size**2)).flatten(0, 1)
        return Parted(prefix, block(windows).reshape(patches.shape))

    def leave(self, parted: Parted, grid: tuple[int, int]) -> Tensor:
        """Undoes `enter`."""
        return torch.cat([parted.prefix, from_windows(parted.patches, grid, self.size)], 1)
