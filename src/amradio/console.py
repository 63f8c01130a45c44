"""What a command prints while it works: phases, bars, signs of life; and a console that goes away ends no command."""

import contextlib
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")
PAGE = 80
"""Characters of a line where the output is no terminal and COLUMNS is not set."""
NARROWEST = 40
"""Characters below which lines are not made shorter."""
PERIOD = 30.0
"""Seconds between two lines of a long phase where the console is no terminal."""
WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|\S)+""")
"""A word of a command, with its quotes."""
CONTINUED = " \\"
"""At the end of a line of a command that continues on the next."""
INDENT = " " * 4
"""Before what stands below the first line of a text."""


_quiet = False


@contextlib.contextmanager
def only_results(quiet: bool) -> Iterator[None]:
    """With `quiet`, lines that are no warnings, and bars, are left out within it; results and errors are printed all the same."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def is_left_out(line: str) -> bool:
    """Whether a line about the progress of work is not printed: with `--quiet` all but warnings."""
    return _quiet and not line.startswith("warning")


def note(line: str, stream: TextIO | None = None) -> None:
    """One line on stderr, beside the results on stdout; of several processes only the first one prints. stream: another one."""
    stream = stream or sys.stderr
    if os.environ.get("RANK", "0") == "0" and stream is not None and not is_left_out(line):
        print(fitted(line, stream), file=stream, flush=True)


def line_width(stream: TextIO | None) -> int | None:
    """Characters a line of progress and errors on a terminal (COLUMNS, where it is set); None, no limit, for a file or a pipe, where one
    message is one line that can be searched: whoever calls from a Python with readline passes COLUMNS on without knowing."""
    if is_terminal(stream):
        return max(shutil.get_terminal_size((PAGE, 24)).columns, NARROWEST)
    return None


def fitted(text: str, stream: TextIO | None) -> str:
    """The text in lines of at most `line_width(stream)` characters; no word is cut."""
    width = line_width(stream)
    if width is None:
        return text
    options: Any = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": INDENT, "expand_tabs": False}
    return "\n".join(textwrap.fill(line, width, **options) if len(line) > width else line for line in text.split("\n"))


def joined(parts: Sequence[str], stream: TextIO | None, gap: str = "  ") -> str:
    """The parts side by side, of which those at the end are left out that `line_width(stream)` has no room for."""
    width = line_width(stream)
    kept = list(parts)
    while width is not None and len(kept) > 1 and len(gap.join(kept)) > width:
        kept.pop()
    return gap.join(kept)


def command_text(command: str, first: str, width: int) -> str:
    r"""A command as it can be pasted into a shell; what is too long for a line is continued with `\`.

    first: what stands before it on its first line.
    """
    lines, line = [], first
    for word in WORD.findall(command):
        is_begun = line != first and bool(line.strip())
        if is_begun and len(line) + len(" ") + len(word) + len(CONTINUED) > width:
            lines.append(line + CONTINUED)
            line = f"{INDENT} "
        line += f" {word}"
    return "\n".join([*lines, line])


def columns() -> int:
    """Characters a line: COLUMNS where it is set, else those of the terminal, and `PAGE` where stdout is none."""
    stated = os.environ.get("COLUMNS", "")
    if not stated.isdecimal() and not is_terminal(sys.stdout):
        return PAGE
    return max(shutil.get_terminal_size((PAGE, 24)).columns, NARROWEST)


def print_text(text: str, first: str = "", others: str = "") -> None:
    """Prints prose in lines of at most `columns()` characters; no word is cut, so a name that is longer has a longer line.

    first, others: what stands before the first line and before the others.
    """
    if text:
        options: Any = {"break_long_words": False, "break_on_hyphens": False}
        print(textwrap.fill(text, columns(), initial_indent=first, subsequent_indent=others, **options))


class Phases:
    """Long work announces itself before it starts and shows how far it is: a bar on a terminal, elsewhere a line every half minute."""

    def __init__(self, announce: Callable[[str], None], show: Callable[[str], None], stream: str):
        """announce: prints the line of a beginning; show: that of a sign of life. stream: `stdout` or `stderr`, where bars are drawn."""
        self.announce, self.show, self.stream = announce, show, stream
        self.num_open = 0
        """Phases that are shown now."""
        self._count = ""

    @contextlib.contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """Announces what is about to be done, and shows that it is still being done."""
        self.announce(title)
        with self.still(title):
            yield

    @contextlib.contextmanager
    def still(self, title: str, first: float | None = None) -> Iterator[None]:
        """While open, a line every half minute, from a thread of its own. first: seconds until the first one, where it is another."""
        ended = threading.Event()
        start = time.monotonic()

        def lines() -> None:
            wait = PERIOD if first is None else first
            while not ended.wait(wait):
                self.show(f"{title}: {self._count}{duration(time.monotonic() - start)} so far")
                wait = PERIOD

        thread = threading.Thread(target=lines, name="signs of life", daemon=True)
        thread.start()
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1
            ended.set()
            thread.join()

    def progress(self, items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
        """The same items, counted while they are taken. total: how many there are."""
        terminal = sys.stdout if self.stream == "stdout" else sys.stderr
        if _quiet or not is_terminal(terminal):
            return self._counted(items, total)
        from rich.console import Console
        from rich.progress import track

        return iter(track(items, title, total=total, console=Console(file=terminal), transient=True))

    def _counted(self, items: Iterable[Item], total: int | None) -> Iterator[Item]:
        of = f" of {total:,}" if total else ""
        try:
            for done, item in enumerate(items):
                self._count = f"{done:,}{of}, "
                yield item
        finally:
            self._count = ""


PHASES = Phases(note, note, "stderr")
"""Of commands that print their results on stdout."""


def is_terminal(stream: Any) -> bool:
    """Whether somebody looks at what is written to it."""
    return stream is not None and not stream.closed and stream.isatty()


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
    sys.stdout, sys.stderr = (output if output is None or isinstance(output, Outliving) else Outliving(output) for output in before)
    hangs_up = (
        hasattr(signal, "SIGHUP")  # not on Windows
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    )
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
