"""Activation checkpointing: modules that are computed again in the backward pass, for less memory and the same numbers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`, whose activations are computed again in the backward pass; module: what `function` runs.

    Random numbers are not restored, as students draw none but their samples' own. BatchNorms follow the first pass alone.
    """

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _statistics_kept(module)

    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorms normalise by the batch and follow it in copies of their running statistics, which are then forgotten."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    statistics = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, statistics, strict=True):
        for name, value in buffers.items():
            setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, statistics, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value)


class _Checkpointed(nn.Module):
    def forward(self, *inputs: Any) -> Any:
        """As of the class beside it; computed again in the backward pass of training."""
        if not self.training or not torch.is_grad_enabled():
            return super().forward(*inputs)  # pyright: ignore[reportAttributeAccessIssue]
        return checkpointed(self, super().forward, *inputs)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Checkpointed{kind.__name__}", (_Checkpointed, kind), {})


def checkpoint_modules(modules: Iterable[nn.Module]) -> None:
    """Makes each of these modules, none within another, compute again; they keep their parameters, names and types (as subclasses)."""
    for module in modules:
        module.__class__ = _checkpointed(type(module))
