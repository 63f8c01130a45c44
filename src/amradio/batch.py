"""One partition's images of one step, as data loading yields them and the method takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Batch(NamedTuple):
    """One partition's images of one step."""

    images: Tensor
    """uint8 [B, 3, H, W], RGB."""
    keys: tuple[str, ...]
    """B names, unique within the source."""
    draws: Tensor
    """float32 [B, 8], uniform in [0, 1): random numbers, a function of (seed, step, index) alone: 0 to 4 for the student,
    5 for its regularisation, 6 and 7 for the method (teacher dropping, shifts)."""
    skipped: tuple[str, ...] = ()
    """`key: reason` for each unreadable image that was met while this batch was filled."""
    remarks: tuple[str, ...] = ()
    """What else there is to tell of the files that were read: images of a shard that were passed over."""

    sizes: tuple[int, ...] = ()
    """The number of each image's size in the partition, where they have several; empty for one size for all."""

    def to(self, device: torch.device) -> Batch:
        """The same with images and draws on `device`; from pinned memory the copy does not block."""
        return self._replace(images=self.images.to(device, non_blocking=True), draws=self.draws.to(device, non_blocking=True))

    def piece(self, number: int, count: int) -> Batch:
        """Every `count`-th image from the `number`-th on (from 0).

        So piece `number` is the same piece of the whole batch on any number of processes, and so are the statistics of a BatchNorm.
        """
        part = slice(number, None, count)
        return Batch(self.images[part].contiguous(), self.keys[part], self.draws[part].contiguous(), sizes=self.sizes[part])

    def rows(self, rows: Sequence[int]) -> Batch:
        """The images of these numbers."""
        keys = tuple(self.keys[row] for row in rows)
        return Batch(self.images[list(rows)], keys, self.draws[list(rows)])
