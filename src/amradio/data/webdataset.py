"""Tar shards in the layout of webdataset and img2dataset.

Every process must be able to say what a step holds, and a resumed run must not decode what was already seen. So shards are not
streamed: the headers of a shard say where its images lie, and from there an image is read as from a folder. The order is made
of `lanes`, whose number depends on the recipe alone:

- in epoch e, lane l of L goes through the shards l, l + L, l + 2 L, ... of a permutation drawn from (seed, e);
- a lane's sequence is cut into blocks of `shuffle_buffer` images, and each block is permuted;
- a batch takes equal runs of images from a few lanes, and the next step takes other lanes (`PHASES` times, then round again).

The process that builds a share of a step therefore opens few shards, and others than its neighbours do, as long as there are
`PHASES` lanes for each process and the workers of a process divide `PHASES`. Otherwise the batches are the same, and more
processes read the same headers. To resume, a lane needs the number of images of the shards behind it: img2dataset wrote it beside
the shard (`00000_stats.json`, `successes`); without that file, the headers are read once.
"""

import bisect
import glob
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ..errors import UserError, shown
from ..files import expand_braces, local_path, user_path
from . import stateless_random as chance
from .guard import UnreadableError, read_file
from .names import EXTENSIONS, PassedOver, extension, is_shard, to_key
from .shard import Shard, read_headers, stated_count
from .source import PHASES, ImageId, Order, Source, SourceSettings, digest_of
from .walk import walk


class WebDatasetSettings(SourceSettings):
    """Tar shards on a local or mounted disk, each image a member `name.jpg` (or .png, .webp, ...)."""

    type: Literal["webdataset"] = "webdataset"
    path: str
    """A folder of .tar files, or `/data/{00000..00099}.tar`, or `/data/*.tar`; several are parted by `::`."""
    shuffle_buffer: Annotated[int, pydantic.Field(gt=0, le=10_000_000)] = 5000
    """Images of a lane that are shuffled among each other; 1 keeps the order within shards."""
    lanes: Annotated[int, pydantic.Field(gt=0, le=65_536)] = 64
    """Shards that are read side by side, at most; best 8 for each process of the largest run."""

    def build(self) -> "WebDataset":
        """Lists the shards; raises UserError where there is none, or where one is missing."""
        return WebDataset(self.path, self.shuffle_buffer, self.lanes)


class _Walk:
    """A sequence of shards, as far as it was walked: which shard holds the m-th image of the sequence."""

    def __init__(self) -> None:
        self.shards: list[int] = []
        self.ends: list[int] = []

    def total(self) -> int:
        return self.ends[-1] if self.ends else 0

    def add(self, shard: int, count: int) -> None:
        self.shards.append(shard)
        self.ends.append(self.total() + count)

    def find(self, number: int) -> tuple[int, int]:
        """The shard of image `number` < total(), and its number there."""
        at = bisect.bisect_right(self.ends, number)
        return self.shards[at], number - (self.ends[at - 1] if at else 0)


class WebDataset(Source):
    """Images of tar shards; an id is (shard, image in the shard)."""

    def __init__(self, path: str, shuffle_buffer: int, lanes: int, reads_statistics: bool = True) -> None:
        """reads_statistics: whether the number of images is taken from the file beside a shard, where there is one; the settings'
        docstrings describe the rest."""
        self.path, self.shuffle_buffer, self.reads_statistics = path, shuffle_buffer, reads_statistics
        self.passed = PassedOver()
        self.shards = _find_shards(path, self.passed)
        self.lanes = min(lanes, len(self.shards))
        self.root = os.path.commonpath([os.path.dirname(shard) for shard in self.shards])
        self.counts: dict[int, int] = {}
        self._forget()

    def notes(self) -> tuple[str, ...]:
        """What was passed over in the shards that were opened so far, one line each."""
        return self.passed.note(self.root)

    def size(self) -> int | None:
        """Images in all shards: the sum of the statistics beside them; None where one has none."""
        counts = [stated_count(shard) for shard in self.shards]
        return None if min(counts) < 0 else sum(counts)

    def fingerprint(self) -> str:
        """16 hex digits of the names of the shards and the numbers of images that are stated beside them; no shard is opened."""
        return digest_of(*(f"{self._name(number)} {stated_count(shard)}" for number, shard in enumerate(self.shards)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._walks: dict[Any, _Walk] = {}
        self._opened: OrderedDict[int, Shard] = OrderedDict()
        self._noted: set[int] = set()

    def describe(self) -> str:
        """`100 tar shards in /path`; where they were counted already, `12,345 images of 100 tar shards in /path`."""
        shards = f"{len(self.shards):,} tar shard{'s' * (len(self.shards) != 1)} in {shown(self.root)}"
        walk = self._walks.get(None)
        if walk is None or len(walk.shards) < len(self.shards):
            return shards
        return f"{walk.total():,} image{'s' * (walk.total() != 1)} of {shards}"

    def count(self, limit: int | None = None) -> int:
        """How many images there are; reads headers until `limit` is reached."""
        walk = self._fixed_walk(limit)
        return walk.total() if limit is None else min(limit, walk.total())

    def nth(self, number: int) -> ImageId:
        """Image `number` of all shards one after another."""
        return self._fixed_walk(number + 1).find(number)

    def _fixed_walk(self, least: int | None) -> _Walk:
        walk = self._walks.setdefault(None, _Walk())
        while len(walk.shards) < len(self.shards) and (least is None or walk.total() < least):
            shard = len(walk.shards)
            walk.add(shard, self._count(shard))
        return walk

    def drawn(self, order: Order, position: int, attempt: int = 0) -> ImageId:
        """The image at `position` of the lanes' order (see the head of this file)."""
        lanes, run = self._layout(order.batch_size)
        chunk, within = divmod(position + attempt * PHASES * order.batch_size, run)
        turn, lane = divmod(chunk, lanes)
        block, slot = divmod(turn * run + within, self.shuffle_buffer)
        slot = chance.permuted(slot, self.shuffle_buffer, chance.key_of(order.seed, lane, block))
        number = block * self.shuffle_buffer + slot
        return self._lane_walk(order.seed, lanes, lane, number).find(number)

    def _layout(self, batch_size: int) -> tuple[int, int]:
        """The number of lanes, and how many images in a row are taken from one: `PHASES` batches are one round of all lanes."""
        columns = max(1, self.lanes // PHASES)
        columns = max(divisor for divisor in range(1, columns + 1) if batch_size % divisor == 0)
        return min(self.lanes, PHASES * columns), batch_size // columns

    def _lane_walk(self, seed: int, lanes: int, lane: int, number: int) -> _Walk:
        """The walk along a lane, at least as far as image `number`."""
        walk = self._walks.setdefault((seed, lanes, lane), _Walk())
        an_epoch = len(range(lane, len(self.shards), lanes))
        empty = 0
        while walk.total() <= number:
            epoch, turn = divmod(len(walk.shards), an_epoch)
            shard = chance.permuted(lane + turn * lanes, len(self.shards), chance.key_of(seed, epoch))
            walk.add(shard, self._count(shard))
            empty = 0 if self._count(shard) else empty + 1
            if empty > 100 * an_epoch:
                raise UserError(f"{self.describe()}: there is no image in them; members must end with {', '.join(EXTENSIONS)}")
        return walk

    def _count(self, shard: int) -> int:
        if shard not in self.counts:
            self.counts[shard] = stated_count(self.shards[shard]) if self.reads_statistics else -1
        if self.counts[shard] < 0:
            opened = self._open(shard)
            # What is wrong with a shard stands for one more image, so that it is counted and named like a broken one.
            self.counts[shard] = len(opened.samples) + bool(opened.problem)
        return self.counts[shard]

    def _open(self, shard: int) -> Shard:
        if shard not in self._opened:
            self._opened[shard] = opened = read_headers(self.shards[shard])
            if shard not in self._noted:
                self._noted.add(shard)
                for reason, count in opened.passed.counts.items():
                    self.passed.add(reason, f"{self._name(shard)}/{opened.passed.names[reason][0]}", count)
            while len(self._opened) > 2 * self.lanes + PHASES:
                self._opened.popitem(last=False)
        self._opened.move_to_end(shard)
        return self._opened[shard]

    def key(self, image_id: ImageId) -> str:
        """`shard/name`, the shard without `.tar` and relative to the folder that holds all of them."""
        shard, number = self._shard_and_number(image_id)
        samples = self._open(shard).samples
        return f"{self._name(shard)}/{samples[number].key}" if number < len(samples) else f"{self._name(shard)}.tar"

    def _name(self, shard: int) -> str:
        path = os.path.relpath(self.shards[shard], self.root)
        return to_key(os.path.splitext(path)[0] if is_shard(path) else path)

    def remark(self, image_id: ImageId) -> str:
        """With the first image of a shard, what was passed over in it; empty for the others."""
        shard, number = self._shard_and_number(image_id)
        if number:
            return ""
        opened = self._open(shard)
        more = len(opened.samples) - self._count(shard)
        fewer = (
            f"{len(opened.samples)} images found, {self._count(shard)} stated beside the shard: the others are not read" if more > 0 else ""
        )
        return "; ".join((*opened.passed.note(f"{self._name(shard)}.tar"), *([f"{self._name(shard)}.tar: {fewer}"] if fewer else [])))

    def read(self, image_id: ImageId) -> bytes:
        """The bytes of the image. Raises UnreadableError or OSError."""
        shard, number = self._shard_and_number(image_id)
        opened = self._open(shard)
        if number >= len(opened.samples):
            fewer = f"{len(opened.samples)} images found, {self._count(shard)} stated beside the shard"
            raise UnreadableError(opened.problem or fewer)
        sample = opened.samples[number]
        if sample.start + sample.size > os.stat(self.shards[shard]).st_size:
            raise UnreadableError("the shard ends within this image")
        data = read_file(self.shards[shard], sample.start, sample.size)
        if len(data) < sample.size:
            raise UnreadableError("the shard ends within this image")
        return data

    def _shard_and_number(self, image_id: ImageId) -> tuple[int, int]:
        assert isinstance(image_id, tuple)
        return image_id


def _files(path: str, passed: PassedOver) -> Iterable[str]:
    """`` for a file, the shards below it for a folder."""
    if os.path.isdir(path):
        return walk(Path(path), passed, is_shard)
    if os.path.isfile(path):
        return ("",)
    passed.add("no regular file", path)
    return ()


def _find_shards(path: str, passed: PassedOver) -> list[str]:
    """The files that `path` stands for, sorted; UserError where one is missing. passed: takes what a folder of shards has besides."""
    shards: list[str] = []
    parts = [[part] if local_path(part) else expand_braces(part, "path") for part in path.split("::")]  # a file may have braces in its name
    for pattern in itertools.chain.from_iterable(parts):
        if pattern.startswith("pipe:"):
            raise UserError(f"{shown(pattern)}: shards are read from a local or mounted disk; download or mount them and give the path")
        location = os.path.abspath(user_path(pattern))
        files = [
            os.path.normpath(os.path.join(there, file))
            for there in ([location] if os.path.lexists(location) else glob.glob(location, recursive=True))
            for file in _files(there, passed)
        ]
        if not files:
            lacks = "no tar shard in this folder or below it" if os.path.isdir(location) else "no such tar shard"
            raise UserError(
                f"{shown(location)}: there is {lacks}; give a folder, '/data/{{00000..00099}}.tar' or '/data/*.tar'",
                *passed.note(location),
            )
        shards.extend(files)
    packed = [file for file in shards if extension(file) in (".gz", ".tgz", ".bz2", ".xz", ".zst")]
    if packed:
        raise UserError(f"{shown(packed[0])}: shards must not be compressed, the images in them already are; unpack it to a .tar file")
    return sorted(set(shards))
