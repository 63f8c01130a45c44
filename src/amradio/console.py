"""A console that goes away (a closed pipe, a terminal that hangs up) ends no command."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class Outliving:
    """A text stream that becomes silent where writing to it fails; everything else is the stream's own."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes as far as there is anyone to read."""
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            self._silence()
            return len(text)

    def writelines(self, lines: Any) -> None:
        """`write` of each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes as far as there is anyone to read."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        """What is buffered and what follows goes nowhere, also when the interpreter flushes at its end."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def outlive_console() -> Iterator[None]:
    """Makes stdout and stderr silent where they fail, and a hang-up of the terminal (SIGHUP) ignored, as nohup does."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (each if each is None or isinstance(each, Outliving) else Outliving(each) for each in before)
    hangs_up = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    if hangs_up:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # ignored rather than handled: processes that are started inherit it
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
        if hangs_up:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)


def open_standard_streams() -> None:
    """Opens those of the descriptors 0, 1 and 2 that are closed (`>&-`), so that no file of ours is given their number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
