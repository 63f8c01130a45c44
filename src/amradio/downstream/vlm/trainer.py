"""TRL's trainer with what a run needs of it: images that are read and named by this package, weights that are resumed, the run's log."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from ...engine.distributed import Processes
from ...engine.log import Log
from ...errors import UserError
from ...interruption import Stop
from ...labelled.paired_files import read_image
from .checkpoints import PREFIX, seal
from .settings import StageSettings

PROBLEMS = "problems"
"""Key of a batch that holds the problems of its images in place of tensors, because an error loses its type between processes."""


class Stage(NamedTuple):
    """A stage with its data."""

    name: str
    settings: StageSettings
    table: Any
    """A `datasets.Dataset` with a row a sample."""
    first: int
    """Step of the run before it."""
    num_steps: int


class LlavaTrainer(SFTTrainer):
    """TRL's, which reads images by their paths and resumes."""

    def read_images(self) -> None:
        """Makes batches of rows whose `images` are paths."""
        self.data_collator = _WithImages(self.data_collator)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of a step. Raises UserError where an image of one cannot be read."""
        return super().get_batch_samples(_checked(epoch_iterator), num_batches, device)

    def create_model_card(self, *given: Any, **rest: Any) -> None:
        """None: the model folder has one of its own."""
        del given, rest

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The library looks for weights under their names in memory, and a LLaVA's file has others, so that it would load none."""
        if not isinstance(self.model, LlavaForConditionalGeneration):  # peft, whose files have the names in memory
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        stored = LlavaForConditionalGeneration.from_pretrained(
            resume_from_checkpoint, dtype=torch.float32, local_files_only=True, trust_remote_code=False, attn_implementation="eager"
        )  # for its weights alone
        self.model.load_state_dict(stored.state_dict())
        return None


class _WithImages:
    """A collator of rows whose images are paths; sent to workers."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any]):
        self.collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        try:
            return self.collate([{**row, "images": [_picture(path) for path in row["images"]]} for row in rows])
        except UserError as error:
            return {PROBLEMS: list(error.problems)}


def _picture(path: str) -> Image.Image:
    return Image.fromarray(read_image(Path(path)))


def _checked(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        if PROBLEMS in batch:
            raise UserError(*batch[PROBLEMS])
        yield batch


class Reporter(TrainerCallback):
    """Writes the run's logs, refuses numbers that are none, and stops at a signal, after a checkpoint."""

    def __init__(self, stage: Stage, log: Log, stop: Stop, processes: Processes):
        self.stage, self.log, self.stop, self.processes = stage, log, stop, processes

    def on_step_end(self, *given: Any, **rest: Any) -> None:
        """Asks for a checkpoint and the end after a signal, and for the loss before every checkpoint and at the end, so that no file
        holds what came after a loss that is no number.
        """
        del rest
        _, state, control = given  # the trainer's arguments, state and control
        if self.processes.any(self.stop.asked):
            control.should_save = control.should_training_stop = True
        if control.should_save or state.global_step == self.stage.num_steps:
            control.should_log = True

    def on_save(self, *given: Any, **rest: Any) -> None:
        """Marks the checkpoint as whole when every process has written its part."""
        del rest
        arguments, state, _ = given
        self.processes.any(False)
        self.processes.first_does(lambda: seal(Path(arguments.output_dir) / f"{PREFIX}{state.global_step}"))

    def on_log(self, *given: Any, logs: Any = None, **rest: Any) -> None:
        """A line and a row of numbers. Raises UserError where one is none."""
        del rest
        _, state, _ = given
        if not logs or "loss" not in logs:
            return
        step, stage = state.global_step, self.stage
        numbers = {name: float(logs[name]) for name in ("loss", "grad_norm", "learning_rate") if name in logs}
        wrong = [name for name, value in numbers.items() if not math.isfinite(value)]
        if wrong:
            advice = "lower learning_rate, or set engine.precision=float32; the checkpoint before this step is kept"
            raise UserError(f"{stage.name}: {' and '.join(wrong)} at step {step} is no number; {advice}", on_all_processes=True)
        self.log.record({"step": stage.first + step} | {f"{stage.name}/{name}": value for name, value in numbers.items()})
        rate = f"rate {numbers.get('learning_rate', 0.0):.2e}"
        self.log.say(f"{stage.name} step {step}/{stage.num_steps}  loss {numbers['loss']:.4f}  {rate}")
