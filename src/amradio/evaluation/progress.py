"""How long work still takes, for those who look on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

Item = TypeVar("Item")
Progress = Callable[[Iterable[Item], str, int], Iterator[Item]]
"""(items, what is done, how many there are) -> the same items."""
Phase = Callable[[str], AbstractContextManager[None]]
"""(what is about to be done) -> opened while it is done."""


def silent(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:  # noqa: ARG001 - the signature of a bar
    """No bar."""
    return iter(items)


def unannounced(title: str) -> AbstractContextManager[None]:
    """No line."""
    del title
    return nullcontext()
