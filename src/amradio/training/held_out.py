"""Agreement of the heads with their teachers on held-out images, measured during the run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from .agreement import Agreement, agreement
from .schedule import Group
from .setup import Context


class HeldOut:
    """Measures into evaluations/ and metrics.jsonl, with the averaged weights where there are any."""

    def __init__(self, context: Context):
        self.context = context
        self.agreement: Agreement = {}
        self.step: int | None = None
        """The last step that was measured."""

    def due(self, step: int) -> bool:
        """Whether it is to be measured at `step`: at every multiple of the period, 0 included, and at the end; once."""
        every = self.context.recipe.evaluate.every
        if not self.context.recipe.data.has_val or every is None or step == self.step:
            return False
        return step % every == 0 or step == self.context.recipe.num_steps

    def measure(self, step: int) -> None:
        """For every teacher of the stage that `step` ends or is in. Raises StopAskedError where a stop is asked for meanwhile."""
        context = self.context
        stage = next(stage for stage in context.stages if step <= stage.end)
        found: Agreement = {}
        with context.log.phase(f"step {step}: evaluating on held-out images"), self._averaged_weights():
            for group in stage.groups:
                for name, row in self._agreement(group).items():
                    found[name if name not in found else f"{name}@{group.partition.image_size}"] = row
        self.agreement, self.step = found, step
        context.log.record({"step": step} | {f"val/{name}/{key}": value for name, row in found.items() for key, value in row.items()})
        summary = "  ".join(f"{name} {row['standardised_cosine']:.3f} ({row['norm_ratio']:.2f})" for name, row in found.items())
        context.log.say(f"held out at step {step}, standardised cosine (norm ratio): {summary}")
        text = json.dumps(found, indent=1) + "\n"
        context.processes.first_does(lambda: context.folder.write(f"evaluations/step_{step:09d}/held_out.json", text))

    def _agreement(self, group: Group) -> Agreement:
        context = self.context
        batches = context.log.watch(self._batches(group), f"held-out images of partition {group.partition.name}")
        return agreement(context.task, batches, group.partition, context.autocast, context.processes.gather)

    def _batches(self, group: Group) -> Iterator:
        """Of several processes one may have a batch less than another, so only a run on one process can stop between two batches."""
        for batch in self.context.feeds.held_out(group):
            if self.context.processes.world_size == 1:
                self.context.stop.check()
            yield batch

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        task, ema = self.context.task, self.context.ema
        if ema is None:
            yield
            return
        own, task.network = task.network, ema.average
        try:
            yield
        finally:
            task.network = own
            ema.average.eval()
