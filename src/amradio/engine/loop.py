"""The loop: it knows no teacher and no loss, only a task that turns a batch into a loss and named numbers."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..interruption import Stop, StopAskedError
from .distributed import Processes
from .log import Clock
from .monitor import Monitor
from .optimizer import learning_rate
from .prefetch import ahead
from .settings import EngineSettings, OptimizerSettings


class Stage(NamedTuple):
    """Steps `start` (included) to `end` (excluded) of a run, on one set of groups of images."""

    number: int
    start: int
    end: int
    groups: Sequence[Any]
    """Partitions; each has `partition`, which the task is given."""


@dataclass
class Job:
    """All that the loop works with."""

    task: nn.Module
    """task(images, draws, partition, measure, prepared) -> (loss, metrics); under DDP already wrapped."""
    prepare: Callable[[Tensor, Any], Any]
    """(images, partition) -> `prepared`: what the task makes of them before the student is asked. None in its place: the task does it."""
    optimizer: torch.optim.Optimizer
    stages: Sequence[Stage]
    engine: EngineSettings
    schedule: OptimizerSettings
    processes: Processes
    monitor: Monitor
    clock: Clock
    stop: Stop
    autocast: torch.dtype | None
    open_batches: Callable[[Stage, Any, int], Iterator[Any]]
    """(stage, group, step) -> batches of this process from that step on."""
    begin_stage: Callable[[Stage], None]
    """Raises StopAskedError, with nothing changed, where a stop is asked for meanwhile; so does `evaluate`."""
    evaluate: Callable[[int], None]
    evaluate_due: Callable[[int], bool]
    save: Callable[[int], None]
    spare: Callable[[Stage], None] = field(default=lambda _: None)
    """Called between a step's gradients and its update: drops the gradients of what this stage leaves alone."""
    after_step: Callable[[], None] = field(default=lambda: None)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.stages[-1].end


def train(job: Job, step: int) -> int:
    """Runs from `step` to the end, or until a signal asks to stop; returns the step reached. The last step is no special case."""
    with job.stop as stop:
        try:
            for stage in job.stages:
                if step < stage.end:
                    _begin(job, stage, step)
                    step = _run_stage(job, stage, step)
            if job.evaluate_due(step):  # a signal or a kill came before the last evaluation
                job.evaluate(step)
                job.save(step)
        except _Stopped as stopped:
            step = stopped.step
            stop.was_followed = step < job.num_steps or job.evaluate_due(step)
        except StopAskedError:
            stop.was_followed = True
    return step


class _Stopped(Exception):  # noqa: N818 - no error
    def __init__(self, step: int):
        self.step = step


def _begin(job: Job, stage: Stage, step: int) -> None:
    """What comes before the first step of a stage, or of a resumed run."""
    try:
        if step and job.evaluate_due(step):  # a signal came before it
            job.evaluate(step)
        if step == stage.start:
            job.begin_stage(stage)
        if step == 0 and job.evaluate_due(0):
            job.evaluate(0)
    except StopAskedError:
        if step:  # at step 0 nothing is lost: the same command starts again
            job.save(step)
        raise _Stopped(step) from None


def _run_stage(job: Job, stage: Stage, step: int) -> int:
    """The steps of a stage from `step` on; returns its end, or raises `_Stopped` with the step, which is saved."""
    job.monitor.begin(job.num_steps)
    with closing(_steps(job, stage, step)) as steps:
        while step < stage.end:
            log_due = _due(step + 1, job.engine.log_every, job.num_steps)
            rate = learning_rate(job.schedule, step - stage.start, stage.end - stage.start)
            with job.clock.part("data"):
                found, prepared = next(steps)
            metrics = take_step(job, stage, found, rate, log_due, prepared)
            step += 1
            job.monitor.take(step, metrics, found)

            halt = (log_due or job.processes.world_size == 1) and job.processes.any(job.stop.asked)
            save_due = halt or _due(step, job.engine.checkpoint_every, job.num_steps)
            if log_due or save_due:
                job.monitor.flush(step, rate)
            if job.evaluate_due(step) and not halt:
                try:
                    job.evaluate(step)
                except StopAskedError:
                    halt = save_due = True
            if save_due:
                job.save(step)
            if halt:
                raise _Stopped(step)
    return step


Prepared = Future[list[Any]]


def _steps(job: Job, stage: Stage, step: int) -> Generator[tuple[Sequence[Any], Prepared | None], None, None]:
    """The batches of each step from `step` to the stage's end, and what is prepared of their pieces, where that is done ahead."""
    batches = zip(*[job.open_batches(stage, group, step) for group in stage.groups], strict=True)
    found = islice(batches, stage.end - step)
    if job.engine.prepare_ahead:
        yield from ahead(found, partial(_prepare, job, stage))
    else:
        yield from ((each, None) for each in found)


def _prepare(job: Job, stage: Stage, batches: Sequence[Any]) -> list[Any]:
    """Called in another thread; autocast is each thread's own."""
    device = job.processes.device
    with torch.autocast(device.type, job.autocast, enabled=job.autocast is not None):
        return [job.prepare(images.to(device), partition) for partition, images, _ in _pieces(job, stage, batches)]


def _due(step: int, every: int, num_steps: int) -> bool:
    return step % every == 0 or step == num_steps


def take_step(
    job: Job, stage: Stage, batches: Sequence[Any], rate: float, measure: bool, prepared: Prepared | None = None
) -> dict[str, Tensor]:
    """One optimizer step over all partitions' batches, cut into `accumulate` pieces; returns the numbers, still on the device.

    prepared: a result for each piece, where it is computed ahead.
    """
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    job.optimizer.zero_grad(set_to_none=True)
    pieces = _pieces(job, stage, batches)
    with job.clock.part("waiting") if prepared else nullcontext():
        results = prepared.result() if prepared else [None] * len(pieces)
    gathered: dict[str, list[Tensor]] = {}
    for position, (piece, result) in enumerate(zip(pieces, results, strict=True)):
        with _synchronised(job.task, last=position == len(pieces) - 1):
            for name, value in _backward(job, piece, measure, result).items():
                gathered.setdefault(name, []).append(value)
    metrics = {name: torch.stack(values).mean() for name, values in gathered.items()}
    metrics["loss"] = torch.stack(gathered["loss"]).sum() / job.engine.accumulate
    job.spare(stage)
    with job.clock.part("student"):
        metrics["gradient_norm"] = nn.utils.clip_grad_norm_(job.task.parameters(), job.schedule.clip or float("inf"))
        job.optimizer.step()
    job.after_step()
    return metrics


class _Piece(NamedTuple):
    partition: Any
    images: Tensor
    draws: Tensor


def _pieces(job: Job, stage: Stage, batches: Sequence[Any]) -> list[_Piece]:
    """Every partition's batch, cut into `accumulate` pieces.

    Piece k of n has every n-th image from the k-th on: then it is the same piece of the whole batch on any number of processes, and so
    are the statistics of a BatchNorm.
    """
    number = job.engine.accumulate
    return [
        _Piece(group.partition, batch.images[piece::number].contiguous(), batch.draws[piece::number].contiguous())
        for group, batch in zip(stage.groups, batches, strict=True)
        for piece in range(number)
    ]


def _backward(job: Job, piece: _Piece, measure: bool, prepared: Any) -> dict[str, Tensor]:
    device = job.processes.device
    on_device = piece.images.to(device, non_blocking=True), piece.draws.to(device, non_blocking=True)
    with torch.autocast(device.type, job.autocast, enabled=job.autocast is not None):
        output = job.task(*on_device, piece.partition, measure, prepared)
    with job.clock.part("student"):
        (output.loss / job.engine.accumulate).backward()
    return output.metrics


def _synchronised(task: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Gradients are exchanged once a step, with the last piece."""
    return task.no_sync() if isinstance(task, DistributedDataParallel) and not last else nullcontext()
