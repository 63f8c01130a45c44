"""`amradio compare`: runs side by side on the terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console import print_text
from ..errors import UserError, brief
from ..report import Row, Run, changed_keys, final_rows, read_runs
from .results import BELOW, BEST, NOTHING, number_text
from .tables import print_table


def compare(*paths: str | Path, as_json: bool = False) -> dict[str, Any]:
    """Prints how runs differ: the keys of their recipes, and their last numbers with floors; returns the same as JSON takes it.

    paths: two run folders or more, finished or not. as_json: print the result as JSON instead of tables. Raises UserError where one is no
    run folder, or a file in it is damaged.
    """
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
    for sentence in unfinished:
        print_text(f"warning: {sentence}")


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
