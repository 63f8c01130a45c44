r"""Paths and texts of the user's: one function for every path, one codec for every text file.

Relative paths start at the working folder (those in a list of images at the folder of the list). `~` is the home folder.
"""

import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from .errors import UserError, shown

LONGEST_NAME = 255
"""Bytes of one name in a path, on every usual file system."""
LONGEST_PATH = 3840
"""Bytes of a path: Linux takes 4,095, and files with names of their own are written below it."""
LARGEST_TEXT = 256 << 20
"""Bytes of a text file that is read whole where the caller gives no bound."""
LARGEST_ANNOTATIONS = 4 << 30
"""Bytes of an annotation file (LVIS has 1.1 GB)."""
MOST_EXPANDED = 1_000_000
"""Paths that braces may stand for (DataComp-1B has 140,000 shards)."""
_BOMS = ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def user_path(text: str | os.PathLike[str], where: str = "") -> Path:
    """A path that a user gave, as it is used: `~` and `~user` expanded.

    text: relative to the working folder, or absolute. where: the key or option that gave it, for messages.
    Raises UserError where no file of that name can be: empty, a NUL byte, a URL, an unknown user, a name or a path that is too long,
    characters that the file system cannot write.
    """
    text = os.fspath(text)
    problem = path_problem(text)
    if problem:
        raise UserError(f"{where}: {problem}" if where else problem)
    return Path(os.path.expanduser(text))


def path_problem(text: str) -> str | None:
    """Why `text` can be no path, in one sentence, or None."""
    if not text.strip():
        return "the path is empty; give the path of a file or folder"
    short = shown(text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}")
    if "\0" in text:
        return f"{short}: a path cannot contain a NUL byte; give the path of a file or folder"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return f"{short}: this is a URL; files are read from a local or mounted disk: download or mount it and give the path"
    try:
        expanded = os.fsencode(os.path.expanduser(text))
    except UnicodeEncodeError:
        return f"{short}: the file system cannot write these characters (a lone surrogate); give the path as it is on disk"
    if text.startswith("~") and expanded.startswith(b"~"):
        user = shown(text.partition("/")[0][:60])
        return f"{short}: there is no user {user}; write ./{user} for a file or folder of that name"
    longest = max(expanded.split(b"/"), key=len)
    if len(longest) > LONGEST_NAME:
        return f"{short}: a name in this path has {len(longest):,} bytes; file systems take {LONGEST_NAME}"
    if len(expanded) > LONGEST_PATH:
        return f"{short}: this path has {len(expanded):,} bytes; at most {LONGEST_PATH:,} are taken"
    return None


def is_path(text: str) -> bool:
    """Whether a text that may also be a name (of a model on the hub) is written as a path, or is there on disk."""
    return path_problem(text) is None and (text.startswith(("/", "./", "../", "~")) or text in (".", "..") or os.path.lexists(text))


def local_path(text: str) -> Path | None:
    """The path, where a text that may also be a name (of a model on the hub) names something on disk; else None. Raises nothing."""
    if path_problem(text) is not None:
        return None
    expanded = os.path.expanduser(text)
    return Path(expanded) if os.path.lexists(expanded) else None


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The content of a text file: UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one.

    largest: bytes that are read at most. Line ends stay as they are. Raises UserError, which names the file and the first byte that is
    not text, where it is in another encoding, is no regular file (a folder, a pipe, a device), too large, or cannot be read.
    """
    data = read_bytes(path, largest)
    encoding = next((encoding for mark, encoding in _BOMS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.start + 1:,} (0x{data[error.start]:02x}, line {line:,}) is not {encoding.removesuffix('-sig').upper()}"
        raise UserError(f"{shown(path)}: {byte}; save the file as UTF-8, or give a text file") from None
    if "\0" in text:
        number = data.find(b"\0") + 1
        raise UserError(f"{shown(path)}: byte {number:,} is NUL, so this is no text in UTF-8; save the file as UTF-8, or give a text file")
    return text


def read_bytes(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file of at most `largest` bytes; UserError where it is none, is larger, or cannot be read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{shown(path)}: this is {_kind_of(status.st_mode)}; give a file")
        if status.st_size > largest:
            raise UserError(f"{shown(path)}: this file has {status.st_size:,} bytes; at most {largest:,} are read here")
        with open(path, "rb") as file:
            data = file.read(status.st_size + 1)  # a buffer of what is asked for is allocated first
            if len(data) > status.st_size:  # it has grown since, or is a file of the system, which states a size of 0
                data += file.read(largest + 1 - len(data))
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: there is no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror or error}); check the path and its permissions") from None
    if len(data) > largest:
        raise UserError(f"{shown(path)}: this file has more than {largest:,} bytes; at most {largest:,} are read here")
    return data


def unusable(path: Path, wanted: Literal["file", "folder"] = "file") -> str | None:
    """Why no regular file (or no folder) is at `path`, as it stands behind its name: `is missing`, `is a folder`; None where one is.

    Never raises: a folder above it may be closed, its name too long, a link may go in a circle.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "is a link to nothing" if os.path.islink(path) else "is missing"
    except (OSError, ValueError) as error:
        return f"cannot be reached ({getattr(error, 'strerror', None) or error})"
    is_right = stat.S_ISREG(mode) if wanted == "file" else stat.S_ISDIR(mode)
    return None if is_right else f"is {'a file' if stat.S_ISREG(mode) else _kind_of(mode)}"


def _kind_of(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
    return next((kind for test, kind in kinds if test(mode)), "a device")


def read_lines(path: Path, largest: int = LARGEST_TEXT, file_names: bool = False) -> list[str]:
    r"""The lines of a text file, which end with \n or \r\n and nothing else (a name may contain U+2028 or a form feed).

    file_names: the lines name files, so that bytes which are not UTF-8 are kept as `os.fsdecode` does, and open the right file.
    Raises UserError as `read_text` does.
    """
    if file_names:
        data = read_bytes(path, largest)
        if not any(data.startswith(mark) for mark, _ in _BOMS) and b"\0" not in data:
            text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
            return _lines(text)
    return _lines(read_text(path, largest))


def _lines(text: str) -> list[str]:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: Path, kind: type = dict, largest: int = LARGEST_TEXT) -> Any:
    """The content of a JSON file, whose top is a `kind` (dict or list).

    Raises UserError, which names the file and the line, where it is damaged, cut off, empty, a git-lfs pointer, too deep, or another kind.
    """
    text = read_text(path, largest)
    if text.startswith("version https://git-lfs"):
        raise UserError(f"{shown(path)}: this is a git-lfs pointer and not the file; run `git lfs pull` where it came from")
    if not text.strip():
        raise UserError(f"{shown(path)}: the file is empty; copy or download it again")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{shown(path)}: line {error.lineno}: not valid JSON ({error.msg}); copy or download it again") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting beyond Python's stack
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"
        raise UserError(f"{shown(path)}: not usable JSON ({reason}); copy or download it again") from None
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list"}
        raise UserError(
            f"{shown(path)}: {names.get(kind, kind.__name__)} is expected, found {names.get(type(value), type(value).__name__)}"
        )
    return value


def expand_braces(pattern: str, where: str = "") -> list[str]:
    """The texts that a pattern with braces stands for, as a shell and webdataset expand it: `{00..99}.tar`, `{a,b}.tar`.

    Raises UserError, before anything is expanded, where braces do not match or stand for more than `MOST_EXPANDED` texts.
    """
    from braceexpand import braceexpand

    prefix = f"{where}: " if where else ""
    short = shown(pattern if len(pattern) <= 100 else f"{pattern[:100]}...")
    if len(pattern) > LONGEST_PATH:
        raise UserError(f"{prefix}{short}: this path has {len(pattern):,} characters; at most {LONGEST_PATH:,} are taken")
    try:
        count = _count(pattern)
    except ValueError:
        raise UserError(f"{prefix}{short}: the braces do not match; write '/data/{{00000..00099}}.tar' or '/data/{{a,b}}.tar'") from None
    if count > MOST_EXPANDED:
        number = f"{count:,}" if count < 10**15 else f"10^{math.log10(count):.0f}"
        raise UserError(f"{prefix}{short}: the braces stand for {number} paths; at most {MOST_EXPANDED:,} are taken. Is it a misprint?")
    return list(braceexpand(pattern))


_RANGE = re.compile(r"(-?\d{1,30})\.\.(-?\d{1,30})(?:\.\.(-?\d{1,30}))?|([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d{1,30}))?")


def _count(pattern: str) -> int:
    """The number of texts that a pattern stands for; ValueError where braces do not match."""
    totals = [[1, 0]]  # of each open brace: of the alternative that is being read, and of those before it
    starts = [0]
    commas = [False]
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
        elif character == "{":
            totals.append([1, 0])
            starts.append(position + 1)
            commas.append(False)
        elif character == "," and len(totals) > 1:
            totals[-1] = [1, sum(totals[-1])]
            commas[-1] = True
        elif character == "}":
            if len(totals) == 1:
                raise ValueError(pattern)
            within = sum(totals.pop())
            inside, listed = pattern[starts.pop() : position], commas.pop()
            span = None if listed else _RANGE.fullmatch(inside)
            totals[-1][0] *= _span(span) if span else within
        position += 1
    if len(totals) > 1:
        raise ValueError(pattern)
    return totals[0][0]


def _span(match: re.Match[str]) -> int:
    first, last, step, letter, last_letter, letter_step = match.groups()
    low, high = (int(first), int(last)) if first is not None else (ord(letter), ord(last_letter))
    return abs(high - low) // max(1, abs(int(step or letter_step or 1))) + 1


@contextmanager
def gone_on_failure(folder: Path) -> Iterator[None]:
    """Removes a half-written folder when what is inside fails: on a full disk its space is needed."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def to_disk(path: Path) -> None:
    """Waits until a file or folder is on the disk; raises OSError where the disk refuses. Windows has no way to ask it of a folder."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def aside_of(path: Path) -> Path:
    """The hidden file beside `path` in which its content is written before it gets its name."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`: when the block ends it is on the disk and renamed to `path`; where it fails, it is removed."""
    unfinished = aside_of(path)
    try:
        yield unfinished
        to_disk(unfinished)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def write_aside(path: Path, content: bytes) -> None:
    """Writes a small file aside, then renames it; a failure leaves nothing behind."""
    with aside(path) as unfinished:
        unfinished.write_bytes(content)


AGAIN = "then run the same command again"
WRITING_HINTS = {
    errno.ENOSPC: f"the disk is full: free some space, {AGAIN}",
    errno.EDQUOT: f"your quota on this disk is used up: delete some files or ask for more, {AGAIN}",
    errno.EFBIG: f"a file would be larger than this file system or `ulimit -f` allows: raise the limit, {AGAIN}",
    errno.EACCES: f"you may not write there: change its permissions, or give a folder of your own, {AGAIN}",
    errno.EPERM: f"you may not write there: change its permissions, or give a folder of your own, {AGAIN}",
    errno.EROFS: "this file system is mounted read-only: give a folder on another one",
    errno.ENOENT: f"a folder of this path is not there (any more): see whether its disk is mounted, {AGAIN}",
    errno.ENOTDIR: "a part of this path is a file and not a folder: give another path",
    errno.EISDIR: "a folder is in the place of a file: move it away, or give another path",
    errno.ENAMETOOLONG: "a name in this path is too long for the file system: give a shorter path",
    errno.EIO: "the disk reports an error: look at it before anything else is written to it",
}
"""What to do about an error in writing, by its number."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what the system answers to writing below `folder` into a UserError that says what to do about it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason, number = getattr(error, "strerror", None) or str(error), getattr(error, "errno", None)
        if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):  # as safetensors reports it
            number = int(match[1])
            reason = os.strerror(number)
        hint = WRITING_HINTS.get(number or 0, f"look at this path and its disk, {AGAIN}")
        raise UserError(f"{folder}: cannot write ({reason}); {hint}") from None
    except RuntimeError as error:  # torch.save reports a short write this way
        if "write" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise UserError(f"{folder}: cannot write ({error}); {WRITING_HINTS[errno.ENOSPC]}") from None
