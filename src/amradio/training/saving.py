"""Checkpoints and the model folder of a run, and how a run is filled from its last checkpoint."""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..config import to_yaml
from ..distillation.calibration import fold_normalizers
from ..engine import saving
from ..engine.saving import Count, Stateful
from ..features import KINDS
from ..files import disk_errors
from ..formats.model_folder import CARD_FILE, WEIGHTS_FILE, read_config, write_folder
from ..network import Agreement, Network
from ..students.finetuning import merged
from .setup import Context


class Progress(saving.Progress):
    """How far a distillation is."""

    agreement: Agreement = pydantic.Field(default_factory=dict)
    """Held-out agreement as it was measured last."""
    suite: Count | None = None
    """The last step at which the suite was run."""


class Saving(saving.Saving[Progress]):
    """Saves task, averaged weights and optimizer, and writes the model folder."""

    progress_type = Progress

    def __init__(self, context: Context, owners: Sequence[Stateful]):
        """owners: of the state beside task, averaged weights, optimizer and random numbers."""
        period = context.recipe.engine.checkpoint_every
        super().__init__(context.folder.checkpoints, context.processes, context.log, owners, context.num_steps, period)
        self.context = context

    @cached_property
    def _recipe_text(self) -> str:
        """The recipe as YAML, written once a run: it takes as long as several steps of a small model."""
        return to_yaml(self.context.recipe)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """`task`, and `ema` where there are averaged weights."""
        context = self.context
        return {"task": context.parallel.full_state()} | ({"ema": context.ema.state_dict()} if context.ema else {})

    def modules(self) -> Mapping[str, nn.Module]:
        """The same."""
        context = self.context
        return {"task": context.task} | ({"ema": context.ema.average} if context.ema else {})

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """That of the run."""
        return self.context.optimizer

    def write_model(self, step: int, progress: Progress) -> None:
        """The model folder, on this process."""
        recipe, folder = self.context.recipe, self.context.folder
        notes = {"step": step, "num_steps": progress.num_steps, "data": self.context.feeds.description, "agreement": progress.agreement}
        notes["evaluated"] = progress.evaluated
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


def model_step(folder: Path) -> int | None:
    """The step whose weights a model folder has; None where it is not whole, or its files are of different steps."""
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            step = int((file.metadata() or {}).get("step", "-1"))
        training = read_config(folder).training
    except (OSError, ValueError, SafetensorError):
        return None
    return step if training is not None and training.step == step and (folder / CARD_FILE).is_file() else None
