"""The headers of one tar shard: where its pictures are, and what was passed over."""

import errno
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import UserError
from ..files import read_json
from .guard import open_file
from .names import ARCHIVES, OTHER_PICTURES, PassedOver, extension, is_hidden_path, is_picture, to_key

LARGEST_HEADER = 2**24
"""Bytes of what tar writes in front of a member: long names, attributes."""
ZEROS = 2**30
"""Bytes of zeros behind the end of an archive beyond which no second one is looked for."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")


class Sample(NamedTuple):
    """One picture of a shard."""

    key: str
    """The member's name without its last extension, as `names.to_key` writes it."""
    start: int
    """Byte of the shard at which the picture begins."""
    size: int
    """Bytes, as the header states them."""


class Shard(NamedTuple):
    """What the headers say."""

    samples: tuple[Sample, ...]
    problem: str
    """Why what follows the last sample cannot be read; empty where the shard is whole."""
    passed: PassedOver


def read_headers(path: str) -> Shard:
    """Where the pictures of a shard are, those of all archives in it where several were put one after another.

    Of members that differ only in their last extension the first counts; hard links stand for the pictures that they name.
    """
    members = _Members()
    problem = ""
    try:
        with open_file(path) as raw:
            file = _Bounded(raw)
            for archive in _archives(file, members.passed):
                for member in archive:
                    if member.size < 0 or archive.offset <= member.offset:  # a size that leads back: Python's reader would never end
                        raise tarfile.ReadError(f"{to_key(member.name)} states a size of {member.size} bytes")
                    members.take(member, file)
    except Exception as error:  # tarfile raises nearly anything on broken headers
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        problem = f"the shard is broken after {len(members.samples)} images ({reason})"
    if not members.samples and not problem and members.passed.counts:
        problem = members.passed.note("no image in it")[0]
    return Shard(tuple(members.samples.values()), problem, members.passed)


class _Bounded:
    """A file for `tarfile`, which allocates whatever a header states."""

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        if count > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        return self.file.read(count)

    def seek(self, position: int) -> int:
        if not 0 <= position <= 2**62:
            raise tarfile.ReadError(f"a header leads to byte {position:,}")
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()


def _archives(file: _Bounded, passed: PassedOver) -> Iterator[tarfile.TarFile]:
    """The archives of a file one after another; raises tarfile.ReadError where one has no end."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - its file is closed by the caller  # pyright: ignore
        except tarfile.ReadError:
            if start == 0:
                raise
            passed.add("data behind the end of the archive that is no tar", f"byte {start:,}")
            return
        yield archive
        if start and archive.offset == start:
            passed.add("data behind the end of the archive that is no tar", f"byte {start:,}")
            return
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE) or b"?"):  # tarfile takes a bad header for the end, which is a block of zeros
            raise tarfile.ReadError("it is cut off, or damaged")
        start = _next_data(file, archive.offset + tarfile.BLOCKSIZE)


def _next_data(file: _Bounded, position: int) -> int | None:
    """The first block from `position` on that is not all zeros; None where there is none, or none near."""
    least = position
    while position < min(file.size, least + ZEROS):
        try:
            position = os.lseek(file.file.fileno(), position, getattr(os, "SEEK_DATA", os.SEEK_SET))
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return None
        file.seek(position)
        piece = file.read(2**20)
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        if zeros < len(piece):
            return least + (position + zeros - least) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        if not piece:
            return None
        position += len(piece)
    return None


class _Members:
    """Takes the pictures among the members, and counts what it passes over."""

    def __init__(self) -> None:
        self.samples: dict[str, Sample] = {}
        self.passed = PassedOver()
        self._extents: dict[str, tuple[int, int]] = {}
        self._hold_pictures: dict[str, bool] = {}

    def take(self, member: tarfile.TarInfo, file: _Bounded) -> None:
        """A member, in the order of the archive."""
        if member.isdir():
            return
        if not is_picture(member.name):
            self._pass_other(member, file)
            return
        reason, extent = self._extent(member)
        if is_hidden_path(member.name):
            reason = "a hidden file"
        name = os.path.splitext(member.name)[0].removeprefix("./")
        if not reason and name in self.samples:
            reason = "a further image of a name that was read"
        if reason:
            self.passed.add(reason, member.name)
        else:
            self.samples[name] = Sample(to_key(name), *extent)
            self._extents[member.name] = extent

    def _extent(self, member: tarfile.TarInfo) -> tuple[str, tuple[int, int]]:
        """Why a picture's bytes are not in the archive as they are, or where they are."""
        if member.islnk():
            extent = self._extents.get(member.linkname)
            return ("", extent) if extent else ("a hard link to nothing before it", (0, 0))
        if member.issym():
            return "a symbolic link", (0, 0)
        if member.issparse():
            return "a file stored with holes", (0, 0)
        return ("", (member.offset_data, member.size)) if member.isreg() else ("a pipe or device", (0, 0))

    def _pass_other(self, member: tarfile.TarInfo, file: _Bounded) -> None:
        """Captions and metadata are expected beside pictures; pictures and archives that are not read are counted."""
        ending = extension(member.name)
        if is_hidden_path(member.name) or not member.isreg():
            return
        if ending in OTHER_PICTURES:
            self.passed.add(f"a picture of a format that is not read: {ending}", member.name)
        elif ending in ARCHIVES:
            self.passed.add("an archive within the archive", member.name)
        else:
            if ending not in self._hold_pictures:  # of each extension the first is looked into
                file.seek(member.offset_data)
                head = file.read(min(16, max(0, member.size)))
                self._hold_pictures[ending] = head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
            if self._hold_pictures[ending]:
                self.passed.add(f"a picture without an extension that says so: {ending or 'none'}", member.name)


def stated_count(shard: str) -> int:
    """The number of images as img2dataset stated it beside the shard; -1 where it did not, or the shard is too small for so many."""
    try:
        stated = read_json(Path(os.path.splitext(shard)[0] + "_stats.json"), largest=2**20)
        size = os.stat(shard).st_size
    except (UserError, OSError):
        return -1
    count = stated.get("successes")
    fits = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= size // (2 * tarfile.BLOCKSIZE)
    return count if fits else -1
