"""A folder of image files, however deep."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..errors import UserError
from .source import Place, Source, SourceSettings

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class FolderSettings(SourceSettings):
    """JPEG, PNG, WebP, BMP and TIFF files in a folder and the folders in it; keys are relative paths."""

    type: Literal["folder"] = "folder"
    path: str
    """The folder; `~` is the home folder."""

    def build(self) -> "Folder":
        """Lists the files; raises UserError where there is no such folder or no image file in it."""
        return Folder(self.path)


class Folder(Source):
    """Image files of a folder in the order of their relative paths; the list is made once."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            found = "this is a file" if self.path.exists() else "there is no such folder"
            raise UserError(f"{self.path}: {found}; give the path of a folder of images")
        names = sorted(_image_files(self.path))
        if not names:
            raise UserError(f"{self.path}: there is no image in this folder or below it; looked for {', '.join(EXTENSIONS)}")
        self.keep(names)

    def keep(self, names: Sequence[str]) -> None:
        """Keeps the names as two tensors and not as a list of strings: workers share their memory, also with ten million names."""
        encoded = [os.fsencode(name) for name in names]
        self.letters = torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy())
        self.ends = torch.from_numpy(np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def describe(self) -> str:
        """`3,490 images in /path`."""
        return f"{self.count():,} image{'s' * (self.count() != 1)} in {self.path}"

    def count(self, limit: int | None = None) -> int:
        """How many files there are, at most `limit`."""
        return len(self.ends) if limit is None else min(limit, len(self.ends))

    def key(self, place: Place) -> str:
        """The path relative to the folder, with `/`."""
        assert isinstance(place, int)
        start = int(self.ends[place - 1]) if place else 0
        return os.fsdecode(self.letters[start : int(self.ends[place])].numpy().tobytes())

    def read(self, place: Place) -> bytes:
        """The bytes of the file. Raises OSError."""
        return (self.path / self.key(place)).read_bytes()


def first_image(root: Path) -> str | None:
    """The relative path of some image in a folder or below it; None where there is none."""
    return next(_image_files(root), None)


def _image_files(root: Path) -> Iterator[str]:
    """Relative paths of all image files; links to folders are followed, each folder is entered once."""
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            status = os.stat(root / below)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(root / below) as entries:
                for entry in entries:
                    if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("._"):
                        if entry.is_file():
                            yield below + entry.name
                    elif entry.is_dir():
                        waiting.append(below + entry.name + "/")
        except OSError as error:
            raise UserError(f"{root / below}: {error.strerror}; make it readable or take it away") from None
