"""Tables on the terminal."""

import textwrap
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

SPACING = 3
"""Characters between two columns."""


def width() -> int:
    """Characters a line: of the terminal, or what a page takes where there is none."""
    console = Console()
    return console.width if console.is_terminal else 120


def natural_width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that a table takes when nothing folds."""
    columns = zip(headings, *rows, strict=True)
    return sum(max(len(line) for cell in column for line in cell.split("\n")) + SPACING for column in columns)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; columns whose cells are all numbers are set flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="ignore", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(160, console.width))
    if console.is_terminal and natural_width(columns, cells) > console.width:
        _print_rows(title, columns, cells, console.width)
    else:
        console.print(table)


def _print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> None:
    """A table that is too wide for its terminal: each row as its first cell, and the others below it with their headings; nothing folds."""
    print(f"{title}\n" if title else "")
    for row in rows:
        print(row[0])
        pairs = [
            f"{' '.join(heading.split())} {cell}"
            for heading, cell in zip(columns[1:], row[1:], strict=True)
            if cell.strip() not in ("", "-")
        ]
        indent = " " * 4
        if pairs:
            print(
                textwrap.fill(
                    ", ".join(pairs), width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
                )
            )
    print()


def _is_number(cell: str) -> bool:
    digits = cell.replace(",", "").replace("%", "").replace(".", "", 1).strip().lstrip("*!-+").rstrip("+")  # 512+: an input size
    return cell.strip() in ("", "-") or digits.isdigit()
