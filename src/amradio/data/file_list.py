"""Images that a text file names."""

import os
from pathlib import Path

from ..errors import UserError, shown
from ..files import read_lines
from .folder import Folder
from .guard import read_file
from .names import PassedOver
from .source import ImageId

LARGEST_LIST = 4 << 30
"""Bytes of a list: a hundred million paths of forty letters."""


class FileList(Folder):
    """The files that a text file names, one a line, in that order; keys are the lines as `names.to_key` writes them."""

    def __init__(self, file: Path) -> None:
        """Paths that are not absolute start at the folder of the text file; of a line that stands there twice the first counts.

        Raises UserError where it names nothing, or is no text file.
        """
        self.file, self.path = file, file.parent
        self.passed = PassedOver()
        names: dict[str, None] = {}
        for line in read_lines(file, LARGEST_LIST, file_names=True):
            name = self._name(line)
            if name in names:
                self.passed.add("a line that stands there already", name)
            elif name:
                names[name] = None
        if not names:
            raise UserError(f"{shown(file)}: it names no image; write the path of an image on each line")
        self.keep(list(names))

    def _name(self, line: str) -> str:
        """The path on a line, without the spaces around it where no file has them in its name; empty for a blank line."""
        stripped = line.strip()
        return line if stripped and line != stripped and os.path.lexists(self.path / line) else stripped

    def read(self, image_id: ImageId) -> bytes:
        """The bytes of the file; `~` is the home folder, unless a file has that name. Raises UnreadableError or OSError."""
        name = self.name(image_id)
        is_home = name.startswith("~") and not os.path.lexists(self.path / name)
        return read_file(self.path / (os.path.expanduser(name) if is_home else name))

    def describe(self) -> str:
        """`3,490 images named in /path/list.txt`."""
        return f"{self.count():,} image{'s' * (self.count() != 1)} named in {shown(self.file)}"

    def notes(self) -> tuple[str, ...]:
        """What the list names that is no image, counted."""
        return self.passed.note(self.file)
