"""Checkpoints and the model folder of a run, and how a run is filled from its last checkpoint."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import Settings, to_yaml, validate
from ..distillation.calibration import fold_normalizers
from ..engine.checkpoint import Checkpoint
from ..errors import UserError
from ..features import KINDS
from ..files import disk_errors
from ..formats.model_folder import CARD_FILE, WEIGHTS_FILE, read_config, write_folder
from ..network import Agreement, Network, load_exactly
from ..students.finetuning import merged
from .setup import Context

Count = Annotated[int, pydantic.Field(ge=0)]


class Progress(Settings):
    """What state.json of a checkpoint says beside its step: how far the run is."""

    num_steps: Count
    """Of the whole run."""
    agreement: Agreement = pydantic.Field(default_factory=dict)
    """Held-out agreement as it was measured last."""
    evaluated: Count | None = None
    """The step at which it was measured."""
    suite: Count | None = None
    """The last step at which the suite was run."""
    skipped_images: Count = 0
    """Unreadable images that were met."""


class Stateful(Protocol):
    """An owner of state that goes into state.json; its keys are fields of `Progress`."""

    def state_dict(self) -> dict[str, Any]:
        """The state, of JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the owner's keys out of all that state.json holds."""
        ...


class Saving:
    """Writes and reads the state of a run, over all owners of state; one process writes. A hook of the trainer."""

    def __init__(self, context: Context, owners: Sequence[Stateful]):
        """owners: of the state beside task, averaged weights, optimizer and random numbers."""
        self.context, self.owners = context, owners
        self.saved: tuple[int, Progress] | None = None
        """The step of the newest checkpoint and what its state.json holds."""

    @cached_property
    def _recipe_text(self) -> str:
        """The recipe as YAML, written once a run: it takes as long as several steps of a small model."""
        return to_yaml(self.context.recipe)

    def due(self, step: int, stopping: bool) -> bool:
        """Whether there is to be a checkpoint at `step`: at every multiple of the period, at the end and before a stop. One that exists
        is written anew at the end where something was measured after it."""
        if not step:  # nothing is lost: the same command starts again
            return False
        if self.saved is not None and self.saved[0] == step:
            return step == self.context.num_steps and self.saved[1] != self.progress
        return stopping or self.context.is_due(step, self.context.recipe.engine.checkpoint_every)

    def run(self, step: int) -> None:
        """A checkpoint and the model folder; of a step that has a checkpoint already, state.json and the model folder alone.

        Raises UserError where the disk refuses, on every process; earlier checkpoints are whole then.
        """
        progress = self.progress
        with self.context.log.phase_if_long(f"saving step {step}"):
            self.context.processes.first_does(partial(self.write, step, progress))
        self.saved = step, progress

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        state: dict[str, Any] = {"num_steps": self.context.num_steps}
        for owner in self.owners:
            state |= owner.state_dict()
        return Progress.model_validate(copy.deepcopy(state))

    def write(self, step: int, progress: Progress) -> None:
        """The same, on this process."""
        context, checkpoints = self.context, self.context.folder.checkpoints
        if self.saved is not None and step == self.saved[0]:
            checkpoints.note(step, progress.model_dump())
        else:
            tensors = {"task": context.parallel.full_state()} | ({"ema": context.ema.state_dict()} if context.ema else {})
            other = {"optimizer": context.optimizer.state_dict(), "rng": torch.get_rng_state()}
            checkpoints.save(step, tensors, other, progress.model_dump())
        self.write_model(step, progress)

    def write_model(self, step: int, progress: Progress) -> None:
        """The model folder, on this process."""
        recipe, folder = self.context.recipe, self.context.folder
        notes = {"step": step, "num_steps": progress.num_steps, "data": self.context.feeds.description, "agreement": progress.agreement}
        notes["target_spaces"] = {kind: recipe.normalize.of(kind).model_dump()["type"] for kind in KINDS}
        with disk_errors(folder.path):
            write_folder(folder.model, self.context.config, self.folded_network(), notes | {"recipe": self._recipe_text})

    def complete(self) -> None:
        """After a resume: writes the model folder where it is missing or of another step, as a kill before it was written leaves it."""
        assert self.saved is not None
        step, progress = self.saved
        if self.context.processes.first_does(lambda: step == model_step(self.context.folder.model)):
            return
        self.context.log.say(f"{self.context.folder.model}: missing or not of step {step}; written again")
        self.context.processes.first_does(partial(self.write_model, step, progress))

    def folded_network(self) -> Network:
        """The network as it is exported: averaged weights where there are any, heads that predict raw teacher features."""
        task, ema = self.context.task, self.context.ema
        network = ema.average if ema else task.network
        exported = network.with_heads(network.heads, merged(network.student))
        exported.heads = copy.deepcopy(exported.heads)
        fold_normalizers(task, exported)
        return exported

    def resume(self) -> int:
        """Fills all owners of state from the last checkpoint; returns its step, 0 where there is none.

        Raises UserError, which names the file and what to do, where the checkpoint is damaged or of another network.
        """
        checkpoint = self.context.folder.checkpoints.load()
        if checkpoint is None:
            return 0
        progress = self._fit(checkpoint, "state.json", lambda: validate(Progress, checkpoint.state))
        self._fit(checkpoint, "task.safetensors", lambda: load_exactly(self.context.task, self._tensors(checkpoint, "task"), "task"))
        ema = self.context.ema
        if ema is not None:
            self._fit(checkpoint, "ema.safetensors", lambda: load_exactly(ema.average, self._tensors(checkpoint, "ema"), "ema"))
        self._fit(checkpoint, "optimizer.pt", lambda: self._fill_optimizer(checkpoint.other))
        for owner in self.owners:
            owner.load_state_dict(progress.model_dump())
        self.saved = checkpoint.step, progress
        return checkpoint.step

    def _fill_optimizer(self, other: dict[str, Any]) -> None:
        optimizer = self.context.optimizer
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, moments in other["optimizer"]["state"].items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                    raise ValueError(f"{name} of parameter {index} is {list(value.shape)}, not {list(parameters[index].shape)}")
        optimizer.load_state_dict(other["optimizer"])
        torch.set_rng_state(other["rng"])

    @staticmethod
    def _tensors(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
        if name not in checkpoint.tensors:
            raise UserError("there is no such file")
        return checkpoint.tensors[name]

    @staticmethod
    def _fit(checkpoint: Checkpoint, file: str, fill: Callable[[], Any]) -> Any:
        try:
            return fill()
        except UserError as error:
            raise checkpoint.refusal(file, "; ".join(error.problems)) from None
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise checkpoint.refusal(file, f"it is not what this run writes: {reason}") from None


def model_step(folder: Path) -> int | None:
    """The step whose weights a model folder has; None where it is not whole, or its files are of different steps."""
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            step = int((file.metadata() or {}).get("step", "-1"))
        training = read_config(folder).training
    except (OSError, ValueError, SafetensorError):
        return None
    return step if training is not None and training.step == step and (folder / CARD_FILE).is_file() else None
