"""torch.compile for modules that see images of several sizes in turn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch._dynamo
from torch import nn

GRAPHS = 256
"""Of one module at most; torch's own limit of 8 is fewer than some recipes have sizes, and what is beyond it runs as it is."""
BACKEND: str | Callable[..., Any] = "inductor"

M = TypeVar("M", bound=nn.Module)


def compile_in_place(module: nn.Module) -> None:
    """Compiles the forward pass of `module`: a graph of fixed shapes for each size of its input, used again whenever that size returns."""
    module.compile(dynamic=False, backend=BACKEND)


def compiled(module: M) -> M:
    """As `compile_in_place`, of a module beside `module`, which stays as it is and shares its weights."""
    return cast(M, torch.compile(module, dynamic=False, backend=BACKEND))


@contextmanager
def many_graphs() -> Iterator[None]:
    """Lifts torch's limits on the graphs of a module to `GRAPHS` while a run lasts."""
    with torch._dynamo.config.patch(recompile_limit=GRAPHS):
        yield
