"""The suite of `evaluate.suite`: student, heads and teachers measured at intervals during a run."""

import copy
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ..distillation.calibration import agreement_protocol
from ..errors import UserError
from ..evaluation.base import Metric, Result, floor_warning
from ..evaluation.progress import Item
from ..evaluation.suite import plain, prepare, run_suite
from ..model import Model
from ..network import Network, NetworkConfig
from ..recipe import Recipe
from ..teachers.base import Teacher
from .setup import Context


class Score(NamedTuple):
    """The headline number of one model in one evaluation."""

    evaluation: str
    metric: Metric
    model: str
    value: float


class PeriodicSuite:
    """Runs the suite when it is due, on a copy of the student, with the teachers that the run holds; training is not affected by it."""

    def __init__(self, recipe: Recipe, teachers: Mapping[str, Teacher], device: torch.device):
        """teachers: those of the run; the suite's own beside them are loaded here. Raises UserError where one is missing."""
        self.recipe = recipe
        self.done: int | None = None
        """The last step that was measured."""
        self._is_first = True
        self.suite = recipe.evaluate.suite and recipe.evaluate.suite.model_copy(update={"device": str(device)})
        self.teachers = dict(teachers)
        if self.suite is not None:
            untrained = {name: settings for name, settings in self.suite.teachers.items() if name not in teachers}
            self.teachers |= self.suite.model_copy(update={"teachers": untrained}).load_teachers()

    def check(self, config: NetworkConfig, network: Network) -> None:
        """Raises UserError with all that the suite lacks: data, rows, a text encoder, a mask decoder. Computes nothing."""
        if self.suite is None:
            return
        try:
            prepare(self.suite, self.suite.bench(Model(config, copy.deepcopy(network)), self.teachers))
        except UserError as error:
            raise UserError(*(f"evaluate.suite.{problem}" for problem in error.problems)) from None

    def state_dict(self) -> dict[str, Any]:
        """For state.json of a checkpoint."""
        return {"suite": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From what `state_dict` returned."""
        self.done = state["suite"]

    def measure(self, step: int, config: NetworkConfig, exported: Network, context: Context) -> None:
        """Measures into evaluations/ and metrics.jsonl; the processes share the images out, and the first one writes.

        exported: the network as it is exported; it is copied, since a `Model` is frozen. The run's random numbers stay as they are.
        Raises StopAskedError, with nothing written, where a stop is asked for meanwhile.
        """
        assert self.suite is not None
        log, stop = context.log, context.stop
        start = time.perf_counter()
        calibrated = {name for stage in context.stages if stage.start < max(step, 1) for name in stage.teachers}
        network = copy.deepcopy(exported)
        network.student.fuse_attention(True)  # as in a model that is loaded, whatever is quicker in training

        def watch(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
            for item in log.watch(items, title, total):
                stop.check()
                yield item

        with torch.random.fork_rng(), log.phase(f"step {step}: evaluating {', '.join(self.suite.evaluations)}"):
            protocol = agreement_protocol(context.task, calibrated)
            bench = self.suite.bench(Model(config, network), self.teachers, watch, protocol, context.processes)
            results = run_suite(self.suite, bench)
        context.processes.first_does(lambda: self._write(step, results, context, time.perf_counter() - start))
        self._is_first = False

    def _write(self, step: int, results: Mapping[str, Result], context: Context, seconds: float) -> None:
        folder, log = context.folder, context.log
        for name, result in results.items():
            folder.write(f"evaluations/step_{step:09d}/{name}.json", json.dumps({"step": step} | plain(result), indent=1) + "\n")
        headlines = list(scores(results))
        names = [f"eval/{score.evaluation}/{score.model}/{score.metric.name}" for score in headlines]
        log.record({"step": step} | {name: score.value for name, score in zip(names, headlines, strict=True)})
        log.say(f"suite at step {step} ({seconds:.1f} s): {'; '.join(_in_brief(results, headlines))}")
        for name, result in results.items():
            if self._is_first and (warning := floor_warning(result, "teacher/")):  # a student may yet learn
                log.warn(f"{name}: {warning}")
            for note in result.notes:
                if note.startswith("warning: "):
                    log.warn(f"{name}: {note.removeprefix('warning: ')}")


class SuiteHook:
    """Runs a `PeriodicSuite` during training, on the network as it is exported; a hook of the trainer."""

    def __init__(self, context: Context, suite: PeriodicSuite, export: Callable[[], Network]):
        """export: the network with averaged weights and heads that predict raw teacher features (`Saving.folded_network`)."""
        self.context, self.suite, self.export = context, suite, export

    def due(self, step: int, stopping: bool) -> bool:
        """Whether the suite is to be run at `step`: every multiple of its period, 0 included, and the end; once; not when stopping."""
        context, suite = self.context, self.suite
        if stopping or suite.suite is None or step == suite.done or context.calibrated_stage is None:
            return False
        evaluate = context.recipe.evaluate
        return context.is_due(step, evaluate.suite_every or evaluate.every)

    def run(self, step: int) -> None:
        """All processes measure. Raises StopAskedError, with nothing written, where a stop is asked for meanwhile."""
        context = self.context
        with context.clock.paused():
            self.suite.measure(step, context.config, self.export(), context)
        self.suite.done = step


def scores(results: Mapping[str, Result]) -> Iterator[Score]:
    """Every headline number."""
    for name, result in results.items():
        for metric in result.metrics:
            if metric.headline:
                yield from (Score(name, metric, model, row[metric.name]) for model, row in result.rows.items() if metric.name in row)


def _in_brief(results: Mapping[str, Result], headlines: list[Score]) -> Iterator[str]:
    """`k-NN k=20 student 87.1 teacher/dino 95.4` for each evaluation: its first column, the best of the student and of the teachers."""
    for name, result in results.items():
        metric = next((metric for metric in result.metrics if any(score[:2] == (name, metric) for score in headlines)), None)
        if metric is None:
            continue
        best = max if metric.better != "lower" else min
        column = [score for score in headlines if score[:2] == (name, metric)]
        groups = [[score for score in column if score.model.startswith("teacher/") is taught] for taught in (False, True)]
        shown = [best(group, key=lambda score: score.value) for group in groups if group]
        yield f"{name} {metric.title} " + " ".join(f"{score.model} {score.value:.{1 if metric.unit == '%' else 3}f}" for score in shown)
