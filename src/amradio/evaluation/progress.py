"""How long work still takes, for those who look on."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Progress = Callable[[Iterable[Item], str, int], Iterator[Item]]
"""(items, what is done, how many there are) -> the same items."""


def silent(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:  # noqa: ARG001 - the signature of a bar
    """No bar."""
    return iter(items)
