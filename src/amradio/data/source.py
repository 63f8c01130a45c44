"""What every source of images is: images by id, in a fixed order and in an endless shuffled one."""

import hashlib
from collections.abc import Hashable
from typing import NamedTuple

from ..config import Settings
from ..errors import UserError
from . import stateless_random as chance
from .decode import Encoded, UnreadableError, decode

PHASES = 8
"""Steps after which a source may return to the same shard; a multiple of the usual numbers of workers."""

MOST_NAMES = 10_000
"""Names of images that a fingerprint is made of."""

ImageId = Hashable
"""Where a picture lies within its source: a number, or what the source chose."""


def digest_of(*words: str) -> str:
    """16 hex digits of SHA-256."""
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Order(NamedTuple):
    """What an endless shuffled order depends on: nothing of how many processes or workers read it."""

    seed: int
    batch_size: int
    """Of the whole step, all processes together."""

    def number_in_epoch(self, position: int, count: int, attempt: int) -> int:
        """The number at `position` of an order that goes through `range(count)` again and again, each time in another order."""
        epoch, number = divmod(position + attempt * PHASES * self.batch_size, count)
        return chance.permuted(number, count, chance.key_of(self.seed, epoch))


class Source:
    """Images for training (`drawn`) and for validation (`nth`); a source is sent to workers, so it holds no open files."""

    def describe(self) -> str:
        """`3,490 images in /path`, without reading a picture."""
        raise NotImplementedError

    def count(self, limit: int | None = None) -> int:
        """How many images there are, counted no further than `limit`."""
        raise NotImplementedError

    def nth(self, number: int) -> ImageId:
        """The id of image `number` < count() in the fixed order."""
        return number

    def drawn(self, order: Order, position: int, attempt: int = 0) -> ImageId:
        """The id at `position` >= 0 of the endless shuffled order; attempt k > 0 is what stands in for k unreadable ones."""
        return order.number_in_epoch(position, self.count(), attempt)

    def key(self, image_id: ImageId) -> str:
        """The name of a picture, unique within the source."""
        raise NotImplementedError

    def read(self, image_id: ImageId) -> Encoded:
        """The picture, still encoded. Raises UnreadableError or OSError."""
        raise NotImplementedError

    def size(self) -> int | None:
        """How many images there are where that is known without reading any file of images; None where it is not."""
        return self.count()

    def fingerprint(self) -> str:
        """16 hex digits of how many images there are and what they are called (10,000 of them, evenly spread), not of their content."""
        count = self.count()
        numbers = range(count) if count <= MOST_NAMES else (number * count // MOST_NAMES for number in range(MOST_NAMES))
        return digest_of(str(count), *(self.key(self.nth(number)) for number in numbers))

    def notes(self) -> tuple[str, ...]:
        """What was passed over when the images were listed, one sentence a reason, with numbers and names; mostly empty."""
        return ()

    def remark(self, image_id: ImageId) -> str:
        """What is to be told when the image at `image_id` is read, besides that image; mostly empty. Raises nothing."""
        del image_id
        return ""

    def check(self) -> None:
        """Raises UserError where not one picture can be read."""
        problems: list[str] = []
        while self.count(len(problems) + 1) > len(problems):
            image_id = self.nth(len(problems))
            try:
                decode(self.read(image_id))
                return
            except (UnreadableError, OSError) as error:
                problems.append(f"{self.key(image_id)}: {error}")
        if not problems:
            raise UserError(f"{self.describe()}: there is no image in it; name a source that holds images")
        raise UserError(f"{self.describe()}: not one can be read; the first: {'; '.join(problems[:3])}")


class SourceSettings(Settings):
    """What is common to all sources; each kind adds `type`, its own keys and `build`."""

    def build(self) -> Source:
        """Opens the source; raises UserError where it is missing or holds no images."""
        raise NotImplementedError
