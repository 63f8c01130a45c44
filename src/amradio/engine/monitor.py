"""Watches a run: gathers the numbers of each step on the device, and every interval checks, averages and reports them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..batch import Batch
from ..console import duration
from ..errors import UserError
from .distributed import Processes
from .log import Clock, Log, memory_in_use

ESTIMATE = (5, 25)
"""Steps of a stage between which the speed is measured for the line that says how long the run will take."""
NAMED_SKIPS = 5
"""Broken images that a log line names; the rest are counted."""


class TooSlowError(Exception):
    """The run would take longer than its caller gave it; nothing was saved yet. For the caller, who starts it again with fewer steps."""

    def __init__(self, estimate: str, fits: int):
        """estimate: a sentence without a full stop. fits: steps of the whole run that would end in time, at least 1."""
        super().__init__(estimate)
        self.estimate, self.fits = estimate, fits


class _Step(NamedTuple):
    step: int
    metrics: Mapping[str, Tensor]
    keys: Sequence[tuple[str, ...]]


class Monitor:
    """Metrics stay on the device between flushes; there is no synchronisation per step."""

    def __init__(self, processes: Processes, log: Log, clock: Clock, headline: Callable[[Mapping[str, float]], str]):
        """Reports to `log`.

        headline: from the averaged numbers of an interval to what its log line shows of them beside the loss.
        """
        self.processes = processes
        self.log = log
        self.clock = clock
        self.headline = headline
        self.num_skipped = 0
        self.num_steps = 0
        self.within: float | None = None
        """Seconds in which the run has to end; where the first steps show that they do not suffice, `TooSlowError` is raised."""
        self._steps: list[_Step] = []
        self._skipped: list[str] = []
        self._remarks: list[str] = []
        self._remarked: set[str] = set()
        self._num_images = 0
        self._taken: int | None = None
        self._begun = 0.0
        self._num_tokens = 0
        self._rate = 0.0

    def begin(self, num_steps: int) -> None:
        """Starts the clock; called when a stage begins or is resumed. num_steps: of the whole run."""
        self.num_steps = num_steps
        self.clock.take()
        self._taken = 0
        self._steps = []
        self._num_images = self._num_tokens = 0

    def take(self, step: int, metrics: Mapping[str, Tensor], batches: Sequence[Batch], rate: float, num_tokens: int) -> None:
        """The numbers of the step that was just done, the batches of this process, its learning rate, and the cells of the student's maps
        of all images of all processes."""
        self._rate = rate
        self._num_tokens += num_tokens
        self._steps.append(_Step(step, metrics, [batch.keys for batch in batches]))
        self._num_images += sum(len(batch.keys) for batch in batches)
        self._skipped += [reason for batch in batches for reason in batch.skipped]
        self._remarks += [remark for batch in batches for remark in batch.remarks if remark not in self._remarked]
        self.log.progress(step, self.num_steps)
        if self._taken is not None:
            self._taken += 1
            self._estimate(step)

    @property
    def has_steps(self) -> bool:
        """Whether there are steps that have not been reported."""
        return bool(self._steps)

    def state_dict(self) -> dict[str, Any]:
        """For state.json of a checkpoint."""
        return {"skipped_images": self.num_skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From what `state_dict` returned."""
        self.num_skipped = state["skipped_images"]

    def flush(self, step: int) -> None:
        """Checks and reports what was taken in; raises UserError on every process where any number of any process is not finite."""
        if not self._steps:
            return
        self._taken = None  # the line of the interval says what is left
        always = [name for name in self._steps[-1].metrics if all(name in taken.metrics for taken in self._steps)]
        table = torch.stack([torch.stack([taken.metrics[name].float() for name in always]) for taken in self._steps])
        average = self.processes.average(table.clone()).cpu()
        if not torch.isfinite(average).all():
            self._report_non_finite(always, table.cpu(), average)
        numbers = dict(zip(always, average.mean(0).tolist(), strict=True))
        measured = [name for name in self._steps[-1].metrics if name not in numbers]
        if measured:
            last = self.processes.average(torch.stack([self._steps[-1].metrics[name].float() for name in measured]))
            numbers |= dict(zip(measured, last.tolist(), strict=True))
        self._report_remarks()
        self._report_skipped()
        self._report(step, numbers | {"learning_rate": self._rate})
        self._steps, self._num_images, self._num_tokens = [], 0, 0

    def _report(self, step: int, numbers: dict[str, float]) -> None:
        seconds, shares = self.clock.take()
        speed, tokens = self._num_images * self.processes.world_size / seconds, self._num_tokens / seconds
        memory = memory_in_use(self.processes.device)
        eta = (self.num_steps - step) * seconds / len(self._steps)
        timing = {f"{name}_share": share for name, share in shares.items()}
        skipped = {"skipped_images": self.num_skipped}
        speeds = {"images_per_second": speed, "tokens_per_second": tokens}
        self.log.record({"step": step} | numbers | speeds | {"memory_gib": memory} | timing | skipped)
        share_text = " ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items()))
        parts = (
            f"step {step:>{len(str(self.num_steps))}}/{self.num_steps}",
            f"loss {numbers['loss']:.4f}",
            f"left {duration(eta)}",
            *(text for text in self.headline(numbers).split("  ") if text),
            f"{speed:.0f} img/s",
            share_text,
            f"{memory:.1f} GiB",
            f"{tokens:.0f} tokens/s",
        )
        self.log.say_parts(parts)

    def _estimate(self, step: int) -> None:
        """After the first steps of a stage, one line on how long the rest will take; once, and only where no log line came before."""
        first, last = ESTIMATE
        if self._taken not in ESTIMATE:
            return
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize()
        if self._taken == first:
            self._begun = time.perf_counter()
            return
        self._taken = None
        left = self.num_steps - step
        seconds = (time.perf_counter() - self._begun) / (last - first) * left
        line = f"estimate after {last} steps: {duration(seconds)} for the other {left}"
        if self.within is not None:
            seconds = max(max(estimates) for estimates in self.processes.gather([seconds]))  # one decision for all processes
            if seconds > self.within:
                fits = int(left * self.within / seconds)
                raise TooSlowError(f"{line}, more than the {duration(self.within)} that are planned", max(1, fits))
        self.log.say(line)

    def _report_remarks(self) -> None:
        """Each remark once, whichever process met it."""
        news = {remark: None for remarks in self.processes.gather(self._remarks) for remark in remarks if remark not in self._remarked}
        self._remarks = []
        self._remarked.update(news)
        for remark in news:
            self.log.warn(remark)

    def _report_skipped(self) -> None:
        reasons_of_all = [reason for reasons in self.processes.gather(self._skipped) for reason in reasons]
        self._skipped = []
        if not reasons_of_all:
            return
        self.num_skipped += len(reasons_of_all)
        images = list(dict.fromkeys(reasons_of_all))
        named = "; ".join(images[:NAMED_SKIPS])
        rest = f"; and {len(images) - NAMED_SKIPS} more" if len(images) > NAMED_SKIPS else ""
        what = "1 unreadable image was" if len(images) == 1 else f"{len(images)} unreadable images were"
        self.log.warn(f"{what} skipped ({self.num_skipped} skips in all): {named}{rest}")

    def _report_non_finite(self, names: Sequence[str], table: Tensor, average: Tensor) -> None:
        first = int((~torch.isfinite(average)).any(1).nonzero()[0])
        bad = [name for name, value in zip(names, average[first], strict=True) if not torch.isfinite(value)]
        culprits = [name for name in bad if "/" in name] or bad
        # The gradients were averaged already, so of the gradient's norm no process can say that it was its own.
        here = not torch.isfinite(table[first, [names.index(name) for name in culprits]]).all()
        keys = [key for piece in self._steps[first].keys for key in piece] if here else []
        keys = list(dict.fromkeys(key for process_keys in self.processes.gather(keys) for key in process_keys))
        step = self._steps[first].step
        raise UserError(
            f"step {step}: not a finite number: {', '.join(culprits)}; images of that step: {', '.join(keys[:16])}"
            f"{f' and {len(keys) - 16} more' if len(keys) > 16 else ''}; the last checkpoint is from before it: "
            "look at these images and this teacher, lower optimizer.learning_rate or set engine.precision=float32, and run it again",
            on_all_processes=True,
        )
