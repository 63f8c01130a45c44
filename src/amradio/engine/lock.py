"""One process at a time for one folder or file: a lock that the kernel releases when its holder ends, however it ends."""

import contextlib
import errno
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from ..console import note
from ..errors import UserError, shown
from ..files import disk_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

IN_USE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
NAME = ".lock"
"""Of the file in a folder that is locked."""


class Lock:
    """Held from `take` to the end of the `with` block. The file exists while it is held, or after a kill; it is no sign by itself."""

    def __init__(self, file: Path, what: str):
        """file: what is locked with `flock`, made where it is missing; its folder must exist. what: is in use, for the message."""
        self.file, self.what = file, what
        self._handle: int | None = None
        self._is_locked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is None:
            return
        if self._is_locked:
            with contextlib.suppress(OSError):
                self.file.unlink()
        os.close(self._handle)
        self._handle = None

    def take(self) -> None:
        """Takes the lock unless it is held; raises UserError, which names the holder, where another process has it.

        Where the file system has no locks (some network disks, Windows), prints a warning and continues without.
        """
        while self._handle is None:
            with disk_errors(self.file.parent):
                handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if fcntl is None:
                    raise OSError(errno.ENOLCK, "no flock on this system")
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            os.pwrite(self._handle, json.dumps(about).encode(), 0)


def _is_named(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return shown(f"process {holder['pid']} on {holder['host']}, since {holder['since']}")
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
