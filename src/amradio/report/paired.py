"""Whether distillation helps: runs against the student before it was trained, or against other runs, in pairs of one seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

from ..errors import UserError
from .runs import Run

POINTS = 1.0
"""Points (of %, or hundredths of a cosine) that a difference must reach on average to count; fixed before anything was measured. Twice the
standard error of an accuracy of 80 % over 5,000 images."""
FEW_SEEDS = 3
"""Seeds below which a warning says that a gain may be chance."""


class Baseline(NamedTuple):
    """What a run is compared with: the newest results of another run, or the run's own at step 0."""

    name: str
    results: Mapping[str, Mapping[str, Any]]
    """{evaluation: result}."""


@dataclass(frozen=True)
class PairedRow:
    """One number of a student, over all pairs."""

    evaluation: str
    name: str
    """`top-1, student/clip`."""
    unit: str
    """% or cos."""
    before: Sequence[float]
    """Of the baseline, for each pair."""
    after: Sequence[float]
    """Of the run."""
    gains: Sequence[float]
    """Points that the run is better by; negative where it is worse."""
    teacher: float | None
    """Mean over the runs of the head's teacher, of the best teacher for the backbone; None where none was measured."""

    @property
    def verdict(self) -> str:
        """better or worse where the mean gain reaches `POINTS` and all pairs agree in direction; else `no difference`."""
        if mean(self.gains) >= POINTS and min(self.gains) > 0:
            return "better"
        return "worse" if mean(self.gains) <= -POINTS and max(self.gains) < 0 else "no difference"


def pair_up(runs: Sequence[Run], others: Sequence[Run]) -> list[Baseline]:
    """The baseline of each run: of `others` the one with its seed, or its own step 0 where there are no others.

    Raises UserError where a run has none, or more than one.
    """
    if not others:
        missing = [run.name for run in runs if not _results_at(run, 0)]
        if missing:
            raise UserError(
                f"--against scratch: {', '.join(missing)}: no evaluation of step 0 is recorded; set evaluate.suite in the recipe, which "
                "measures the student before its first step as well"
            )
        return [Baseline(f"{run.name} at step 0", _results_at(run, 0)) for run in runs]
    problems, baselines = [], []
    for run in runs:
        seed = run.config.get("seed")
        alike = [other for other in others if other.config.get("seed") == seed]
        if len(alike) != 1:
            problems.append(f"--against: {len(alike)} runs have seed {seed}, that of {run.name}; give exactly one for each seed")
        else:
            baselines.append(Baseline(alike[0].name, {name: result for name, (_, result) in alike[0].latest().items()}))
    if problems:
        raise UserError(*problems)
    return baselines


def paired_rows(runs: Sequence[Run], baselines: Sequence[Baseline]) -> list[PairedRow]:
    """Every headline number with a direction, in % or cosines, that all runs and baselines have. Raises UserError where there is none."""
    after = [{name: result for name, (_, result) in run.latest().items()} for run in runs]
    rows = list(_rows(after, [baseline.results for baseline in baselines]))
    if not rows:
        raise UserError("--against: no evaluation has been measured of all runs and of what they are compared with; evaluate them alike")
    return rows


def sentence(rows: Sequence[PairedRow], against: str) -> str:
    """`Distillation helps here` where at least half of the numbers are better, and more better than worse (`PairedRow.verdict`)."""
    better, worse = (sum(row.verdict == verdict for row in rows) for verdict in ("better", "worse"))
    helps = 2 * better >= len(rows) and better > worse
    return (
        f"Distillation {'helps' if helps else 'does not help'} here: against {against}, {better} of {len(rows)} numbers are better and "
        f"{worse} worse (by {POINTS:g} point or more on average, and in the same direction for every seed)."
    )


def _results_at(run: Run, step: int) -> Mapping[str, Mapping[str, Any]]:
    return {name: result for name, result in run.evaluations.get(step, {}).items() if "metrics" in result}


def _rows(after: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> Iterator[PairedRow]:
    everywhere = [*after, *before]
    for name, first in after[0].items():
        if not all(name in results for results in everywhere):
            continue
        for metric in (metric for metric in first.get("metrics", ()) if metric["headline"] and metric["better"] and metric["unit"]):
            for model in (model for model in first["rows"] if not model.startswith("teacher/")):
                columns = [[results[name]["rows"].get(model, {}).get(metric["name"]) for results in side] for side in (before, after)]
                if any(value is None for column in columns for value in column):
                    continue
                scale = (100 if metric["unit"] == "cos" else 1) * (-1 if metric["better"] == "lower" else 1)
                gains = [scale * (new - old) for old, new in zip(*columns, strict=True)]
                teacher = _teacher(model, metric, [results[name]["rows"] for results in after])
                yield PairedRow(name, f"{metric['title']}, {model}", metric["unit"], columns[0], columns[1], gains, teacher)


def _teacher(model: str, metric: Mapping[str, Any], rows: Sequence[Mapping[str, Mapping[str, float]]]) -> float | None:
    head = model.partition("/")[2]
    best = max if metric["better"] == "higher" else min
    values = []
    for models in rows:
        teachers = [
            scores[metric["name"]]
            for name, scores in models.items()
            if metric["name"] in scores and (name == f"teacher/{head}" if head else name.startswith("teacher/"))
        ]
        values += [best(teachers)] if teachers else []
    return mean(values) if values else None
