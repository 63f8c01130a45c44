"""Runs side by side: the keys in which their recipes differ, and their last numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..distillation.metrics import HEADLINE
from ..engine.folder import leaves
from .runs import Run

NOT_SET = "not set"
HELD_OUT_TITLE = "held out"


@dataclass(frozen=True)
class Row:
    """One number of each run."""

    group: str
    """`training`, `held out`, or the name of an evaluation."""
    name: str
    """What is measured, of which model: `top-1, student/clip`."""
    unit: str
    """%, cos, px, ..., empty for a plain number."""
    better: str | None
    """higher, lower, or None where neither is."""
    values: Sequence[float | None]
    """Of each run; None where it was not measured."""
    floors: Sequence[float | None]
    """What a trivial answer scores, for each run; None where there is no floor."""

    @property
    def best(self) -> list[int]:
        """The numbers of the runs with the best value; none where all are equal, or neither direction is better."""
        known = [value for value in self.values if value is not None]
        if self.better is None or len(set(known)) < 2:
            return []
        wanted = max(known) if self.better == "higher" else min(known)
        return [number for number, value in enumerate(self.values) if value == wanted]

    @property
    def below(self) -> list[int]:
        """The numbers of the runs that are not better than the floor."""
        sign = -1 if self.better == "lower" else 1
        return [
            number
            for number, (value, floor) in enumerate(zip(self.values, self.floors, strict=True))
            if self.better is not None and value is not None and floor is not None and sign * value <= sign * floor
        ]


def changed_keys(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """{key: its value in each run} of the keys in which the recipes differ; `out` is left out. A key that is not there is `not set`."""
    trees = [leaves(run.config) for run in runs]
    keys = dict.fromkeys(key for tree in trees for key in tree if key != "out")
    by_key = {key: [tree.get(key, NOT_SET) for tree in trees] for key in keys}
    return {key: values for key, values in by_key.items() if any(value != values[0] for value in values)}


def final_rows(runs: Sequence[Run]) -> list[Row]:
    """The last numbers of all runs: loss and speed, agreement on held-out images, and the headline metrics of all evaluations."""
    return [*_training(runs), *_held_out(runs), *_evaluations(runs)]


def _training(runs: Sequence[Run]) -> Iterator[Row]:
    def of(name: str, summary: Callable[[Sequence[float]], float]) -> list[float | None]:
        return [summary(run.metrics[name].values) if name in run.metrics else None for run in runs]

    none = [None] * len(runs)
    yield Row("training", "steps", "", None, [float(run.step) for run in runs], none)
    rows = (
        Row("training", "loss, last interval", "", None, of("loss", lambda values: values[-1]), none),  # of other recipes not comparable
        Row("training", "images per second, median", "", "higher", of("images_per_second", median), none),
        Row("training", "memory, largest", "GiB", "lower", of("memory_gib", max), none),
    )
    yield from (row for row in rows if any(value is not None for value in row.values))


def _held_out(runs: Sequence[Run]) -> Iterator[Row]:
    tables = [run.held_out()[1] for run in runs]
    for name in dict.fromkeys(name for table in tables for name in table):
        for measure, title, unit, better in ((HEADLINE, "standardized cosine", "cos", "higher"), ("norm_ratio", "norm ratio", "", None)):
            values = [table.get(name, {}).get(measure) for table in tables]
            floors = [0.0 if measure == HEADLINE else None] * len(runs)  # a constant prediction scores about 0
            yield Row(HELD_OUT_TITLE, f"{title}, {name}", unit, better, values, floors)


def _evaluations(runs: Sequence[Run]) -> Iterator[Row]:
    latest = [{name: result for name, (_, result) in run.latest().items()} for run in runs]
    for name in dict.fromkeys(name for by_name in latest for name in by_name):
        results = [by_name.get(name, {}) for by_name in latest]
        metrics = {metric["name"]: metric for result in results for metric in result.get("metrics", ()) if metric["headline"]}
        models = dict.fromkeys(model for result in results for model in result.get("rows", {}))
        for metric in metrics.values():
            for model in models:
                values = [result.get("rows", {}).get(model, {}).get(metric["name"]) for result in results]
                if any(value is not None for value in values):
                    floors = [floor_of(result, model, metric["name"]) for result in results]
                    yield Row(name, f"{metric['title']}, {model}", metric["unit"], metric["better"], values, floors)


def floor_of(result: Mapping[str, Any], model: str, metric: str) -> float | None:
    """What a trivial answer scores beside a model, None where there is no floor. result: as JSON."""
    return result.get("row_floors", {}).get(model, {}).get(metric, result.get("floors", {}).get(metric))
