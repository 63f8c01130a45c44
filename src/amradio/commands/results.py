"""Results of evaluations as one table: rows are models, columns metrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..evaluation.base import Metric, Result
from .tables import print_table, width

BEST, NOTHING = "*", "-"
TITLE = f"Evaluation ({BEST} best of its column)"
SPACING = 3
"""Characters between two columns."""


class Column(NamedTuple):
    """A metric of one evaluation."""

    title: str
    metric: Metric
    values: Mapping[str, float]
    """By model."""
    floor: float | None


def print_results(results: Mapping[str, Result]) -> None:
    """Prints one table of the headline metrics of all evaluations, then agreement by size where it was measured, then every note.

    The best model of a column is marked with *. Below the models stand the gaps in points (hundredths of a cosine) and the floors.
    What is too wide for a line is set below, as another table.
    """
    columns = list(headline_columns(results))
    names = sorted({name for column in columns for name in column.values}, key=_order)
    title = TITLE
    while columns:
        count = next(count for count in range(len(columns), 0, -1) if count == 1 or _width(*_table(columns[:count], names)) <= width())
        print_table(title, *_table(columns[:count], names))
        title, columns = "", columns[count:]
    for name, result in results.items():
        _print_by_size(name, result)
    for name, result in results.items():
        counts = ", ".join(f"{count:,} {what}" for what, count in result.counts.items() if count or what != "broken")
        print(f"{name}: {counts}; {result.seconds:.1f} s" + "".join(f"; {note}" for note in result.notes))


def _width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that a table takes."""
    columns = zip(headings, *rows, strict=True)
    return sum(max(len(line) for cell in column for line in cell.split("\n")) + SPACING for column in columns)


def _table(columns: Sequence[Column], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows): models, gaps, floors."""
    cells = [[name, *(_cell(column, name) for column in columns)] for name in names if any(name in column.values for column in columns)]
    for title, pair in _gaps(names):
        gaps = [_gap(column, *pair) for column in columns]
        cells += [[title, *gaps]] if set(gaps) != {NOTHING} else []
    if any(column.floor is not None for column in columns):
        cells.append(["floor", *(NOTHING if column.floor is None else _number(column.floor, column.metric) for column in columns)])
    return ["model", *(column.title for column in columns)], cells


def headline_columns(results: Mapping[str, Result]) -> list[Column]:
    """The columns of the table; those without a value are left out."""
    found = []
    for name, result in results.items():
        for metric in result.metrics:
            values = {model: row[metric.name] for model, row in result.rows.items() if metric.name in row}
            if metric.headline and values:
                unit = " %" if metric.unit == "%" else ""
                found.append(Column(f"{name}\n{metric.name}{unit}", metric, values, result.floors.get(metric.name)))
    return found


def best_of(column: Column) -> list[str]:
    """The models with the best value; none where no direction is better."""
    if column.metric.better is None:
        return []
    best = (max if column.metric.better == "higher" else min)(column.values.values())
    return [model for model, value in column.values.items() if value == best]


def gap(column: Column, student: str, teachers: Sequence[str]) -> float | None:
    """Student minus the best of the teachers, in points; None where one has no value or the column has no points."""
    found = [column.values[name] for name in teachers if name in column.values]
    if column.metric.unit == "" or column.metric.better is None or student not in column.values or not found:
        return None
    best = (max if column.metric.better == "higher" else min)(found)
    return (column.values[student] - best) * (100 if column.metric.unit == "cos" else 1)


def _gaps(names: Sequence[str]) -> list[tuple[str, tuple[str, list[str]]]]:
    """(title, (student's row, teachers' rows)): the backbone against the best teacher, each head against its own."""
    teachers = [name for name in names if name.startswith("teacher/")]
    found = [("gap to best teacher", ("student", teachers))] if "student" in names and teachers else []
    heads = [name.removeprefix("student/") for name in names if name.startswith("student/")]
    return found + [(f"gap {head}", (f"student/{head}", [f"teacher/{head}"])) for head in heads if f"teacher/{head}" in teachers]


def _gap(column: Column, student: str, teachers: Sequence[str]) -> str:
    found = gap(column, student, teachers)
    return NOTHING if found is None else f"{found:+.1f}"


def _cell(column: Column, name: str) -> str:
    if name not in column.values:
        return NOTHING
    text = _number(column.values[name], column.metric)
    return (BEST if name in best_of(column) and len(column.values) > 1 else "") + text


def _number(value: float, metric: Metric) -> str:
    if metric.unit == "%":
        return f"{value:.1f}"
    return f"{value:.3f}" if metric.unit == "cos" else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _order(name: str) -> tuple[int, str]:
    """The student, its heads, the teachers."""
    return (2 if name.startswith("teacher/") else "/" in name, name)


def _print_by_size(name: str, result: Result) -> None:
    by_size = result.details.get("by size", {})
    sizes = list(dict.fromkeys(size for values in by_size.values() for size in values))
    if len(sizes) < 2:
        return
    rows = []
    for model, values in by_size.items():
        for metric in (metric for metric in result.metrics if metric.headline):
            if any(metric.name in each for each in values.values()):
                cells = (f"{values[size][metric.name]:.3f}" if metric.name in values.get(size, {}) else "-" for size in sizes)
                rows.append((f"{model} {metric.name}", *cells))
    print_table(f"{name} by px of the student's view", ("what", *(f"{size} px" for size in sizes)), rows)
