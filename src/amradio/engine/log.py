"""Logs: one fixed line an interval on the console and in train.log, every number in metrics.jsonl, and a clock for shares of time."""

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from ..errors import UserError
from .checkpoint import disk_errors


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
    """The log files of a run folder and the console; writes nothing where `folder` is None (all processes but the first)."""

    def __init__(self, folder: Path | None, track: bool = False):
        """track: write TensorBoard event files as well."""
        self.folder = folder
        self._bar: Progress | None = None
        self._board: Any = None
        if track and folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter  # an extra, and slow to import
            except ImportError:
                raise UserError("engine.track: tensorboard is not installed; pip install amradio[track], or leave the key out") from None
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def say(self, line: str) -> None:
        """One line for the console and train.log."""
        if self.folder is None:
            return
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        with disk_errors(self.folder), open(self.folder / "train.log", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def progress(self, step: int, num_steps: int) -> None:
        """Moves the bar below the lines, where the console is a terminal."""
        if self.folder is None or not sys.stdout.isatty():
            return
        if self._bar is None:
            self._bar = Progress(BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
            self._bar.add_task("", total=num_steps)
            self._bar.start()
        self._bar.update(TaskID(0), completed=step)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def warn(self, line: str) -> None:
        """A line that wants attention."""
        self.say(f"warning: {line}")

    def record(self, numbers: Mapping[str, float | int | str]) -> None:
        """One line of metrics.jsonl; `step` is among the numbers."""
        if self.folder is None:
            return
        with disk_errors(self.folder), open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")
        if self._board is not None:
            for name, value in numbers.items():
                if name != "step" and not isinstance(value, str):
                    self._board.add_scalar(name, value, int(numbers["step"]))

    def forget_after(self, step: int) -> None:
        """Drops the lines of metrics.jsonl beyond `step`, which a resumed run will write again."""
        if self.folder is None or not (self.folder / "metrics.jsonl").exists():
            return
        path = self.folder / "metrics.jsonl"
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        aside = path.with_suffix(".part")
        with disk_errors(self.folder):
            aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            aside.replace(path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line that a kill cut short


def memory_in_use(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
