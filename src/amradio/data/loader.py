"""Batches: what a step sees is a function of (recipe, seed, step), whoever loads it and wherever the run was resumed."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

from ..batch import Batch
from ..config import sides_of
from ..errors import UserError
from . import stateless_random as chance
from .decode import Box, centre_box, crop_and_resize, random_box
from .guard import UnreadableError
from .loading_processes import load_items
from .sizes import DrawnSizes
from .source import ImageId, Order, Source

MAX_ATTEMPTS = 1000
"""Unreadable images in a row, for one position, after which a run stops."""
NUM_DRAWS = 8
_DRAWS, _CROPS = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Feed:
    """What a loader delivers, and which share of it this process takes.

    `batch_size` is that of the whole step; process `rank` of `world_size` gets the contiguous share number `rank`, so the
    shares put together are the batch of a run on one process. Raises UserError where the batch cannot be shared out.
    """

    image_size: int | tuple[int, int]
    """px of the side of a square, or (height, width), at which images are delivered."""
    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    sizes: DrawnSizes | None = None
    """Of the student: what is cut out of an image has the aspect of its size; None for that of `image_size`."""

    def __post_init__(self) -> None:
        if min(self.sides) < 1 or self.batch_size < 1 or self.seed < 0 or not 0 <= self.rank < self.world_size:
            raise UserError(f"{self}: sizes start at 1, seeds at 0, and rank is below world_size")
        if self.batch_size % self.world_size:
            legal = [n for n in range(1, self.batch_size + 1) if self.batch_size % n == 0]
            raise UserError(
                f"batch_size {self.batch_size} cannot be shared out to {self.world_size} processes; "
                f"take a multiple of {self.world_size}, or one of {', '.join(map(str, legal))} processes"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) px at which images are delivered."""
        return sides_of(self.image_size)

    def aspects(self, step: int, images: range) -> list[float]:
        """Width over height of what is cut out of each image of a step."""
        return [self.sides[1] / self.sides[0]] * len(images) if self.sizes is None else self.sizes.aspects(self.seed, step, images)

    def size_numbers(self, step: int, images: range) -> tuple[int, ...]:
        """For `Batch.sizes`."""
        return tuple(self.sizes.numbers(self.seed, step, images)) if self.sizes is not None and self.sizes.by_image else ()

    def share(self, total: int) -> range:
        """The indices within a batch, of which the step has `total`, that fall to this process."""
        size = self.batch_size // self.world_size
        return range(min(self.rank * size, total), min((self.rank + 1) * size, total))


@dataclass(frozen=True)
class Crop:
    """How a training view is cut out."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float


class TrainSteps(Dataset):
    """Step number -> Batch: random crops of the source's endless shuffled order."""

    def __init__(self, source: Source, feed: Feed, crop: Crop) -> None:
        self.source, self.feed, self.crop = source, feed, crop
        self.order = Order(feed.seed, feed.batch_size)

    def __getitem__(self, step: int) -> Batch:
        share = self.feed.share(self.feed.batch_size)
        numbers = chance.uniform(self.feed.seed, _CROPS, step, share.start, len(share), 24)
        aspects = self.feed.aspects(step, share)
        images = np.empty((len(share), 3, *self.feed.sides), dtype=np.uint8)
        keys, skipped, remarks = [], [], []
        for row, index in enumerate(share):
            position = step * self.feed.batch_size + index
            key, pixels = self._fill(position, numbers[row], aspects[row], (skipped, remarks))
            images[row] = pixels.transpose(2, 0, 1)
            keys.append(key)
        draws, sizes = _draws(self.feed.seed, step, share), self.feed.size_numbers(step, share)
        return Batch(torch.from_numpy(images), tuple(keys), draws, tuple(skipped), tuple(remarks), sizes)

    def _fill(self, position: int, numbers: np.ndarray, aspect: float, told: tuple[list[str], list[str]]) -> tuple[str, np.ndarray]:
        """The key and the view at `position`, or those of the first readable stand-in. told: what was skipped and remarks, added to."""
        skipped, remarks = told
        ratio = self.crop.ratio[0] * aspect, self.crop.ratio[1] * aspect

        def choose(width: int, height: int) -> Box:
            return random_box(numbers, self.crop.scale, ratio, width, height)

        for attempt in range(MAX_ATTEMPTS):
            image_id = self.source.drawn(self.order, position, attempt)
            view = _view(self.source, image_id, choose, self.feed.sides)
            remarks.extend(filter(None, (self.source.remark(image_id),)))
            if isinstance(view, np.ndarray):
                return self.source.key(image_id), view[:, ::-1] if numbers[22] < self.crop.flip else view
            skipped.append(f"{self.source.key(image_id)}: {view}")
        raise UserError(
            f"{self.source.describe()}: {MAX_ATTEMPTS} unreadable images in a row, the last {skipped[-1]}; "
            "see whether the disk is still there, and take the broken images out"
        )


class ValSteps(Dataset):
    """Step number -> Batch: central parts of images in the source's fixed order, each once; unreadable ones are left out."""

    def __init__(self, source: Source, feed: Feed, total: int) -> None:
        self.source, self.feed, self.total = source, feed, total

    def __getitem__(self, step: int) -> Batch:
        first = step * self.feed.batch_size
        share = self.feed.share(min(self.feed.batch_size, self.total - first))
        images, keys, skipped, rows, remarks = [], [], [], [], []
        aspects = self.feed.aspects(step, share)
        for row, index in enumerate(share):
            choose = partial(centre_box, aspect=aspects[row])
            image_id = self.source.nth(first + index)
            view = _view(self.source, image_id, choose, self.feed.sides)
            remarks.extend(filter(None, (self.source.remark(image_id),)))
            if isinstance(view, np.ndarray):
                images.append(torch.from_numpy(view.copy()).permute(2, 0, 1))
                keys.append(self.source.key(image_id))
                rows.append(row)
            else:
                skipped.append(f"{self.source.key(image_id)}: {view}")
        stacked = torch.stack(images) if images else torch.empty(0, 3, *self.feed.sides, dtype=torch.uint8)
        return Batch(stacked.contiguous(), tuple(keys), _draws(self.feed.seed, step, share)[rows], tuple(skipped), tuple(remarks))


def _view(source: Source, image_id: ImageId, choose: Callable[[int, int], Box], size: tuple[int, int]) -> np.ndarray | str:
    """uint8 [*size, 3], or why there is none."""
    try:
        return crop_and_resize(source.read(image_id), choose, size)
    except UnreadableError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _draws(seed: int, step: int, share: range) -> torch.Tensor:
    return torch.from_numpy(chance.uniform(seed, _DRAWS, step, share.start, len(share), NUM_DRAWS))


def train_loader(source: Source, feed: Feed, crop: Crop, start_step: int, num_workers: int | None) -> Iterator[Batch]:
    """Batches of the steps start_step, start_step + 1, ... without end; the first one's remarks begin with the source's notes.

    Raises UserError where the source gave out.
    """
    told = source.notes() if feed.rank == 0 else ()
    for batch in _batches(TrainSteps(source, feed, crop), itertools.count(start_step), num_workers):
        yield batch._replace(remarks=(*told, *batch.remarks)) if told else batch
        told = ()


def val_loader(source: Source, feed: Feed, limit: int | None, num_workers: int | None) -> Iterator[Batch]:
    """Each of the first `limit` images once; the last batch may be small, none is empty. Raises UserError where none is readable."""
    total = source.count(limit)
    held: Batch | None = None
    skipped: tuple[str, ...] = ()
    for batch in _batches(ValSteps(source, feed, total), range(-(-total // feed.batch_size)), num_workers):
        skipped += batch.skipped
        if not batch.keys:
            continue
        if held is not None:
            yield held
        held, skipped = batch._replace(skipped=skipped), ()
    if held is not None:
        yield held._replace(skipped=held.skipped + skipped)
    elif skipped:
        raise UserError(f"{source.describe()}: none of the {len(skipped)} images that were tried can be read; the first: {skipped[0]}")


def _batches(steps: Dataset, numbers: Iterable[int], num_workers: int | None) -> Iterator[Batch]:
    with closing(load_items(steps, numbers, num_workers)) as items:
        for item in items:
            images, keys, draws, skipped, remarks, sizes = item
            yield Batch(images, tuple(keys), draws, tuple(skipped), tuple(remarks), tuple(sizes))  # pinning turns tuples into lists
