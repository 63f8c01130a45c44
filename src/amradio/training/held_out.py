"""Agreement of the heads with their teachers on held-out images, measured during the run."""

import copy
import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

from ..batch import Batch
from ..config import size_text
from ..distillation.metrics import HEADLINE
from ..distillation.views import Partition
from ..drawing.panels import sheet
from ..files import disk_errors
from .agreement import Agreement, agreement
from .held_out_pictures import held_out_panels
from .schedule import Group, Stage
from .setup import Context


class HeldOut:
    """Measures into evaluations/ and metrics.jsonl, with the averaged weights where there are any; a hook of the trainer."""

    def __init__(self, context: Context):
        self.context = context
        self.agreement: Agreement = {}
        self.step: int | None = None
        """The last step that was measured."""

    def due(self, step: int, stopping: bool) -> bool:
        """Whether it is to be measured at `step`: at every multiple of the period, 0 included, and at the end; once; not when stopping."""
        context = self.context
        if stopping or step == self.step or not context.recipe.data.has_val or context.calibrated_stage is None:
            return False
        return context.is_due(step, context.recipe.evaluate.every)

    def run(self, step: int) -> None:
        """For every teacher of the stage that `step` ends or is in. Raises StopAskedError where a stop is asked for meanwhile."""
        context = self.context
        stage = next(stage for stage in context.stages if step <= stage.end)
        rows: Agreement = {}
        with context.clock.paused(), context.log.phase(f"step {step}: evaluating on held-out images"), self._averaged_weights():
            for group in stage.groups:
                for name, row in self._agreement(group).items():
                    rows[_new_name(name, group.partition, rows)] = row
        self.agreement, self.step = rows, step
        context.log.record({"step": step} | {f"val/{name}/{key}": value for name, row in rows.items() for key, value in row.items()})
        summary = "  ".join(f"{name} {row[HEADLINE]:.3f} ({row['norm_ratio']:.2f})" for name, row in rows.items())
        context.log.say(f"held out at step {step}, standardized cosine (norm ratio): {summary}")
        text = json.dumps(rows, indent=1) + "\n"
        context.processes.first_does(lambda: context.folder.write(f"evaluations/step_{step:09d}/held_out.json", text))
        if step == context.num_steps and context.processes.is_first:
            with context.clock.paused(), self._averaged_weights():
                self._draw(stage)

    def state_dict(self) -> dict[str, Any]:
        """For state.json of a checkpoint."""
        return {"agreement": self.agreement, "evaluated": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From what `state_dict` returned."""
        self.agreement, self.step = copy.deepcopy(state["agreement"]), state["evaluated"]

    def _agreement(self, group: Group) -> Agreement:
        context = self.context
        batches = context.log.watch(self._batches(group), f"held-out images of partition {group.partition.name}")
        return agreement(context.task, batches, group.partition, context.autocast, context.processes.gather)

    def _draw(self, stage: Stage) -> None:
        """Writes images/held_out_HEAD.png of every head, once where several partitions have it."""
        context, drawn = self.context, set[str]()
        for group in stage.groups:
            batch = next(context.feeds.held_out(group))
            for name, panels in held_out_panels(context.task, batch, group.partition, context.autocast):
                file = context.folder.path / "images" / f"held_out_{name}.png"
                if name not in drawn:
                    with disk_errors(file):
                        file.parent.mkdir(parents=True, exist_ok=True)
                        sheet(panels).save(file)
                drawn.add(name)

    def _batches(self, group: Group) -> Iterator[Batch]:
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
        trained, task.network = task.network, ema.average
        try:
            yield
        finally:
            task.network = trained
            ema.average.eval()


def _new_name(name: str, partition: Partition, taken: Container[str]) -> str:
    """`clip/summary`; where another partition of the stage has that teacher too, `clip/summary@48`, then `clip/summary@48#2`, ..."""
    at_size = f"{name}@{size_text(partition.size)}"
    names = chain([name, at_size], (f"{at_size}#{number}" for number in count(2)))
    return next(candidate for candidate in names if candidate not in taken)
