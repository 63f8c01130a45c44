"""Images in a fixed order, as evaluations read them."""

import hashlib
from collections.abc import Iterator

from ..data.guard import Encoded


class ImageSet:
    """Images in a fixed order. A kind of data writes these methods; it is sent to workers, so it holds no open files."""

    def describe(self) -> str:
        """`1,743 images of 100 classes in /path`."""
        raise NotImplementedError

    def __len__(self) -> int:
        """How many images there are."""
        raise NotImplementedError

    def key(self, index: int) -> str:
        """The name of an image, unique within the set."""
        raise NotImplementedError

    def read(self, index: int) -> Encoded:
        """The image, still encoded or uint8 [H, W, 3]. Raises UnreadableError or OSError."""
        raise NotImplementedError

    def notes(self) -> tuple[str, ...]:
        """What was passed over when the images were listed, one sentence a place; mostly empty."""
        return ()

    def identity(self) -> Iterator[str]:
        """What the fingerprint is made of: all that makes this set another one (keys, labels, sizes of files)."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over `identity`."""
        digest = hashlib.sha256()
        for part in self.identity():
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()[:16]
