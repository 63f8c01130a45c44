"""Images that a text file names."""

from pathlib import Path

from ..errors import UserError
from .folder import Folder


class FileList(Folder):
    """The files that a text file names, one a line, in that order; keys are the lines as they stand there."""

    def __init__(self, file: Path) -> None:
        """Paths that are not absolute start at the folder of the text file. Raises UserError where it names nothing, or a file twice."""
        self.file, self.path = file, file.parent
        try:
            lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; give a text file with the path of an image on each line") from None
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise UserError(f"{file}: it names no image; write the path of an image on each line")
        if "\0" in "".join(names):
            raise UserError(f"{file}: this is not a text file; give one with the path of an image on each line, or a folder, or tar shards")
        twice = len(names) - len(set(names))
        if twice:
            seen: set[str] = set()
            first = next(name for name in names if name in seen or seen.add(name))
            raise UserError(f"{file}: {twice} lines stand there twice, first {first}; name each image once")
        self.keep(names)

    def describe(self) -> str:
        """`3,490 images named in /path/list.txt`."""
        return f"{self.count():,} image{'s' * (self.count() != 1)} named in {self.file}"
