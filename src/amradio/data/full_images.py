"""Whole images, each once and in a fixed order: for those who want features of all of them."""

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError, shown
from ..files import user_path
from .decode import decode
from .file_list import FileList
from .folder import Folder
from .guard import UnreadableError
from .loading_processes import load_items
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
    """Its place in the source's fixed order."""
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
        found = "this is no regular file" if os.path.exists(path) else "there is no such folder or file"
        raise UserError(f"{shown(path)}: {found}; give a folder of images, a text file with a path on each line, or tar shards")
    if is_picture(path.name):
        raise UserError(f"{shown(path)}: this is a picture; give its folder, or a text file with the path of a picture on each line")
    return FileList(path)


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


class _Chunks(Dataset):
    """Chunk number -> its images, each decoded at no less than `least` px of its short side."""

    def __init__(self, source: Source, total: int, least: int | None) -> None:
        self.source, self.total, self.least = source, total, least

    def __getitem__(self, chunk: int) -> list[WholeImage]:
        images: list[WholeImage] = []
        num_pixels = 0
        for number in range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.total)):
            is_deferred = num_pixels >= CHUNK_PIXELS
            images.append(WholeImage(number, "", None, "", True) if is_deferred else self.read(number))
            found = images[-1].image
            num_pixels += 0 if found is None else found.shape[1] * found.shape[2]
        return images

    def read(self, number: int) -> WholeImage:
        """One image."""
        place = self.source.nth(number)
        key = self.source.key(place)
        try:
            pixels = decode(self.source.read(place), self.least)
        except UnreadableError as error:
            return WholeImage(number, key, None, str(error))
        except OSError as error:
            return WholeImage(number, key, None, error.strerror or str(error))
        return WholeImage(number, key, torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")))


def whole_images(source: Source, chunks: Sequence[int], least: int | None, num_workers: int | None) -> Generator[WholeImage]:
    """The images of the chunks (`CHUNK` in a row each), in order; the same on any number of workers.

    least: px of the short side that a JPEG keeps at least where it is decoded at 1/2, 1/4 or 1/8 of its size; None for whole size.
    num_workers: processes that read; None for the cores that are there, less one.
    """
    reader = _Chunks(source, source.count(), least)
    for images in load_items(reader, chunks, num_workers):
        for fields in images:
            image = WholeImage(*fields)  # pinning makes lists of tuples
            yield reader.read(image.number) if image.is_deferred else image
