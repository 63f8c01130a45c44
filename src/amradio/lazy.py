"""Public names that are imported when they are first used, so that reading words needs neither torch nor what is built on it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562).

    package: its `__name__`. homes: for each name the module that defines it, relative to the package (`layers` or `commands.embed`).
    """

    def get(name: str) -> Any:
        if name in homes:
            return getattr(import_module(f".{homes[name]}", package), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get
