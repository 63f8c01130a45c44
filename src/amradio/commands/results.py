"""Results of evaluations as one table: rows are models, columns metrics."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..console import INDENT, print_text
from ..console import columns as line_width
from ..evaluation.base import Metric, Result, below_floor, floor_warning
from ..evaluation.inputs import describe
from ..evaluation.published import Comparison
from ..evaluation.stored import counted
from .tables import natural_width, print_table

BEST, BELOW, NOTHING = "*", "!", "-"
"""Marks of cells; plain ASCII, so that every console shows them."""


class Column(NamedTuple):
    """A metric of one evaluation."""

    title: str
    metric: Metric
    values: Mapping[str, float]
    """By model."""
    floor: float | None
    below: Sequence[str] = ()
    """Models that are not better than the floor, or than their own."""


class InputColumn(NamedTuple):
    """What the models received."""

    title: str
    sizes: Mapping[str, str]
    """px by model, as `inputs.describe` puts it."""


def print_results(results: Mapping[str, Result]) -> None:
    """Prints one table of the headline metrics of all evaluations, then agreement by size where it was measured, then every note.

    The best model of a column is marked with *, a value that is not better than the floor with !, and a warning says what that means. Each
    row names the px of its input, once where it is the same in all evaluations. Below the models stand the gaps in points (hundredths of a
    cosine) and the floors. What is too wide for a line is set below, as another table.
    """
    columns = list(headline_columns(results))
    names = sorted({name for column in columns for name in column.values}, key=_order)
    inputs = {name: {row: describe(sizes) for row, sizes in result.inputs.items()} for name, result in results.items()}
    title, legend = "Evaluation", _legend(columns, inputs)
    while columns:
        count = next(
            count
            for count in range(len(columns), 0, -1)
            if count == 1 or natural_width(*_table(columns[:count], names, inputs)) <= line_width()
        )
        print_table(title, *_table(columns[:count], names, inputs))
        title, columns = "", columns[count:]
    print_text(legend)
    for name, result in results.items():
        if warning := floor_warning(result):
            print_text(f"warning: {name}: {warning}", "", INDENT)
    for name, result in results.items():
        _print_by_size(name, result)
    for name, result in results.items():
        print_text(f"{name}: {counted(result.counts)}; {result.seconds:.1f} s" + "".join(f"; {note}" for note in result.notes), "", INDENT)


def print_published(rows: Sequence[Comparison]) -> None:
    """Prints the measured numbers beside those that were published for other models, with their sources; nothing where there are none."""
    if not rows:
        return
    headings = ("benchmark", "row", "measured", "published", "difference", "of", "source")
    cells = [
        (row.evaluation, row.name, f"{row.measured:.1f}", f"{row.value:.1f}", f"{row.measured - row.value:+.1f}", *row.published[:2])
        for row in rows
    ]
    print_table("Beside published numbers, in % and points", headings, cells)


def _legend(columns: Sequence[Column], inputs: Mapping[str, Mapping[str, str]]) -> str:
    """What the marks mean, in one line."""
    parts = [f"{BEST} best of its column"]
    if any(column.below for column in columns):
        parts.append(f"{BELOW} not better than the floor")
    varied = any(sizes.endswith("+") for rows in inputs.values() for sizes in rows.values())
    return "; ".join([*parts, "px: of the input" + (", + where that is the short side" if varied else "")])


def _table(columns: Sequence[Column], names: Sequence[str], inputs: Mapping[str, Mapping[str, str]]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows): models, gaps, floors."""
    laid_out = _with_inputs(columns, inputs)
    cells = [[name, *(_cell(column, name) for column in laid_out)] for name in names if any(name in column.values for column in columns)]
    for title, pair in _gaps(names):
        gaps = [NOTHING if isinstance(column, InputColumn) else _gap(column, *pair) for column in laid_out]
        cells += [[title, *gaps]] if set(gaps) != {NOTHING} else []
    if any(column.floor is not None for column in columns):
        cells.append(["floor", *(_floor(column) for column in laid_out)])
    return ["model", *(column.title for column in laid_out)], cells


def _with_inputs(columns: Sequence[Column], inputs: Mapping[str, Mapping[str, str]]) -> list[Column | InputColumn]:
    """The columns with one of px in front where every model has one input size in all of these evaluations, else one for each of them."""
    names = list(dict.fromkeys(column.title.split("\n")[0] for column in columns))
    shown = {name: inputs[name] for name in names if inputs.get(name)}
    together: dict[str, set[str]] = {}
    for rows in shown.values():
        for row, sizes in rows.items():
            together.setdefault(row, set()).add(sizes)
    if all(len(sizes) == 1 for sizes in together.values()):
        common = [InputColumn("px", {row: min(sizes) for row, sizes in together.items()})] if together else []
        return [*common, *columns]
    table_columns: list[Column | InputColumn] = []
    for name in names:
        table_columns += [InputColumn(f"{name}\npx", shown[name])] if name in shown else []
        table_columns += [column for column in columns if column.title.split("\n")[0] == name]
    return table_columns


def headline_columns(results: Mapping[str, Result]) -> list[Column]:
    """The columns of the table; those without a value are left out."""
    columns = []
    for name, result in results.items():
        for metric in result.metrics:
            values = {model: row[metric.name] for model, row in result.rows.items() if metric.name in row}
            if metric.headline and values:
                unit = " %" if metric.unit == "%" else ""
                below = below_floor(result, metric)
                columns.append(Column(f"{name}\n{metric.title}{unit}", metric, values, result.floors.get(metric.name), below))
    return columns


def best_of(column: Column) -> list[str]:
    """The models with the best value; none where no direction is better."""
    if column.metric.better is None:
        return []
    best = (max if column.metric.better == "higher" else min)(column.values.values())
    return [model for model, value in column.values.items() if value == best]


def gap(column: Column, student: str, teachers: Sequence[str]) -> float | None:
    """Student minus the best of the teachers, in points; None where one has no value or the column has no points."""
    scores = [column.values[name] for name in teachers if name in column.values]
    if column.metric.unit == "" or column.metric.better is None or student not in column.values or not scores:
        return None
    best = (max if column.metric.better == "higher" else min)(scores)
    return (column.values[student] - best) * (100 if column.metric.unit == "cos" else 1)


def _gaps(names: Sequence[str]) -> list[tuple[str, tuple[str, list[str]]]]:
    """(title, (student's row, teachers' rows)): the backbone against the best teacher, each head against its own."""
    teachers = [name for name in names if name.startswith("teacher/")]
    gaps = [("gap to best teacher", ("student", teachers))] if "student" in names and teachers else []
    heads = [name.removeprefix("student/") for name in names if name.startswith("student/")]
    return gaps + [(f"gap {head}", (f"student/{head}", [f"teacher/{head}"])) for head in heads if f"teacher/{head}" in teachers]


def _gap(column: Column, student: str, teachers: Sequence[str]) -> str:
    difference = gap(column, student, teachers)
    return NOTHING if difference is None else f"{difference:+.1f}"


def _cell(column: Column | InputColumn, name: str) -> str:
    if isinstance(column, InputColumn):
        return column.sizes.get(name, NOTHING)
    if name not in column.values:
        return NOTHING
    best = BEST if name in best_of(column) and len(column.values) > 1 else ""
    return best + (BELOW if name in column.below else "") + number_text(column.values[name], column.metric.unit)


def _floor(column: Column | InputColumn) -> str:
    if isinstance(column, InputColumn) or column.floor is None:
        return NOTHING
    return number_text(column.floor, column.metric.unit)


def number_text(value: float | None, unit: str) -> str:
    """A number with as many digits as its unit (%, cos or another) is worth; `-` for None."""
    if value is None:
        return NOTHING
    if unit == "%":
        return f"{value:.1f}"
    return f"{value:.3f}" if unit == "cos" else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _order(name: str) -> tuple[int, str]:
    """The student, its heads, the teachers."""
    return (2 if name.startswith("teacher/") else "/" in name, name)


def _print_by_size(name: str, result: Result) -> None:
    by_size = result.details.get("by_size", {})
    sizes = list(dict.fromkeys(size for values in by_size.values() for size in values))
    if len(sizes) < 2:
        return
    rows = []
    for model, values in by_size.items():
        for metric in (metric for metric in result.metrics if metric.headline):
            if any(metric.name in row for row in values.values()):
                cells = (f"{values[size][metric.name]:.3f}" if metric.name in values.get(size, {}) else "-" for size in sizes)
                rows.append((f"{model} {metric.title}", *cells))
    print_table(f"{name} by px of the student's view", ("what", *(f"{size} px" for size in sizes)), rows)
