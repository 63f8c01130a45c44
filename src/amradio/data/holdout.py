"""A part of a source: what is held out of the training images, or the rest."""

from collections.abc import Hashable

from ..errors import UserError
from .decode import Encoded
from .source import ImageId, Order, Source


class HoldOut(Source):
    """Every k-th image of a source in its fixed order (held out), or all the others; in a folder of classes each class gives its share."""

    def __init__(self, source: Source, share: float, held_out: bool):
        """share: of the images that are held out, in (0, 0.5]; raises UserError where the source has no fixed order or too few images."""
        if type(source).drawn is not Source.drawn:
            raise UserError(f"data.hold_out: {source.describe()}: a stream cannot be cut in two; give data.val a source of its own")
        self.source, self.held_out = source, held_out
        self.every = max(2, round(1 / share))
        if source.count() < self.every:
            raise UserError(f"data.hold_out: {share} of {source.describe()} is not one image; hold out more, or give data.val a source")

    def describe(self) -> str:
        """`174 of 3,490 images in /path`."""
        return f"{self.count():,} of {self.source.describe()}"

    def count(self, limit: int | None = None) -> int:
        """Images of this part, at most `limit`, counted from those of the whole source."""
        total = self.source.count()
        held_out = total // self.every
        size = held_out if self.held_out else total - held_out
        return size if limit is None else min(limit, size)

    def nth(self, number: int) -> ImageId:
        """The id of its `number`-th image, from 0, in the fixed order."""
        held_out = number * self.every + self.every - 1
        return self.source.nth(held_out if self.held_out else number + number // (self.every - 1))

    def drawn(self, order: Order, position: int, attempt: int = 0) -> ImageId:
        """The id of an image of the random order that is in this part."""
        return self.nth(order.number_in_epoch(position, self.count(), attempt))

    def key(self, image_id: Hashable) -> str:
        """The key that the whole source gives the image."""
        return self.source.key(image_id)

    def read(self, image_id: Hashable) -> Encoded:
        """The encoded image, read by the whole source."""
        return self.source.read(image_id)

    def notes(self) -> tuple[str, ...]:
        """What the whole source has to tell."""
        return self.source.notes()

    def remark(self, image_id: Hashable) -> str:
        """What the whole source has to tell of an image."""
        return self.source.remark(image_id)
