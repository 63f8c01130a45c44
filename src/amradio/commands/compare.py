"""`amradio compare`: runs side by side on the terminal."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from ..console import print_text
from ..errors import UserError, brief
from ..report import Row, Run, changed_keys, final_rows, read_runs
from ..report.paired import FEW_SEEDS, POINTS, PairedRow, pair_up, paired_rows, sentence
from .results import BELOW, BEST, NOTHING, number_text
from .tables import print_table

SCRATCH = "scratch"


def compare(*paths: str | Path, against: str | Path | Sequence[str | Path] = (), as_json: bool = False) -> dict[str, Any]:
    """Prints how runs differ: the keys of their recipes, and their last numbers with floors; returns the same as JSON takes it.

    paths: two run folders or more, finished or not. against: print instead whether distillation helps: `scratch`, the same student at step
    0, or run folders, one for each seed of `paths` (of which one is enough here), e.g. of the same student trained on labels. as_json:
    print the result as JSON instead of tables.
    Raises UserError where one is no run folder, or a file in it is damaged.
    """
    if against:
        return _compare_pairs(paths, [against] if isinstance(against, str | Path) else against, as_json)
    if len(paths) < 2:
        raise UserError("compare: found one run; give two run folders or more")
    runs = read_runs(paths)
    keys, rows = changed_keys(runs), final_rows(runs)
    content = {
        "runs": [{"name": run.name, "path": str(run.folder.path), "step": run.step, "num_steps": run.num_steps} for run in runs],
        "changed_keys": keys,
        "rows": [_plain(row) for row in rows],
    }
    if as_json:
        print(json.dumps(content, indent=1))
    else:
        _print(runs, keys, rows)
    return content


def _compare_pairs(paths: Sequence[str | Path], against: Sequence[str | Path], as_json: bool) -> dict[str, Any]:
    if not paths:
        raise UserError("compare: no run is given; give one run folder or more")
    is_scratch = [str(path) for path in against] == [SCRATCH]
    known = read_runs([*paths, *([] if is_scratch else against)])
    runs = known[: len(paths)]
    baselines = pair_up(runs, known[len(paths) :])
    rows = paired_rows(runs, baselines)
    text = sentence(rows, "the same student at step 0" if is_scratch else _about(known[len(paths) :]))
    pairs = [{"run": run.name, "against": other.name, "seed": run.config.get("seed")} for run, other in zip(runs, baselines, strict=True)]
    numbers = [{**asdict(row), "verdict": row.verdict} for row in rows]
    content = {"pairs": pairs, "points": POINTS, "rows": numbers, "sentence": text}
    if as_json:
        print(json.dumps(content, indent=1))
        return content
    print_table("Pairs", ["run", "against", "seed"], [[pair["run"], pair["against"], str(pair["seed"])] for pair in pairs])
    for group in dict.fromkeys(row.evaluation for row in rows):
        members = [row for row in rows if row.evaluation == group]
        print_table("", [group, "before", "after", "gain", "teacher", "verdict"], [_paired_cells(row) for row in members])
    print_text("before, after, teacher: means over the pairs; gain: points, the least and the largest of the pairs in brackets")
    print_text(text)
    if len({pair["seed"] for pair in pairs}) < FEW_SEEDS:
        print_text(f"warning: fewer than {FEW_SEEDS} seeds: how much these numbers vary from seed to seed is not known")
    return content


def _about(others: Sequence[Run]) -> str:
    """What the other runs are, as the sentence names them."""
    kinds = {settings.get("type") for run in others for settings in run.config.get("teachers", {}).values() if settings}
    return "students trained on labels" if kinds == {"labels"} else "the other runs"


def _paired_cells(row: PairedRow) -> list[str]:
    spread = f" ({min(row.gains):+.1f} to {max(row.gains):+.1f})" if len(row.gains) > 1 else ""
    means = [number_text(mean(values), row.unit) for values in (row.before, row.after)]
    title = row.name + (f" ({row.unit})" if row.unit != "cos" else "")
    return [title, *means, f"{mean(row.gains):+.1f}{spread}", number_text(row.teacher, row.unit), row.verdict]


def _plain(row: Row) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in ("group", "name", "unit", "better")}
    return fields | {"values": list(row.values), "floors": list(row.floors), "best": row.best, "below_floor": row.below}


def _print(runs: Sequence[Run], keys: dict[str, list[Any]], rows: Sequence[Row]) -> None:
    names = [run.name for run in runs]
    unfinished = [f"{run.name} is at step {run.step:,} of {run.num_steps:,}" for run in runs if run.step < run.num_steps]
    if keys:
        print_table("Changed keys", ["key", *names], [[key, *(_shown(value) for value in values)] for key, values in keys.items()])
    else:
        print_text("The recipes have the same keys and values.")
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        has_floor = any(floor is not None for row in members for floor in row.floors)
        headings = [group, *names, *(["floor"] if has_floor else [])]
        print_table("", headings, [[_title(row), *_cells(row), *([_floor(row)] if has_floor else [])] for row in members])
    legend = [f"{BEST} best run of its row"] + [f"{BELOW} not better than the floor"] * any(row.below for row in rows)
    print_text("; ".join(legend))
    for line in unfinished:
        print_text(f"warning: {line}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else brief(value)


def _title(row: Row) -> str:
    return row.name + (f" ({row.unit})" if row.unit not in ("", "cos") else "")


def _cells(row: Row) -> list[str]:
    marks = [(BEST if number in row.best else "") + (BELOW if number in row.below else "") for number in range(len(row.values))]
    return [mark + number_text(value, row.unit) for mark, value in zip(marks, row.values, strict=True)]


def _floor(row: Row) -> str:
    texts = list(dict.fromkeys(number_text(floor, row.unit) for floor in row.floors if floor is not None))
    return NOTHING if not texts else texts[0] if len(texts) == 1 else f"{texts[0]}+"
