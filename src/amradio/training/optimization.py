"""One optimizer step over all partitions' batches: forward, backward, clipping, update."""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, nullcontext
from functools import partial
from itertools import count, islice
from typing import NamedTuple

import torch
from torch import Tensor

from ..batch import Batch
from ..distillation.task import Prepared
from ..distillation.views import Partition
from ..engine.optimizer import FACTOR, learning_rate, set_rates
from ..engine.prefetch import ahead
from ..students.reparametrization import begin_step, parametrizations
from .schedule import Stage
from .setup import Context


class Piece(NamedTuple):
    """A part of one partition's batch, on the CPU."""

    batch: Batch
    partition: Partition


Ahead = Future[list[list[Prepared]]]
"""What is computed of every piece of a step while the step before it runs."""


class Optimization:
    """Takes the optimizer steps of a run."""

    def __init__(self, context: Context):
        self.context = context
        self.rate = 0.0
        """The learning rate of the last step, of what has no factor."""
        self._rate_factors = [group[FACTOR] for group in context.optimizer.param_groups]
        self._reparametrized = any(parametrizations(context.task.network.student))
        self._fresh = copy.deepcopy(context.optimizer.state_dict())

    def steps(self, stage: Stage, step: int) -> Generator[tuple[Sequence[Batch], Ahead | None]]:
        """The batches of each step from `step` to the stage's end, and what is prepared of them where `engine.prepare_ahead` is on."""
        feeds = self.context.feeds
        batches: Iterator[tuple[Batch, ...]] = zip(*[feeds.training(group, step) for group in stage.groups], strict=True)
        limited = islice(batches, stage.end - step)
        if self.context.recipe.engine.prepare_ahead:
            with closing(ahead(zip(count(step), limited, strict=False), partial(self._prepare, stage))) as items:
                for (_, batch), prepared in items:
                    yield batch, prepared
        else:
            yield from ((batch, None) for batch in limited)

    def _prepare(self, stage: Stage, numbered: tuple[int, Sequence[Batch]]) -> list[list[Prepared]]:
        """Called in another thread; autocast is each thread's own. numbered: a step and its batches."""
        context = self.context
        with self._autocast():
            return [
                context.task.prepare_parts(piece.batch.to(context.processes.device), piece.partition)
                for piece in self._pieces(stage, *numbered)
            ]

    def take(self, stage: Stage, step: int, batches: Sequence[Batch], measure: bool, prepared: Ahead | None = None) -> dict[str, Tensor]:
        """Step number `step` of the run at its scheduled learning rate; see `update`.

        Restarts the optimizer and freezes the student as the stage's settings say: all is a function of `step`, as a resumed run needs it.
        """
        context = self.context
        if stage.settings.restart and step == stage.start:
            context.optimizer.load_state_dict(self._fresh)
        student = context.task.network.student
        student.freeze(stage.is_frozen(step))
        if self._reparametrized and not student.frozen:
            begin_step(student, context.recipe.seed, step)
        rate = learning_rate(context.recipe.optimizer, step - stage.start, stage.end - stage.start)
        return self.update(stage, step, batches, rate * stage.settings.rate_factor, measure, prepared)

    def update(
        self, stage: Stage, step: int, batches: Sequence[Batch], rate: float, measure: bool, prepared: Ahead | None = None
    ) -> dict[str, Tensor]:
        """One optimizer step over a batch of every partition of the stage, cut into `engine.accumulate` pieces.

        step: of the run, for the sizes at which models see the images. measure: also report cosines and norm ratios. prepared: a result for
        each piece, where it is computed ahead.
        Returns the named numbers, float32 [] each, still on the device.
        """
        context, self.rate = self.context, rate
        accumulate = context.recipe.engine.accumulate
        set_rates(context.optimizer, rate, self._rate_factors)
        context.optimizer.zero_grad(set_to_none=True)
        pieces = self._pieces(stage, step, batches)
        with context.clock.part("waiting") if prepared else nullcontext():
            results: Sequence[list[Prepared] | None] = prepared.result() if prepared else [None] * len(pieces)
        gathered: dict[str, list[Tensor]] = {}
        for number, (piece, result) in enumerate(zip(pieces, results, strict=True), 1):
            with context.parallel.accumulating(last=number == len(pieces)):
                for name, value in self._backward(piece, measure, result).items():
                    gathered.setdefault(name, []).append(value)
        metrics = {name: torch.stack(values).mean() if len(values) > 1 else values[0] for name, values in gathered.items()}
        metrics["loss"] = torch.stack(gathered["loss"]).sum() / accumulate
        self._clear_unused_gradients(stage)
        with context.clock.part("student"):
            metrics["gradient_norm"] = context.parallel.clip(context.recipe.optimizer.clip or float("inf"))
            context.optimizer.step()
        if context.ema is not None:
            context.ema.update(context.task.network)
        self._follow_losses(metrics)
        return metrics

    def _follow_losses(self, metrics: Mapping[str, Tensor]) -> None:
        """Gives the losses of the whole step to a balance that follows them."""
        balance = self.context.task.balance
        if not balance.follows_losses:
            return
        losses = {name: metrics[f"{name}/loss"] for name in balance.weights if f"{name}/loss" in metrics}
        means = self.context.processes.average(torch.stack(list(losses.values())))
        balance.follow(dict(zip(losses, means, strict=True)))

    def _backward(self, piece: Piece, measure: bool, prepared: list[Prepared] | None) -> dict[str, Tensor]:
        context = self.context
        batch = piece.batch.to(context.processes.device)
        with self._autocast():
            output = context.parallel(batch, piece.partition, measure, prepared)
        loss = context.parallel.complete(output.loss, context.task.unused_parameters(piece.partition))
        with context.clock.part("student"):
            (loss / context.recipe.engine.accumulate).backward()
        return output.metrics

    def _pieces(self, stage: Stage, step: int, batches: Sequence[Batch]) -> list[Piece]:
        """Every partition's batch at the size of the step, cut into `accumulate` pieces."""
        pieces = self.context.recipe.engine.accumulate
        return [
            Piece(batch.piece(number, pieces), partition)
            for partition, batch in zip(stage.partitions(step), batches, strict=True)
            for number in range(pieces)
        ]

    def _clear_unused_gradients(self, stage: Stage) -> None:
        """Clears the (zero) gradients of what is unused in this stage or frozen, so that weight decay and momentum do not change it."""
        whole_stage = stage.groups[0].partition._replace(teachers=tuple(stage.teachers))
        for parameter in self.context.task.unused_parameters(whole_stage):
            parameter.grad = None

    def _autocast(self) -> torch.autocast:
        dtype = self.context.autocast
        return torch.autocast(self.context.processes.device.type, dtype, enabled=dtype is not None)
