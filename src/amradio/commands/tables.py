"""Tables on the terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def width() -> int:
    """Characters a line: of the terminal, or what a page takes where there is none."""
    console = Console()
    return console.width if console.is_terminal else 120


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; columns whose cells are all numbers are set flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(160, console.width))
    console.print(table)


def _is_number(cell: str) -> bool:
    digits = cell.replace(",", "").replace("%", "").replace(".", "", 1).strip().lstrip("*!-+").rstrip("+")  # 512+: an input size
    return cell.strip() in ("", "-") or digits.isdigit()
