"""The training of a vision-language model: LLaVA's two stages, each one run of TRL's SFTTrainer."""

import shutil
import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ...data.loading_processes import default_workers
from ...devices import autocast_dtype
from ...engine.distributed import Processes
from ...engine.folder import FREE_KEYS, Folder
from ...engine.lock import Lock
from ...engine.log import Log
from ...errors import UserError
from ...files import aside, disk_errors, gone_on_failure, user_path
from ...interruption import Stop
from ...model import load
from ...teachers.loading import quiet
from ...tensors import read_tensors, write_tensors
from .assembly import Vlm, assemble
from .checkpoints import newest, remove_unfinished, step_of
from .conversations import Sample, captions_of, messages_of, read_conversations
from .files import write_vlm
from .lengths import missing_room
from .recognition import is_vlm
from .settings import InstructionSettings, LowRankSettings, StageSettings, VlmRecipe
from .trainer import LlavaTrainer, Reporter, Stage

ALIGNMENT, INSTRUCTION = "alignment", "instruction"
PROJECTOR = "projector.safetensors"
"""What stage 1 leaves for stage 2."""
Result = TypeVar("Result")


class VlmFolder(Folder):
    """The run folder: config.yaml, the logs, checkpoints of the stage that is trained, the projector after stage 1, and model/."""

    recipe_type = VlmRecipe
    free_keys = (*FREE_KEYS, "num_workers", "engine.gradient_checkpointing")

    def start(self, recipe: Any, lock: Lock) -> None:
        """Creates the folder, or makes it ready to resume. Raises UserError where another process has the lock."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock.take()
            self.write_recipe(recipe)

    @property
    def projector(self) -> Path:
        """The file that stage 1 leaves."""
        return self.path / ALIGNMENT / PROJECTOR


class VlmRun:
    """One run of a recipe on this machine, from the run folder's state to the end."""

    def __init__(self, recipe: VlmRecipe, processes: Processes, log: Log):
        """Builds everything and writes nothing. Raises UserError with all that stands against the run."""
        self.recipe, self.processes, self.log = recipe, processes, log
        self.folder = VlmFolder(recipe.out)
        self.stop = Stop()
        torch.manual_seed(recipe.seed)
        self.stages, self.vlm = _opened(recipe, processes)
        self.num_steps = sum(stage.num_steps for stage in self.stages)

    def begin(self, lock: Lock) -> None:
        """Makes the run folder ready and logs what is about to be run. Raises UserError where another process has the lock."""
        self.processes.first_does(lambda: self.folder.start(self.recipe, lock))
        if self.processes.is_first:
            self.log.open(self.folder.path, self.recipe.engine.trackers())
        parts = self.vlm.network.model
        sizes = (_millions(part) for part in (parts.vision_tower, parts.multi_modal_projector, parts.language_model))
        self.log.say("tower {} M parameters (frozen), projector {} M, language model {} M".format(*sizes))
        for stage in self.stages:
            self.log.say(f"{stage.name}: {len(stage.table):,} samples, {stage.num_steps:,} steps of {stage.settings.batch_size}")

    def run(self) -> int:
        """Trains from where the run folder is, to the end or until a signal asks to stop; returns the step reached."""
        if is_vlm(self.folder.path):
            self.log.say(f"{self.folder.path} is finished: {self.num_steps} steps; model: {self.folder.model}")
            return self.num_steps
        step = 0
        try:
            with self.stop:
                for stage in self.stages:
                    step = self._train(stage)
                    if step < stage.first + stage.num_steps:
                        self.stop.was_followed = True
                        return step
            self.processes.first_does(self._write)
        finally:
            self.log.close()
        return step

    def _train(self, stage: Stage) -> int:
        """Trains or resumes a stage; returns the step of the run that was reached."""
        if stage.name == ALIGNMENT and self.folder.projector.is_file():
            self.vlm.network.model.multi_modal_projector.load_state_dict(read_tensors(self.folder.projector))
            return stage.first + stage.num_steps
        stage_folder = self.folder.path / stage.name
        last = self.processes.first_does(lambda: self._resumed(stage_folder))
        _choose(self.vlm.network, stage.settings)
        reporter = Reporter(stage, self.log, self.stop, self.processes)
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)  # peft and TRL read the old name
            trainer = LlavaTrainer(
                model=self.vlm.network,
                args=_arguments(self.recipe, stage, stage_folder, self.processes),
                train_dataset=stage.table,
                processing_class=deepcopy(self.vlm.processor),  # whose tokenizer is set to cut and pad
                peft_config=_low_rank(self.vlm.network, stage.settings),
                callbacks=[reporter],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.read_images()
            if last is not None:
                self.log.forget_after(stage.first + step_of(last))
                self.log.say(f"resuming {self.folder.path} from {last.name} of {stage.name}")
            try:
                with disk_errors(self.folder.path):
                    trainer.train(resume_from_checkpoint=None if last is None else str(last))
            except UserError:
                remove_unfinished(stage_folder)  # on a full disk its space is needed
                raise
        step = stage.first + trainer.state.global_step
        if step == stage.first + stage.num_steps:
            self._finish(trainer, stage, stage_folder)
        return step

    def _resumed(self, stage_folder: Path) -> Path | None:
        """The checkpoint that the stage resumes from, None where there is none."""
        for name in remove_unfinished(stage_folder):
            self.log.say(f"{stage_folder / name} was not written to its end and is removed")
        return newest(stage_folder)

    def _finish(self, trainer: SFTTrainer, stage: Stage, stage_folder: Path) -> None:
        """Merges what was added, keeps stage 1's projector, and takes its checkpoints away."""
        if isinstance(stage.settings, InstructionSettings):
            if isinstance(stage.settings.language_model, LowRankSettings):
                model: Any = trainer.accelerator.unwrap_model(trainer.model)
                self.vlm = Vlm(model.merge_and_unload(), self.vlm.processor)
            return
        projector = self.vlm.network.model.multi_modal_projector

        def keep() -> None:
            with disk_errors(stage_folder):
                stage_folder.mkdir(parents=True, exist_ok=True)
                with aside(stage_folder / PROJECTOR) as unfinished:
                    write_tensors({name: tensor.cpu() for name, tensor in projector.state_dict().items()}, unfinished)
            for checkpoint in stage_folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)

        self.processes.first_does(keep)

    def _write(self) -> None:
        """The model folder, complete or not there; then no checkpoint is needed any more."""
        unfinished = self.folder.path / ".model.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        with disk_errors(self.folder.path), gone_on_failure(unfinished):
            write_vlm(self.vlm, unfinished, _about(self.recipe, self.stages))
            unfinished.replace(self.folder.model)
        shutil.rmtree(self.folder.path / INSTRUCTION, ignore_errors=True)
        self.log.say(f"{self.num_steps} steps; model: {self.folder.model}. Next: amradio report {self.folder.path}")


def _opened(recipe: VlmRecipe, processes: Processes) -> tuple[list[Stage], Vlm]:
    """The stages with their data, and the model; raises UserError with all problems."""
    problems = recipe.engine.missing_extras()

    def tried(key: str, open_it: Callable[[], Result]) -> Result | None:
        try:
            return open_it()
        except UserError as error:
            problems.extend(f"{key}{problem}" for problem in error.problems)
            return None

    if recipe.engine.device not in ("auto", "cpu", "cuda"):
        problems.append(f"engine.device: the trainer takes auto, cpu or cuda, found {recipe.engine.device}; choose by CUDA_VISIBLE_DEVICES")
    stages: list[Stage] = []
    read: dict[str, list[Sample]] = {}
    for name, settings in _stages_of(recipe):
        pieces = processes.world_size * recipe.engine.accumulate
        if settings.batch_size % pieces:
            advice = f"take a multiple of {pieces}, or change engine.accumulate"
            problems.append(f"{name}.batch_size: {settings.batch_size} is not shared out evenly over {pieces} pieces; {advice}")
        samples = tried(f"{name}.data: ", partial(read_conversations, settings.data))
        if samples is not None:
            read[name] = samples
            images = user_path(settings.data.images)
            table = tried("", partial(captions_of if name == ALIGNMENT else messages_of, samples, images))
            if table is not None:
                first = sum(stage.num_steps for stage in stages)
                stages.append(Stage(name, settings, table, first, max(1, round(settings.epochs * len(table) / settings.batch_size))))
    model = tried("model: ", lambda: load(recipe.model))
    vlm = tried("", lambda: assemble(model, recipe.head, recipe.image_size, recipe.language_model)) if model is not None else None
    if vlm is not None:
        for name, settings in _stages_of(recipe):
            problem = missing_room(vlm, read.get(name, []), settings.max_tokens, name == INSTRUCTION)
            problems += [f"{name}.{problem}"] if problem else []
    if problems or vlm is None:
        raise UserError(*problems)
    return stages, vlm


def _stages_of(recipe: VlmRecipe) -> list[tuple[str, StageSettings]]:
    both = ((ALIGNMENT, recipe.alignment), (INSTRUCTION, recipe.instruction))
    return [(name, settings) for name, settings in both if settings is not None]


def _choose(network: nn.Module, settings: StageSettings) -> None:
    """Marks what a stage trains: the projector; with a full stage 2 the language model as well; never the tower."""
    with_language = isinstance(settings, InstructionSettings) and not isinstance(settings.language_model, LowRankSettings)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("multi_modal_projector" in name or (with_language and "vision_tower" not in name))


def _low_rank(network: Any, settings: StageSettings) -> Any:
    """peft's configuration of low-rank additions; None for none."""
    if not isinstance(settings, InstructionSettings) or not isinstance(settings.language_model, LowRankSettings):
        return None
    from peft import LoraConfig

    chosen = settings.language_model
    linear = [f"language_model.{name}" for name, part in network.model.language_model.named_modules() if isinstance(part, nn.Linear)]
    return LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,  # pyright: ignore[reportArgumentType] - peft divides it only
        lora_dropout=chosen.dropout,
        target_modules=linear,
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )


def _arguments(recipe: VlmRecipe, stage: Stage, stage_folder: Path, processes: Processes) -> SFTConfig:
    engine, settings = recipe.engine, stage.settings
    precision = autocast_dtype(engine.precision, processes.device)
    arguments = SFTConfig(
        output_dir=str(stage_folder),
        max_steps=stage.num_steps,
        per_device_train_batch_size=settings.batch_size // (processes.world_size * engine.accumulate),
        gradient_accumulation_steps=engine.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        max_length=settings.max_tokens,
        assistant_only_loss=stage.name == INSTRUCTION,
        logging_steps=engine.log_every,
        logging_nan_inf_filter=False,
        save_steps=engine.checkpoint_every,
        save_total_limit=engine.keep,
        seed=recipe.seed % 2**32,
        use_cpu=processes.device.type == "cpu",
        bf16=precision is not None,
        activation_checkpointing=engine.gradient_checkpointing,
        dataloader_num_workers=default_workers() if recipe.num_workers is None else recipe.num_workers,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    if processes.world_size == 1 and processes.device.type == "cuda":
        arguments._n_gpu = 1  # else the library splits batches over all GPUs of the machine by DataParallel
    return arguments


def _millions(part: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in part.parameters()) / 1e6:,.2f}"


def _about(recipe: VlmRecipe, stages: Iterable[Stage]) -> str:
    rows = [f"- {stage.name}: {len(stage.table):,} samples, {stage.num_steps:,} steps of {stage.settings.batch_size}" for stage in stages]
    parts = f"vision tower `{recipe.model}` (frozen), language model `{recipe.language_model}`"
    return "\n".join(["# LLaVA with an amradio student", "", f"Trained by `amradio vlm train`: {parts}.", "", *rows])
