"""One process at a time for one folder or file: a lock that the kernel releases when its holder ends, however it ends."""

import contextlib
import errno
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ..console import note
from ..errors import UserError, shown
from ..files import disk_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt: Any = None

IN_USE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
NAME = ".lock"
"""Of the file in a folder that is locked."""
LOCKED_BYTE = 1 << 20
"""What Windows locks, for readers too: a byte far behind the text, so that the holder's name can be read."""


class Lock:
    """Held from `take` to the end of the `with` block. The file exists while it is held, or after a kill; it is no sign by itself."""

    def __init__(self, file: Path, what: str):
        """file: what is locked, made where it is missing; its folder must exist. what: is in use, for the message."""
        self.file, self.what = file, what
        self._handle: int | None = None
        self._is_locked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is None:
            return
        if self._is_locked and fcntl is not None:
            self._remove()
        elif self._is_locked:
            _lock_byte(self._handle, msvcrt.LK_UNLCK)
        os.close(self._handle)
        if self._is_locked and fcntl is None:  # Windows removes no file that is open; where another process has it by now, it stays
            self._remove()
        self._handle = None

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink()

    def take(self) -> None:
        """Takes the lock unless it is held; raises UserError, which names the holder, where another process has it.

        Where the file system has no locks (some network disks), prints a warning and continues without.
        """
        while self._handle is None:
            with disk_errors(self.file.parent):
                handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(handle)
            except OSError as error:
                holder = _holder(handle) if error.errno in IN_USE else ""
                os.close(handle)
                if error.errno in IN_USE:
                    raise UserError(f"{self.what} is in use by {holder}; wait until it ends or stop it, or give another out") from None
                note(f"warning: {self.file.parent} is on a file system without locks ({error.strerror}); see that no other process uses it")
                return
            if _is_named(handle, self.file):  # else its holder removed it between `open` and `flock`
                self._handle, self._is_locked = handle, True
                self._sign()
            else:
                os.close(handle)

    def _sign(self) -> None:
        assert self._handle is not None
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        with contextlib.suppress(OSError):  # a full disk takes the text only, not the lock
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, json.dumps(about).encode())


def _lock(handle: int) -> None:
    """Locks an open file until it is closed, without waiting. Raises OSError, with one of `IN_USE` where another process has it locked."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        _lock_byte(handle, msvcrt.LK_NBLCK)
    else:
        raise OSError(errno.ENOLCK, "neither flock nor msvcrt on this system")


def _lock_byte(handle: int, mode: int) -> None:
    os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
    msvcrt.locking(handle, mode, 1)


def _is_named(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        holder = json.loads(os.read(handle, 4096))
        return shown(f"process {holder['pid']} on {holder['host']}, since {holder['since']}")
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
