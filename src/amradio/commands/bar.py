"""A progress bar, where somebody looks."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def bar(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """The same items; on a terminal with a bar of `total`, which goes when they are through."""
    console = Console()
    if not console.is_terminal:
        return iter(items)
    return iter(track(items, title, total=total, console=console, transient=True))
