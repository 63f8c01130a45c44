"""The one rule of names, for every reader: which files are pictures, what is passed over, and how a file's name becomes a key."""

import os
import re
import unicodedata
from collections.abc import Iterable

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Of pictures that are read; the last extension of a name decides, in upper or lower case."""
OTHER_PICTURES = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".exr", ".hdr", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".ico"),
    *(".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dcm"),
)
"""Of pictures that are not read; they are counted, so that nobody misses them."""
ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")
"""Of files that may hold pictures; a folder of pictures counts them and leaves them out."""
SYSTEM_FOLDERS = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information")
"""Folders that network storage, macOS and Windows put beside the user's own: thumbnails, resource forks, deleted files."""
NAMED = 3
"""Names that a note shows for each reason."""


def extension(name: str) -> str:
    """The last extension of a file's name with its dot, in lower case; empty where it has none."""
    return os.path.splitext(name)[1].lower()


def is_picture(name: str) -> bool:
    """Whether a file of this name (a path is allowed) is read as a picture, hidden or not."""
    return extension(name) in EXTENSIONS


def is_shard(name: str) -> bool:
    """Whether a file of this name is read as a tar shard, hidden or not."""
    return extension(name) == ".tar"


def is_hidden(name: str) -> bool:
    """Whether an entry of this name is nobody's data: it begins with a dot, or an operating system made it."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def is_hidden_path(path: str) -> bool:
    """Whether any part of a path within an archive is hidden; `./` in front does not count."""
    return any(is_hidden(part) for part in path.split("/") if part not in ("", ".", ".."))


def to_key(name: str) -> str:
    r"""A file's name as valid printable text, without loss: each byte that is not UTF-8, of a control character, a line or paragraph
    separator or a backslash becomes `\xHH`. All other names are their own keys. `from_key` is the inverse."""
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return "".join(_escaped(letter) if _is_odd(letter) else letter for letter in name)


def from_key(key: str) -> str:
    """The file's name that `to_key` made a key of, as `os.fsdecode` gives it."""
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), key.encode()))


def _is_odd(letter: str) -> bool:
    return letter == "\\" or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(letter: str) -> str:
    errors = "surrogateescape" if "\udc80" <= letter <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", errors))


class PassedOver:
    """Entries that a reader did not take: counted by reason, the first of each named."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """reason: in the singular, `a link to nothing`. name: of the entry. count: how many entries the name stands for."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        named = self.names.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(to_key(name))

    def merge(self, other: "PassedOver") -> None:
        """Adds what another reader passed over."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.names[reason] = [*self.names.get(reason, []), *other.names[reason]][:NAMED]

    def note(self, where: object) -> tuple[str, ...]:
        """`/data: passed over 3 entries: 2 x a hidden file (._a.jpg, ._b.jpg); 1 x a link to nothing (c.jpg)`; empty for none."""
        if not self.counts:
            return ()
        total = sum(self.counts.values())
        parts = [f"{count:,} x {reason} ({_listed(self.names[reason], count)})" for reason, count in self.counts.items()]
        return (f"{to_key(str(where))}: passed over {total:,} entr{'y' if total == 1 else 'ies'}: {'; '.join(parts)}",)


def _listed(names: Iterable[str], count: int) -> str:
    named = list(names)
    return ", ".join(named) + (", ..." if count > len(named) else "")
