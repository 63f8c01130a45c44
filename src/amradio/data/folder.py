"""A folder of image files, however deep."""

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..config import UserPath
from ..errors import UserError, shown
from ..files import user_path
from .guard import read_file
from .names import EXTENSIONS, PassedOver, to_key
from .source import ImageId, Source, SourceSettings
from .walk import walk


class FolderSettings(SourceSettings):
    """JPEG, PNG, WebP, BMP, TIFF and GIF files in a folder and the folders in it; keys are relative paths."""

    type: Literal["folder"] = "folder"
    path: UserPath
    """The folder; `~` is the home folder."""

    def build(self) -> "Folder":
        """Lists the files; raises UserError where there is no such folder or no image file in it."""
        return Folder(self.path)


class Folder(Source):
    """Image files of a folder in the order of their relative paths; the list is made once."""

    def __init__(self, path: str) -> None:
        self.path = user_path(path)
        if not self.path.is_dir():
            reason = "this is a file" if self.path.exists() else "there is no such folder"
            raise UserError(f"{shown(self.path)}: {reason}; give the path of a folder of images")
        self.passed = PassedOver()
        names = sorted(walk(self.path, self.passed))
        if not names:
            raise UserError(
                f"{shown(self.path)}: there is no image in this folder or below it; looked for {', '.join(EXTENSIONS)}",
                *self.passed.note(self.path),
            )
        self.keep(names)

    def keep(self, names: Sequence[str]) -> None:
        """Keeps the names as two tensors and not as a list of strings: workers share their memory, also with ten million names."""
        import torch

        encoded = [os.fsencode(name) for name in names]
        self.letters = torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy())
        self.ends = torch.from_numpy(np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def describe(self) -> str:
        """`3,490 images in /path`."""
        return f"{self.count():,} image{'s' * (self.count() != 1)} in {shown(self.path)}"

    def notes(self) -> tuple[str, ...]:
        """What the folder holds that is no image, counted."""
        return self.passed.note(self.path)

    def count(self, limit: int | None = None) -> int:
        """How many files there are, at most `limit`."""
        return len(self.ends) if limit is None else min(limit, len(self.ends))

    def name(self, image_id: ImageId) -> str:
        """The path relative to the folder, as `os.fsdecode` gives it."""
        assert isinstance(image_id, int)
        start = int(self.ends[image_id - 1]) if image_id else 0
        return os.fsdecode(self.letters[start : int(self.ends[image_id])].numpy().tobytes())

    def key(self, image_id: ImageId) -> str:
        """The path relative to the folder, with `/`, as `names.to_key` writes it."""
        return to_key(self.name(image_id))

    def read(self, image_id: ImageId) -> bytes:
        """The bytes of the file. Raises UnreadableError or OSError."""
        return read_file(self.path / self.name(image_id))
