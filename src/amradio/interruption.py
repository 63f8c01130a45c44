"""SIGINT (Ctrl-C) and SIGTERM: each is answered at once with one line, whatever the command is doing."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

BOUNCE = 0.2
"""Seconds within which a second signal counts as the first: torchrun forwards to its processes what the terminal has sent them already."""
CLEANUP = 10.0
"""Seconds that a stopped command may take to clean up before it is ended as it is."""
STOPPED_BY_SIGNAL = 128
"""A shell adds the number of the signal to it for the exit code."""
SIGNALS = {int(signal.SIGINT): "Ctrl-C", int(signal.SIGTERM): "SIGTERM"}


class StopAskedError(Exception):
    """Raised at a safe point inside a calibration or an evaluation when the run was asked to stop."""

    def __init__(self, on_all_processes: bool = False):
        """on_all_processes: all raise it at the same point."""
        super().__init__()
        self.on_all_processes = on_all_processes


class RunStoppedError(SystemExit):
    """Raised by `distill` when a signal stopped the run, after its checkpoint: a script that does not catch it ends with `code`."""

    def __init__(self, number: int):
        """number: of the signal; the exit code is 128 + number."""
        super().__init__(STOPPED_BY_SIGNAL + number)


class _Handling:
    """Handles SIGINT and SIGTERM while open, in the main thread; elsewhere it does nothing."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that came."""
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._at = number, time.monotonic()
            self._first(number)
        elif time.monotonic() - self._at > BOUNCE:
            self._again(number, frame)

    def _first(self, number: int) -> None:
        raise NotImplementedError

    def _again(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class Interruptible(_Handling):
    """The first signal prints one line and raises KeyboardInterrupt; a second one ends the process."""

    def __init__(self, note: str, ends_process: bool = False):
        """note: what the user needs to know when the command is stopped, e.g. that nothing was written.

        ends_process: the process ends after the command, and a signal that comes meanwhile ends it without a traceback.
        """
        super().__init__()
        self.note, self.ends_process = note, ends_process
        self._watchdog: threading.Timer | None = None

    @property
    def code(self) -> int:
        """The exit code of a command that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return STOPPED_BY_SIGNAL + (self.number or signal.SIGINT)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self.ends_process:
            for number in SIGNALS:
                signal.signal(number, self._again)  # the watchdog stays, too: a library may hang at exit
        elif self._watchdog is not None:
            self._watchdog.cancel()

    def _first(self, number: int) -> None:
        answer(f"Stopped ({SIGNALS[number]}). {self.note}".rstrip())
        self._watchdog = threading.Timer(CLEANUP, os._exit, [self.code])
        self._watchdog.daemon = True
        self._watchdog.start()
        raise KeyboardInterrupt

    def _again(self, number: int, frame: FrameType | None) -> None:
        del frame
        os._exit(STOPPED_BY_SIGNAL + number)


class Stop(_Handling):
    """The first signal sets `asked`, for a loop that stops at its next safe point; a second Ctrl-C interrupts at once."""

    def __init__(self, when: str = "after this step"):
        """when: the safe point, for the line that is printed."""
        super().__init__()
        self.when = when
        self.was_followed = False
        """Whether the loop stopped before its end."""

    @property
    def asked(self) -> bool:
        """Whether a signal asked for a stop."""
        return self.number is not None

    @property
    def name(self) -> str:
        """`Ctrl-C`, `SIGTERM`, or that another process of the run was asked."""
        return SIGNALS[self.number] if self.number is not None else "asked by another process"

    def check(self, agreed: Callable[[bool], bool] = bool) -> None:
        """Raises StopAskedError where a stop was asked for. agreed: whether any process was asked, where all of them call this."""
        if agreed(self.asked):
            raise StopAskedError

    def _first(self, number: int) -> None:
        answer(f"{SIGNALS[number]}: stopping {self.when}; Ctrl-C again to stop now")

    def _again(self, number: int, frame: FrameType | None) -> None:
        """A second SIGTERM is ignored: schedulers send it to each process and to the group."""
        if number == signal.SIGINT:
            before = self._before.get(number)
            if not callable(before):
                raise KeyboardInterrupt
            before(number, frame)


def answer(line: str) -> None:
    """Prints a line from within a signal handler; of several processes only the first one prints."""
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
    except RuntimeError:  # the signal came in the middle of another print
        os.write(2, f"{line}\n".encode())
