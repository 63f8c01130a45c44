"""Whole images, each once and in a fixed order: for those who want features of all of them."""

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, shown
from ..files import user_path
from .decode import decode
from .file_list import FileList
from .folder import Folder
from .guard import Encoded, UnreadableError
from .loading_processes import read_each
from .names import ARCHIVES, PassedOver, extension, is_hidden, is_picture, is_shard, to_key
from .source import Source, SourceSettings
from .walk import walk
from .webdataset import WebDataset

CHUNK = 8
"""Images that a worker reads at a time."""
CHUNK_PIXELS = 2**27
"""Pixels (400 MB) of a chunk beyond which its other images are decoded one at a time when their turn comes."""
IN_ORDER = 1
"""shuffle_buffer and lanes of shards that are read one after another."""


class WholeImage(NamedTuple):
    """One image of a source."""

    number: int
    """Its number in the source's fixed order."""
    key: str
    image: Tensor | None
    """uint8 [3, H, W] RGB, upright; None where it cannot be read."""
    reason: str = ""
    """Why it cannot be read."""
    is_deferred: bool = False
    """It was not decoded yet, as those before it in its chunk have CHUNK_PIXELS already."""


def open_images(images: str | Path | SourceSettings) -> Source:
    """A folder of images, a text file with a path on each line, tar shards (a folder of them, a .tar, `{00..99}.tar`, `*.tar`), or a
    source as recipes have it. Raises UserError where there is no image."""
    if isinstance(images, SourceSettings):
        return images.build()
    if any(sign in str(images) for sign in ("*", "{", "::", "?")) and not os.path.lexists(images):
        return WebDataset(str(images), IN_ORDER, IN_ORDER, reads_statistics=False)
    path = user_path(images, "images")
    if path.is_dir():
        return _open_folder(path)
    if is_shard(path.name) or extension(path.name) in ARCHIVES:
        return WebDataset(str(path), IN_ORDER, IN_ORDER, reads_statistics=False)
    if not path.is_file():
        reason = "this is no regular file" if os.path.exists(path) else "there is no such folder or file"
        raise UserError(f"{shown(path)}: {reason}; give a folder of images, a text file with a path on each line, or tar shards")
    if is_picture(path.name):
        raise UserError(f"{shown(path)}: this is a picture; give its folder, or a text file with the path of a picture on each line")
    return _listed(path)


def _listed(path: Path) -> FileList:
    """The pictures that a text file names; raises UserError where the first of them is a shard."""
    files = FileList(path)
    first = files.key(files.nth(0))
    if is_shard(first):
        raise UserError(
            f"{shown(path)}: it names tar shards ({shown(first)}); such a list names pictures: give the shards as 'FOLDER/*.tar', or as "
            "'FOLDER/{00000..00099}.tar'"
        )
    return files


def _open_folder(path: Path) -> Source:
    """Shards where a folder has some and no image, also deeper in it; else images."""
    image = next(walk(path, PassedOver()), None)
    if image is None and next(walk(path, PassedOver(), is_shard), None) is not None:
        return WebDataset(str(path), IN_ORDER, IN_ORDER, reads_statistics=False)
    if image is not None and any(is_shard(file.name) and not is_hidden(file.name) and file.is_file() for file in path.iterdir()):
        raise UserError(
            f"{shown(path)}: there are tar shards in it, and images ({to_key(image)}); for the shards give '{shown(path)}/*.tar', for the "
            "images a folder that has only these"
        )
    return Folder(str(path))


class Pictures(Protocol):
    """Pictures by number, in a fixed order; sent to workers, so it holds no open files."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def key(self, number: int, /) -> str:
        """The name of a picture."""
        ...

    def read(self, number: int, /) -> Encoded:
        """The picture, still encoded or uint8 [H, W, 3]. Raises UnreadableError or OSError."""
        ...


class _InOrder:
    """A source's pictures by their number in its fixed order."""

    def __init__(self, source: Source) -> None:
        self.source, self.total = source, source.count()

    def __len__(self) -> int:
        return self.total

    def key(self, number: int) -> str:
        return self.source.key(self.source.nth(number))

    def read(self, number: int) -> Encoded:
        return self.source.read(self.source.nth(number))


class _Reader:
    """Pictures, decoded at no less than `least` px of their short side and averaged to at most `most` pixels."""

    def __init__(self, pictures: Pictures, least: int | None, most: int | None) -> None:
        self.pictures, self.least, self.most = pictures, least, most

    def chunk(self, chunk: int) -> list[WholeImage]:
        """The images of a chunk; those beyond CHUNK_PIXELS are deferred."""
        images: list[WholeImage] = []
        num_pixels = 0
        for number in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.pictures))):
            is_deferred = num_pixels >= CHUNK_PIXELS
            images.append(WholeImage(number, "", None, "", True) if is_deferred else self.one(number))
            pixels = images[-1].image
            num_pixels += 0 if pixels is None else pixels.shape[1] * pixels.shape[2]
        return images

    def one(self, number: int) -> WholeImage:
        """One image, or why it cannot be read."""
        key = self.pictures.key(number)
        try:
            pixels = decode(self.pictures.read(number), self.least, self.most)
        except UnreadableError as error:
            return WholeImage(number, key, None, str(error))
        except OSError as error:
            return WholeImage(number, key, None, error.strerror or str(error))
        return WholeImage(number, key, torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")))


def num_chunks(count: int) -> int:
    """Chunks of `CHUNK` images that `count` images make."""
    return -(-count // CHUNK)


def load_images(
    pictures: Pictures,
    chunks: Sequence[int] | None = None,
    *,
    least: int | None = None,
    most: int | None = None,
    num_workers: int | None = 0,
) -> Generator[WholeImage]:
    """Whole images in order, the same on any number of workers; one that cannot be read comes with its reason.

    Args:
        pictures: what is read.
        chunks: numbers of chunks, `CHUNK` images in a row each; None for all.
        least: px of the short side that a JPEG keeps at least where it is decoded at 1/2, 1/4 or 1/8 of its size; None for whole size.
        most: pixels to which a larger picture is averaged; None for no bound.
        num_workers: processes that read; None for the cores that are there, less one.
    """
    reader = _Reader(pictures, least, most)
    for images in read_each(reader.chunk, range(num_chunks(len(pictures))) if chunks is None else chunks, num_workers):
        for fields in images:
            image = WholeImage(*fields)  # pinning makes lists of tuples
            yield reader.one(image.number) if image.is_deferred else image


def whole_images(source: Source, chunks: Sequence[int], least: int | None, num_workers: int | None) -> Generator[WholeImage]:
    """The images of some chunks of a source: see `load_images`."""
    return load_images(_InOrder(source), chunks, least=least, num_workers=num_workers)
