"""The loop: it knows no teacher and no loss, only a task that turns a batch into a loss and named numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import Processes
from .log import Clock
from .monitor import Monitor
from .optimizer import learning_rate
from .settings import EngineSettings, OptimizerSettings
from .stop import Stop


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
    """task(images, draws, partition, measure) -> (loss, metrics); under DDP already wrapped."""
    optimizer: torch.optim.Optimizer
    stages: Sequence[Stage]
    engine: EngineSettings
    schedule: OptimizerSettings
    processes: Processes
    monitor: Monitor
    clock: Clock
    autocast: torch.dtype | None
    open_batches: Callable[[Stage, Any, int], Iterator[Any]]
    """(stage, group, step) -> batches of this process from that step on."""
    begin_stage: Callable[[Stage], None]
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
    with Stop() as stop:
        for stage in job.stages:
            if step >= stage.end:
                continue
            if step and job.evaluate_due(step):  # a signal came before it
                job.evaluate(step)
            if step == stage.start:
                job.begin_stage(stage)
            if step == 0 and job.evaluate_due(0):
                job.evaluate(0)
            batches = [job.open_batches(stage, group, step) for group in stage.groups]
            job.monitor.begin(job.num_steps)
            while step < stage.end:
                log_due = _due(step + 1, job.engine.log_every, job.num_steps)
                rate = learning_rate(job.schedule, step - stage.start, stage.end - stage.start)
                with job.clock.part("data"):
                    found = [next(each) for each in batches]
                metrics = take_step(job, stage, found, rate, log_due)
                step += 1
                job.monitor.take(step, metrics, found)

                halt = (log_due or job.processes.world_size == 1) and job.processes.any(stop.asked)
                save_due = halt or _due(step, job.engine.checkpoint_every, job.num_steps)
                if log_due or save_due:
                    job.monitor.flush(step, rate)
                if job.evaluate_due(step) and not (halt and step < job.num_steps):
                    job.evaluate(step)
                if save_due:
                    job.save(step)
                if halt:
                    return step
    return step


def _due(step: int, every: int, num_steps: int) -> bool:
    return step % every == 0 or step == num_steps


def take_step(job: Job, stage: Stage, batches: Sequence[Any], rate: float, measure: bool) -> dict[str, Tensor]:
    """One optimizer step over all partitions' batches, cut into `accumulate` pieces; returns the numbers, still on the device."""
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    job.optimizer.zero_grad(set_to_none=True)
    pairs = zip(stage.groups, batches, strict=True)
    pieces = [piece for group, batch in pairs for piece in _cut(group.partition, batch, job.engine.accumulate)]
    gathered: dict[str, list[Tensor]] = {}
    for position, (partition, images, draws) in enumerate(pieces):
        with _synchronised(job.task, last=position == len(pieces) - 1):
            for name, value in _backward(job, partition, images, draws, measure).items():
                gathered.setdefault(name, []).append(value)
    metrics = {name: torch.stack(values).mean() for name, values in gathered.items()}
    metrics["loss"] = torch.stack(gathered["loss"]).sum() / job.engine.accumulate
    job.spare(stage)
    with job.clock.part("student"):
        metrics["gradient_norm"] = nn.utils.clip_grad_norm_(job.task.parameters(), job.schedule.clip or float("inf"))
        job.optimizer.step()
    job.after_step()
    return metrics


def _backward(job: Job, partition: Any, images: Tensor, draws: Tensor, measure: bool) -> dict[str, Tensor]:
    device = job.processes.device
    on_device = images.to(device, non_blocking=True), draws.to(device, non_blocking=True)
    with torch.autocast(device.type, job.autocast, enabled=job.autocast is not None):
        output = job.task(*on_device, partition, measure)
    with job.clock.part("student"):
        (output.loss / job.engine.accumulate).backward()
    return output.metrics


def _cut(partition: Any, batch: Any, pieces: int) -> list[tuple[Any, Tensor, Tensor]]:
    images, draws = batch.images.chunk(pieces), batch.draws.chunk(pieces)
    return [(partition, i, d) for i, d in zip(images, draws, strict=True)]


def _synchronised(task: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Gradients are exchanged once a step, with the last piece."""
    return task.no_sync() if isinstance(task, DistributedDataParallel) and not last else nullcontext()
