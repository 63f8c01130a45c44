"""Tables on the terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..console import INDENT, columns, print_text

SPACING = 3
"""Characters between two columns."""


def natural_width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that a table takes when nothing folds."""
    columns = zip(headings, *rows, strict=True)
    return sum(max(len(line) for cell in column for line in cell.split("\n")) + SPACING for column in columns)


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table in lines of at most `console.columns()` characters; columns whose cells are all numbers are set flush right.

    Where it is too wide, numbers are split into several tables with the same first column, and texts stand below the first cell of their
    row, with their headings. No cell is folded within a word.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if title:
        Console().print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
    if natural_width(headings, cells) <= columns():
        _print_columns(headings, cells)
    elif cells and all(_is_number(cell) for row in cells for cell in row[1:]):
        _print_blocks(headings, cells)
    else:
        _print_rows(headings, cells)


def _print_columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        numeric = all(_is_number(row[index]) for row in rows)
        table.add_column(Text(heading), justify="right" if numeric else "left", overflow="ignore", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))  # a plain string would lose what stands in brackets, as a style
    Console(width=max(columns(), natural_width(headings, rows))).print(table)


def _print_blocks(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As many columns side by side as a line holds, then the next ones, each time behind the first column."""
    start = 1
    while start < len(headings):
        end = start + 1
        while end < len(headings) and natural_width(*_part(headings, rows, start, end + 1)) <= columns():
            end += 1
        _print_columns(*_part(headings, rows, start, end))
        start = end


def _part(headings: Sequence[str], rows: Sequence[Sequence[str]], start: int, end: int) -> tuple[list[str], list[list[str]]]:
    return [headings[0], *headings[start:end]], [[row[0], *row[start:end]] for row in rows]


def _print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row as its first cell, and the others below it: on one line where they are words and numbers, else on one each."""
    print()
    sentences = any(", " in cell for row in rows for cell in row[1:])
    for row in rows:
        pairs = [
            f"{' '.join(heading.split())}: {cell}"
            for heading, cell in zip(headings[1:], row[1:], strict=True)
            if cell.strip() not in ("", "-")
        ]
        if len(headings) == 2:
            print_text(f"{row[0]}: {row[1]}", "", INDENT)
            continue
        print(row[0])
        for text in pairs if sentences else [", ".join(pairs)]:
            print_text(text, INDENT, INDENT * 2 if sentences else INDENT)
    print()


def _is_number(cell: str) -> bool:
    digits = cell.replace(",", "").replace("%", "").replace(".", "", 1).strip().lstrip("*!-+").rstrip("+")  # 512+: an input size
    return cell.strip() in ("", "-") or digits.isdigit()
