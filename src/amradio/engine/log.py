"""Logs: one fixed line an interval on the console and in train.log, every number in metrics.jsonl, and a clock for shares of time."""

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from ..console import PERIOD, Phases, fitted, is_left_out, is_terminal, joined
from ..files import disk_errors, read_bytes, write_aside
from .track import Opener, Tracker

Item = TypeVar("Item")


class Clock:
    """Seconds spent per named part, on the CPU or, without waiting for it, on a GPU."""

    def __init__(self, device: torch.device):
        """device: where the work happens; GPU work is timed with events."""
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what is inside."""
        if self._on_gpu and name != "data":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin_at = time.perf_counter()
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is inside out of the time."""
        begin_at = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin_at

    def take(self) -> tuple[float, dict[str, float]]:
        """(seconds since the last call, share of them per part in [0, 1]), and starts afresh."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] = self._seconds.get(name, 0.0) + begin.elapsed_time(end) / 1000
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        shares = {name: seconds / elapsed for name, seconds in self._seconds.items()}
        self._seconds, self._events, self._since = {}, [], now
        return elapsed, shares


class Log:
    """The log files of a run folder and the console; silent on all processes but the first."""

    def __init__(self, folder: Path | None = None, trackers: Sequence[Opener] = (), aloud: bool = False):
        """folder: where the files are; None where it is opened later, or never. trackers: loggers beside these files (`track.openers`).

        aloud: print also without a folder; these lines are in train.log as soon as there is one.
        """
        self.folder: Path | None = None
        self.aloud = aloud
        self._early: list[str] = []
        self._bar: Progress | None = None
        self._openers: Sequence[Opener] = ()
        self._trackers: list[Tracker] = []
        self._resumed_at = 0
        self._printed_at = time.monotonic()
        self._reached = "the first step is being computed"
        self._phases = Phases(self.say, self._show, "stdout")
        if folder is not None:
            self.open(folder, trackers)

    def open(self, folder: Path, trackers: Sequence[Opener] = ()) -> None:
        """From now on the files are written. Arguments as of the class."""
        self.folder, self.aloud, self._openers = folder, True, trackers
        early, self._early = self._early, []
        self._append("train.log", early)

    def say(self, line: str) -> None:
        """One line for train.log, and for the console, where it is folded at the width of a terminal."""
        self.say_parts((line,))

    def say_parts(self, parts: Sequence[str]) -> None:
        """One line for train.log; on a terminal it is never folded: the parts at its end are left out that the width has no room for."""
        if not self.aloud:
            return
        line = "  ".join(parts)
        self._print(joined(parts, sys.stdout))
        if self.folder is None:
            self._early.append(line)
        else:
            self._append("train.log", [line])

    def _show(self, line: str) -> None:
        if self.aloud:
            self._print(line)

    def _print(self, line: str) -> None:
        self._printed_at = time.monotonic()
        if is_left_out(line):
            return
        if self._bar is None:
            print(fitted(line, sys.stdout), flush=True)
        else:
            self._bar.console.print(fitted(line, sys.stdout), markup=False, highlight=False, soft_wrap=True)

    def _append(self, name: str, lines: Iterable[str]) -> None:
        assert self.folder is not None
        with disk_errors(self.folder), open(self.folder / name, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """While open, no more than `PERIOD` seconds pass without a line where the console is no terminal, however long a step takes."""
        ended = threading.Event()

        def lines() -> None:
            while not ended.wait(max(PERIOD / 30, PERIOD - (time.monotonic() - self._printed_at))):
                if time.monotonic() - self._printed_at >= PERIOD and not self._phases.num_open:
                    self._show(self._reached)

        if not self.aloud or is_terminal(sys.stdout):
            yield
            return
        thread = threading.Thread(target=lines, name="progress of the steps", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def progress(self, step: int, num_steps: int) -> None:
        """Moves the bar below the lines where the console is a terminal; elsewhere `alive` prints how far it is."""
        if not self.aloud:
            return
        self._reached = f"step {step} of {num_steps} done"
        if not is_terminal(sys.stdout) or is_left_out(""):
            return
        if self._bar is None:
            self._bar = Progress(BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
            self._bar.add_task("", total=num_steps)
            self._bar.start()
        self._bar.update(TaskID(0), completed=step)

    def close(self) -> None:
        """Takes the bar away, and ends the trackers."""
        self.close_bar()
        for tracker in self._trackers:
            tracker.close()

    def close_bar(self) -> None:
        """Takes the bar away until the next `progress`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def phase(self, title: str) -> AbstractContextManager[None]:
        """Says what is about to be done, and every half minute that it is still being done."""
        self.close_bar()
        return self._phases.phase(title)

    def phase_if_long(self, title: str) -> AbstractContextManager[None]:
        """The same for what is usually quick: says it after a second."""
        return self._phases.still(title, first=1.0)

    def watch(self, items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
        """The same items, counted while they are taken. total: how many there are."""
        if not self.aloud:
            return iter(items)
        self.close_bar()
        return self._phases.progress(items, title, total)

    def warn(self, line: str) -> None:
        """A line that wants attention."""
        self.say(f"warning: {line}")

    def record(self, numbers: Mapping[str, float | int | str]) -> None:
        """One line of metrics.jsonl; `step` is among the numbers."""
        if self.folder is None:
            return
        self._append("metrics.jsonl", [json.dumps(numbers)])
        if self._openers:
            self._trackers, self._openers = [opener(self.folder, self._resumed_at) for opener in self._openers], ()
        values = {name: value for name, value in numbers.items() if name != "step" and not isinstance(value, str)}
        for tracker in self._trackers:
            tracker.add(int(numbers["step"]), values)

    def forget_after(self, step: int) -> None:
        """Drops the lines of metrics.jsonl beyond `step`, which a resumed run will write again.

        Lines that are damaged are moved to metrics.damaged.txt, with a warning; a last line that a kill cut short is dropped.
        """
        self._resumed_at = step
        if self.folder is None or not (self.folder / "metrics.jsonl").exists():
            return
        path = self.folder / "metrics.jsonl"
        with disk_errors(path):
            lines = path.read_bytes().split(b"\n")
        cut = lines.pop()  # empty where the last line is whole
        steps = [(line, _step_of(line)) for line in lines if line.strip()]
        if _step_of(cut) is not None:
            steps.append((cut, _step_of(cut)))
        damaged = [line for line, line_step in steps if line_step is None]
        with disk_errors(self.folder):
            if damaged:
                with open(self.folder / "metrics.damaged.txt", "ab") as file:
                    file.writelines(line + b"\n" for line in damaged)
            write_aside(path, b"".join(line + b"\n" for line, line_step in steps if line_step is not None and line_step <= step))
        if damaged:
            self.warn(f"{path}: {len(damaged)} damaged lines (no JSON object with a step) were moved to metrics.damaged.txt beside it")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run folder, in order; damaged ones, and a last one that is being written, are left out.

    Raises UserError where the file cannot be read.
    """
    path = folder / "metrics.jsonl"
    lines = read_bytes(path).split(b"\n") if path.exists() else []
    return [record for line in lines if (record := _record_of(line)) is not None]


def _record_of(line: bytes) -> dict[str, Any] | None:
    """None where the line is not of `record`."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) else None


def _step_of(line: bytes) -> int | None:
    """None where the line is not of `record`."""
    record = _record_of(line)
    return None if record is None else record["step"]


def memory_in_use(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
