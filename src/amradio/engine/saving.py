"""Checkpoints of a run: when they are written, over all owners of state, and how a run is filled from its last one."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Generic, Protocol, TypeVar

import pydantic
import torch
from torch import Tensor, nn

from ..config import Settings, validate
from ..errors import UserError
from ..network import load_exactly
from .checkpoint import Checkpoint, Checkpoints
from .distributed import Processes
from .log import Log
from .loop import is_due

Count = Annotated[int, pydantic.Field(ge=0)]


class Progress(Settings):
    """What state.json of a checkpoint says beside its step: how far the run is."""

    num_steps: Count
    """Of the whole run."""
    evaluated: Count | None = None
    """The step at which held-out images were measured last."""
    skipped_images: Count = 0
    """Unreadable images that were met."""


ProgressType = TypeVar("ProgressType", bound=Progress)


class Stateful(Protocol):
    """An owner of state that goes into state.json; its keys are fields of `Progress`."""

    def state_dict(self) -> dict[str, Any]:
        """The state, of JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the owner's keys out of all that state.json holds."""
        ...


class Saving(Generic[ProgressType]):
    """Writes and reads the state of a run; one process writes. A hook. Subclasses say what the state and the result of the run are."""

    progress_type: type[ProgressType]
    """What state.json holds."""

    def __init__(self, checkpoints: Checkpoints, processes: Processes, log: Log, owners: Sequence[Stateful], num_steps: int, period: int):
        """owners: of the state beside modules, optimizer and random numbers. num_steps: of the whole run. period: steps between saves."""
        self.checkpoints, self.processes, self.log, self.owners = checkpoints, processes, log, owners
        self.num_steps, self.period = num_steps, period
        self.saved: tuple[int, ProgressType] | None = None
        """The step of the newest checkpoint and what its state.json holds."""

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint, by the name of their file; gathered from all processes where they are spread over them."""
        raise NotImplementedError

    def modules(self) -> Mapping[str, nn.Module]:
        """What takes the tensors of a checkpoint, by the name of their file."""
        raise NotImplementedError

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """That of the run."""
        raise NotImplementedError

    def write_model(self, step: int, progress: ProgressType) -> None:
        """Writes the result of the run as of `step` into its folder, on this process."""
        raise NotImplementedError

    def due(self, step: int, stopping: bool) -> bool:
        """Whether there is to be a checkpoint at `step`: at every multiple of the period, at the end and before a stop. One that exists
        is written anew at the end where something was measured after it."""
        if not step:  # nothing is lost: the same command starts again
            return False
        if self.saved is not None and self.saved[0] == step:
            return step == self.num_steps and self.saved[1] != self.progress
        return stopping or is_due(step, self.period, self.num_steps)

    def run(self, step: int) -> None:
        """A checkpoint and the result; of a step that has a checkpoint already, state.json and the result alone.

        Raises UserError where the disk refuses, on every process; earlier checkpoints are whole then.
        """
        progress = self.progress
        with self.log.phase_if_long(f"saving step {step}"):
            self.processes.first_does(partial(self.write, step, progress))
        self.saved = step, progress

    @property
    def progress(self) -> ProgressType:
        """How far the run is."""
        state: dict[str, Any] = {"num_steps": self.num_steps}
        for owner in self.owners:
            state |= owner.state_dict()
        return self.progress_type.model_validate(copy.deepcopy(state))

    def write(self, step: int, progress: ProgressType) -> None:
        """The same as `run`, on this process."""
        if self.saved is not None and step == self.saved[0]:
            self.checkpoints.note(step, progress.model_dump())
        else:
            other = {"optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}
            self.checkpoints.save(step, self.states(), other, progress.model_dump())
        self.write_model(step, progress)

    def resume(self) -> int:
        """Fills all owners of state from the last checkpoint; returns its step, 0 where there is none.

        Raises UserError, which names the file and what to do, where the checkpoint is damaged or of another network.
        """
        checkpoint = self.checkpoints.load()
        if checkpoint is None:
            return 0
        progress = _fit(checkpoint, "state.json", lambda: validate(self.progress_type, checkpoint.state))
        for name, module in self.modules().items():
            _fit(checkpoint, f"{name}.safetensors", partial(_fill_module, checkpoint, name, module))
        _fit(checkpoint, "optimizer.pt", lambda: _fill_optimizer(self.optimizer, checkpoint.other))
        for owner in self.owners:
            owner.load_state_dict(progress.model_dump())
        self.saved = checkpoint.step, progress
        return checkpoint.step


def _fill_module(checkpoint: Checkpoint, name: str, module: nn.Module) -> None:
    if name not in checkpoint.tensors:
        raise UserError("there is no such file")
    load_exactly(module, checkpoint.tensors[name], name)


def _fill_optimizer(optimizer: torch.optim.Optimizer, other: dict[str, Any]) -> None:
    """The moments of the optimizer, and the random numbers of this process."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in other["optimizer"]["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} is {list(value.shape)}, not {list(parameters[index].shape)}")
    optimizer.load_state_dict(other["optimizer"])
    torch.set_rng_state(other["rng"])


def _fit(checkpoint: Checkpoint, file: str, fill: Callable[[], Any]) -> Any:
    try:
        return fill()
    except UserError as error:
        raise checkpoint.refusal(file, "; ".join(error.problems)) from None
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise checkpoint.refusal(file, f"it is not what this run writes: {reason}") from None
