"""Processes and devices: what `torchrun` started, and what one process does alone."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from ..errors import UserError
from .batch_norm import share_statistics

T = TypeVar("T")
PEER_FAILURE = re.compile(r"gloo[/\\]|nccl|connection (reset|closed|refused)|by peer|broken pipe|socket", re.IGNORECASE)
"""In the text of errors that torch.distributed raises when a process cannot reach another one; most are plain RuntimeErrors."""
PATIENCE = timedelta(days=7)
"""How long processes wait for what the first one does alone (checkpoints, evaluations)."""


class Processes:
    """The processes of a run. Started by `torchrun` there are several (gloo on the CPU, nccl on GPUs), else one."""

    def __init__(self, device: torch.device):
        """device: as `find_device` found it."""
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._owns_group = self.world_size > 1 and not dist.is_initialized()
        if self._owns_group:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        # Others wait here for long work of the first one: on gloo, since nccl takes ten minutes without a word for a failure.
        self._patient: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world_size > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> None:
        """Sums a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def copy_from_first(self, tensor: Tensor) -> None:
        """Makes a tensor that of the first process, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)

    def gather_rows(self, rows: Tensor) -> tuple[Tensor, slice]:
        """Rows [B, D] -> (the rows of all processes [N * B, D], which of them are this one's).

        Gradients of the rows are those of all processes' losses together. All processes must call it, with as many rows each, in one order.
        """
        if self.world_size == 1:
            return rows, slice(None)
        local = slice(self.rank * len(rows), (self.rank + 1) * len(rows))
        return cast(Tensor, _Gathered.apply(rows, local)), local

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over all processes, in place."""
        self.add_up(tensor)
        return tensor.div_(self.world_size)

    def share_batch_statistics(self, module: nn.Module) -> None:
        """Makes the BatchNorms within a module normalise in training over the batch of all processes, in place.

        Their running statistics are then the same on all processes, whichever of them evaluates, saves or resumes the model.
        """
        if self.world_size > 1 and self.device.type == "cuda":
            convert_sync_batchnorm(module)
        elif self.world_size > 1:
            share_statistics(module)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process; all must call it."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def gather(self, value: T) -> list[T]:
        """The value of every process, in rank order, on all processes."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_patiently(self, value: T) -> list[T]:
        """As `gather`, for as long as the others take, and through the CPU: tensors that are sent must be there."""
        if self.world_size == 1:
            return [value]
        gathered: list[T] = [value] * self.world_size
        dist.all_gather_object(gathered, value, group=self._patient)
        return gathered

    def first_does(self, work: Callable[[], T]) -> T:
        """Process 0 does `work`, for as long as it takes; all get its result, or its UserError."""
        result: list[object] = [None, None]
        if self.is_first:
            try:
                result[0] = work()
            except UserError as error:
                result[1] = list(error.problems)
        if self.world_size > 1:
            dist.broadcast_object_list(result, src=0, group=self._patient)
        if result[1]:
            raise UserError(*result[1], on_all_processes=True)  # type: ignore[misc]
        return result[0]  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the process group where this object began it."""
        if self._owns_group and dist.is_initialized():
            with suppress(RuntimeError):  # where another process has ended already
                dist.destroy_process_group()


class _Gathered(torch.autograd.Function):
    """(rows, which of the result are these) -> the rows of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, local: slice) -> Tensor:
        ctx.local = local
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole[ctx.local], None


@contextmanager
def failures_of_peers() -> Iterator[None]:
    """Turns what gloo and nccl raise when another process of the run has ended into a UserError."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        if not isinstance(error, dist.DistError) and not PEER_FAILURE.search(text):
            raise
        raise UserError(
            f"another process of this run ended, or cannot be reached any more ({text.strip().splitlines()[-1][-120:]}); its own message, "
            "if it could print one, stands beside this one. The last checkpoint is whole: run the same command to resume"
        ) from None
