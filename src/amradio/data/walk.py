"""The files below a folder, by the one rule of `names`: odd entries are passed over and counted, never a reason to refuse the rest."""

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UserError
from .names import ARCHIVES, OTHER_PICTURES, PassedOver, extension, is_hidden, is_picture, to_key


def walk(root: Path, passed: PassedOver, wanted: Callable[[str], bool] = is_picture) -> Iterator[str]:
    """Relative paths, with `/`, of all files below `root` whose name is `wanted`; links are followed, each folder is entered once.

    What an entry is (file, folder, link to one) is decided before its name is looked at. Real folders come before linked ones, so that
    which of two paths of one folder is taken does not depend on the disk. passed: takes what is left out. Raises UserError where `root`
    itself cannot be read.
    """
    entered = _above(root)
    real, linked = deque([""]), deque[str]()
    while real or linked:
        below = real.popleft() if real else linked.popleft()
        try:
            status = os.stat(root / below)
            if (status.st_dev, status.st_ino) in entered:
                passed.add("a link to a folder that is read already or contains it", below.rstrip("/"))
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(root / below) as listing:
                folders: list[tuple[bool, str]] = []
                for entry in listing:  # never held as a list: a folder may have ten million
                    kind = _kind(entry)
                    if kind == "folder" and not is_hidden(entry.name):
                        folders.append((entry.is_symlink(), below + entry.name + "/"))
                    elif reason := _refused(entry.name, kind, wanted):
                        passed.add(reason, below + entry.name)
                    elif kind == "file" and wanted(entry.name):
                        yield below + entry.name
        except OSError as error:
            if not below:
                raise UserError(f"{to_key(str(root))}: {error.strerror}; make it readable, or give another folder") from None
            passed.add(f"a folder that cannot be read ({error.strerror})", below.rstrip("/"))
            continue
        for is_link, folder in sorted(folders):
            (linked if is_link else real).append(folder)


def _above(root: Path) -> set[tuple[int, int]]:
    """The folders that contain `root`: a link to one of them would lead out of it and back."""
    folders = set()
    for folder in Path(os.path.realpath(root)).parents:
        try:
            status = os.stat(folder)
        except OSError:
            continue
        folders.add((status.st_dev, status.st_ino))
    return folders


def _kind(entry: os.DirEntry[str]) -> str:
    """`file`, `folder`, or what else it is: a reason to pass it over."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        if not entry.is_symlink():
            return special(entry.stat(follow_symlinks=False).st_mode)
        return special(os.stat(entry.path).st_mode)
    except FileNotFoundError:
        return "a link to nothing"
    except OSError as error:
        return "a link in a circle" if error.errno == errno.ELOOP else f"an entry that cannot be read ({error.strerror})"


def special(mode: int) -> str:
    """What a mode of `os.stat` that is no file's is."""
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "no regular file")


def _refused(name: str, kind: str, wanted: Callable[[str], bool]) -> str:
    """Why an entry is passed over and counted; empty where it is taken, or is nothing that anybody misses."""
    if kind == "folder":
        return "a hidden folder"
    if kind != "file":
        # A link in a circle may stand for a folder, whatever its name.
        return kind if wanted(name) or kind.startswith(("a link", "an entry")) else ""
    if wanted(name):
        return "a hidden file" if is_hidden(name) else ""
    if is_hidden(name):
        return ""
    ending = extension(name)
    if ending in OTHER_PICTURES:
        return f"a picture of a format that is not read: {ending}"
    return "an archive" if ending in ARCHIVES else ""
