"""Parts of a batch whose images have several sizes (packed training): each part has one size, and the student sees all of them at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..batch import Batch
from .alignment import Pair
from .views import Partition


class Part(NamedTuple):
    """The images of a batch that have one size."""

    batch: Batch
    partition: Partition
    """At this size."""
    rows: Sequence[int] | None = None
    """Numbers of the images in the batch; None for all of them."""


def parts_of(batch: Batch, partition: Partition) -> list[Part]:
    """The parts of a batch, by the number of their size: one with all images where the partition is not packed."""
    if not partition.packed:
        return [Part(batch, partition)]
    parts: list[Part] = []
    for number in sorted(set(batch.sizes)):
        rows = [row for row, size in enumerate(batch.sizes) if size == number]
        parts.append(Part(batch.rows(rows), partition.packed[number], rows))
    return parts


class Comparison(NamedTuple):
    """The pairs of one teacher and kind, of all images of a batch."""

    pairs: Sequence[tuple[Pair, Partition]]
    """With the partition at their size."""
    order: Tensor | None = None
    """Where each image of the batch stands in the pairs put together; None where they stand in order."""

    @property
    def first(self) -> Pair:
        """One of them, for what all have in common."""
        return self.pairs[0][0]

    def by_sample(self, of_pair: Callable[[Pair, Partition], Tensor]) -> Tensor:
        """What `of_pair` returns [b] for each pair, for the images in their order [B]."""
        values = [of_pair(*pair) for pair in self.pairs]
        joined = values[0] if len(values) == 1 else torch.cat(values)
        return joined if self.order is None else joined[self.order]


def comparisons(parts: Sequence[Part], pairs: Sequence[Iterator[Pair]]) -> Iterator[Comparison]:
    """The pairs of each teacher and kind over all parts. Summaries, which are alike at every size, are one pair, so that losses can compare
    all images.

    pairs: of each part, in one order of teachers and kinds.
    """
    if len(parts) == 1:
        yield from (Comparison([(pair, parts[0].partition)]) for pair in pairs[0])
        return
    rows = torch.tensor([row for part in parts for row in part.rows or ()])
    order = rows.argsort()
    for several in zip(*pairs, strict=True):
        first, placed = several[0], order.to(several[0].target.device)
        if first.kind == "spatial":
            yield Comparison([(pair, part.partition) for pair, part in zip(several, parts, strict=True)], placed)
        else:
            prediction, target = (torch.cat(tensors)[placed] for tensors in zip(*((p.prediction, p.target) for p in several), strict=True))
            yield Comparison([(Pair(first.teacher, first.kind, prediction, target), parts[0].partition)])
