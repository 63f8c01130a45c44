"""Several named sources, drawn by weight."""

from typing import TYPE_CHECKING, Literal, Self

import pydantic

from ..config import Weight, one_of
from ..errors import UserError
from . import stateless_random as chance
from .decode import Encoded
from .source import ImageId, Order, Source, SourceSettings, digest_of
from .sources import SINGLE_SOURCES

BLOCK = 10_000
"""In each run of so many samples every source has exactly its share, in a drawn order."""

if TYPE_CHECKING:
    SingleSource = SourceSettings
else:
    SingleSource = one_of(SINGLE_SOURCES)


class MixtureSettings(SourceSettings):
    """Named sources with weights; the source of each sample is drawn from the seed and the sample's number in the run."""

    type: Literal["mixture"] = "mixture"
    sources: dict[str, SingleSource] = pydantic.Field(min_length=1)
    """The sources, by names of the user's own."""
    weights: dict[str, Weight] | None = None
    """How often each source is drawn, relative to the others: {datacomp: 0.95, sam: 0.05}. Null for the number of images of each, so that
    every image comes equally often (a source gets 1/10000 at least); for tar shards it is read from `NAME_stats.json` beside each."""

    @pydantic.model_validator(mode="after")
    def _match(self) -> Self:
        if self.weights is None:
            return self
        if set(self.weights) != set(self.sources):
            raise ValueError(f"weights: one for each source ({', '.join(self.sources)}), found {', '.join(self.weights) or 'none'}")
        if min(self.weights.values()) <= 0 or min(self.weights.values()) / sum(self.weights.values()) < 1 / BLOCK:
            raise ValueError(f"weights: each at least 1/{BLOCK} of their sum, found {self.weights}; leave out what is not wanted")
        return self

    def build(self) -> "Mixture":
        """Opens all sources; raises UserError with the problems of all of them."""
        built: dict[str, Source] = {}
        problems: list[str] = []
        for name, settings in self.sources.items():
            try:
                built[name] = settings.build()
            except UserError as error:
                problems.extend(f"{name}: {problem}" for problem in error.problems)
        if problems:
            raise UserError(*problems)
        return Mixture(built, self.weights or _by_size(built))


class Mixture(Source):
    """Sources drawn by weight; an id is (name of the source, id within it)."""

    def __init__(self, sources: dict[str, Source], weights: dict[str, float]) -> None:
        self.sources, self.weights = sources, weights
        self.names = list(sources)
        self.ends = _cumulated_shares([weights[name] for name in self.names])

    def notes(self) -> tuple[str, ...]:
        """Of all sources."""
        return tuple(note for source in self.sources.values() for note in source.notes())

    def remark(self, image_id: ImageId) -> str:
        """The key that the image has in its source."""
        name, inner = self._pair(image_id)
        return self.sources[name].remark(inner)

    def describe(self) -> str:
        """`0.95 of 3,490 images in /path, 0.05 of 128 tar shards in /other`."""
        total = sum(self.weights.values())
        return ", ".join(f"{self.weights[name] / total:.4g} of {source.describe()}" for name, source in self.sources.items())

    def count(self, limit: int | None = None) -> int:
        """The images of all sources together, at most `limit`."""
        total = 0
        for source in self.sources.values():
            if limit is None or total < limit:
                total += source.count(None if limit is None else limit - total)
        return total

    def size(self) -> int | None:
        """The images of all sources together; None where that of one is not known without reading it."""
        sizes = [source.size() for source in self.sources.values()]
        return sum(size for size in sizes if size is not None) if None not in sizes else None

    def fingerprint(self) -> str:
        """16 hex digits of the names and fingerprints of the sources."""
        return digest_of(*(f"{name} {source.fingerprint()}" for name, source in self.sources.items()))

    def nth(self, number: int) -> ImageId:
        """The sources one after another."""
        for name, source in self.sources.items():
            here = source.count(number + 1)
            if number < here:
                return name, source.nth(number)
            number -= here
        raise IndexError(number)

    def drawn(self, order: Order, position: int, attempt: int = 0) -> ImageId:
        """Draws the source by weight; within it, the next image of its own endless order. A stand-in is of the same source."""
        block, slot = divmod(position, BLOCK)
        slot = chance.permuted(slot, BLOCK, chance.key_of(order.seed, block))
        which = next(number for number, end in enumerate(self.ends) if slot < end)
        first = self.ends[which - 1] if which else 0
        own_position = block * (self.ends[which] - first) + slot - first
        own_order = order._replace(seed=chance.key_of(order.seed, which))
        return self.names[which], self.sources[self.names[which]].drawn(own_order, own_position, attempt)

    def key(self, image_id: ImageId) -> str:
        """`name/key`."""
        name, inner = self._pair(image_id)
        return f"{name}/{self.sources[name].key(inner)}"

    def read(self, image_id: ImageId) -> Encoded:
        """The image, still encoded, as its source reads it."""
        name, inner = self._pair(image_id)
        return self.sources[name].read(inner)

    def check(self) -> None:
        """Raises UserError with the problems of all sources; every one must hold a readable image."""
        problems: list[str] = []
        for name, source in self.sources.items():
            try:
                source.check()
            except UserError as error:
                problems.extend(f"{name}: {problem}" for problem in error.problems)
        if problems:
            raise UserError(*problems)

    def _pair(self, image_id: ImageId) -> tuple[str, ImageId]:
        assert isinstance(image_id, tuple)
        return image_id


def _by_size(sources: dict[str, Source]) -> dict[str, float]:
    """The number of images of each source; UserError with the names of those for which it is unknown."""
    sizes = {name: source.size() for name, source in sources.items()}
    unknown = [name for name, size in sizes.items() if size is None]
    if unknown:
        raise UserError(
            *(
                f"{name}: how many images it has is unknown until all its shards were read ({sources[name].describe()}); give weights "
                "for all sources, or put NAME_stats.json with the number of images as 'successes' beside each shard"
                for name in unknown
            )
        )
    known = {name: float(size) for name, size in sizes.items() if size is not None}
    least = sum(known.values()) / BLOCK
    return {name: max(size, least) for name, size in known.items()}


def _cumulated_shares(weights: list[float]) -> list[int]:
    """The ends of the sources' shares of BLOCK, rounded such that they add up (largest remainders)."""
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda number: shares[number] - exact[number])
    for number in by_remainder[: BLOCK - sum(shares)]:
        shares[number] += 1
    while 0 in shares:  # sources beside a far larger one still come
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] += 1
    return [sum(shares[: number + 1]) for number in range(len(shares))]
