"""How a module is trained on the processes of a run: one interface, an implementation for each strategy.

What the training loop and the method need to know of a strategy stands here: wrapping, accumulation without exchange, parameters that a
step does not use, clipping, and the full state for a checkpoint.
"""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import Processes


class Parallel:
    """One process: the module as it is. Other strategies override what differs."""

    def __init__(self, module: nn.Module):
        """module: on the device of this process."""
        self.module = module
        self._parameters = list(module.parameters())  # walking over all modules in each step costs half a millisecond

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """The module's forward pass."""
        return self.module(*positional, **named)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one piece of a step. last: whether it is the last one, with which gradients are exchanged."""
        del last
        return nullcontext()

    def complete(self, loss: Tensor, unused: Iterable[nn.Parameter]) -> Tensor:
        """The loss, with a gradient for the parameters in `unused` where the strategy needs one for every parameter."""
        del unused
        return loss

    def clip(self, largest: float) -> Tensor:
        """Scales the gradients so that their norm over all parameters is at most `largest`; returns the norm before, float32 []."""
        return nn.utils.clip_grad_norm_(self._parameters, largest)

    def full_state(self) -> dict[str, Tensor]:
        """The state dict of the whole module, on every process that writes."""
        return self.module.state_dict()


class DataParallel(Parallel):
    """Every process holds the module, and gradients are averaged (DDP)."""

    def __init__(self, module: nn.Module, processes: Processes, one_pass: bool):
        """one_pass: see `parallelize`."""
        super().__init__(module)
        device_ids = [processes.device.index] if processes.device.type == "cuda" else None
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch 2.7 knows no other name for broadcast_buffers
            self.wrapped = DistributedDataParallel(module, device_ids=device_ids, broadcast_buffers=False, static_graph=one_pass)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """The wrapped module's forward pass."""
        return self.wrapped(*positional, **named)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, with the last piece."""
        return nullcontext() if last else self.wrapped.no_sync()

    def complete(self, loss: Tensor, unused: Iterable[nn.Parameter]) -> Tensor:
        """Adds zero times every unused parameter: DDP waits for a gradient of each."""
        return loss + sum((parameter.sum() * 0 for parameter in unused), start=torch.zeros_like(loss))


def parallelize(module: nn.Module, processes: Processes, one_pass: bool = False) -> Parallel:
    """The strategy for these processes.

    one_pass: a step has one forward and backward pass, always with a gradient for the same parameters, so that DDP may take its graph as
    static; with several pieces a step it may not (torch 2.15 ends with an internal error).
    """
    return DataParallel(module, processes, one_pass) if processes.world_size > 1 else Parallel(module)
