"""Whole images, each once and in a fixed order: for those who want features of all of them."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from .decode import UnreadableError, decode
from .file_list import FileList
from .folder import Folder, first_image
from .loader import load_items
from .source import Source, SourceSettings
from .webdataset import WebDataset

CHUNK = 8
"""Images that a worker reads at a time."""
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


def open_images(images: str | Path | SourceSettings) -> Source:
    """A folder of images, a text file with a path on each line, tar shards (a folder of them, a .tar, `{00..99}.tar`, `*.tar`), or a
    source as recipes have it. Raises UserError where there is no image."""
    if isinstance(images, SourceSettings):
        return images.build()
    path = Path(images).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if path.is_file() and ".tar" not in path.suffixes and path.suffix != ".tgz":
        return FileList(path)
    if any(sign in str(images) for sign in ("*", "{", "::", "?", ".tar")):
        return WebDataset(str(images), IN_ORDER, IN_ORDER)
    raise UserError(
        f"{path}: there is no such folder or file; give a folder of images, a text file with a path on each line, or tar shards"
    )


def _open_folder(path: Path) -> Source:
    shards = any(path.glob("*.tar"))
    image = first_image(path)
    if shards and image is not None:
        raise UserError(f"{path}: there are tar shards in it, and images ({image}); for the shards give '{path}/*.tar'")
    return WebDataset(str(path), IN_ORDER, IN_ORDER) if shards else Folder(str(path))


class _Chunks(Dataset):
    """Chunk number -> its images, each decoded at no less than `least` px of its short side."""

    def __init__(self, source: Source, total: int, least: int | None) -> None:
        self.source, self.total, self.least = source, total, least

    def __getitem__(self, chunk: int) -> list[WholeImage]:
        return [self._read(number) for number in range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.total))]

    def _read(self, number: int) -> WholeImage:
        place = self.source.nth(number)
        key = self.source.key(place)
        try:
            pixels = decode(self.source.read(place), self.least)
        except UnreadableError as error:
            return WholeImage(number, key, None, str(error))
        except OSError as error:
            return WholeImage(number, key, None, error.strerror or str(error))
        return WholeImage(number, key, torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)).copy()))


def whole_images(source: Source, chunks: Sequence[int], least: int | None, num_workers: int | None) -> Generator[WholeImage]:
    """The images of the chunks (`CHUNK` in a row each), in order; the same on any number of workers.

    least: px of the short side that a JPEG keeps at least where it is decoded at 1/2, 1/4 or 1/8 of its size; None for whole size.
    num_workers: processes that read; None for the cores that are there, less one.
    """
    for images in load_items(_Chunks(source, source.count(), least), chunks, num_workers):
        for image in images:
            yield WholeImage(*image)  # pinning makes lists of tuples
