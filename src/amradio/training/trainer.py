"""A recipe becomes a job: everything is checked first, then loaded, then the loop runs it in its run folder."""

import copy
import time
import warnings
from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..console import duration
from ..data import Batch
from ..devices import autocast_dtype
from ..distillation.losses import Loss
from ..distillation.task import Distillation, Objective, speak_raw
from ..engine.distributed import Processes
from ..engine.ema import Ema
from ..engine.log import Clock, Log
from ..engine.loop import Job, Stage, train
from ..engine.monitor import Monitor
from ..engine.optimizer import build_optimizer
from ..errors import UserError
from ..features import KINDS, Kind
from ..interruption import Stop, StopAskedError
from ..network import Network
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..students.base import Student
from ..teachers.base import Teacher
from .agreement import Agreement
from .calibration import Calibration
from .checks import check_sizes
from .held_out import HeldOut
from .periodic_evaluation import PeriodicSuite
from .saving import Progress, Saving
from .schedule import Feeds, Group, find_stages
from .setup import Context, Teachers
from .startup_log import introduce


class Training:
    """One run of a recipe on this machine: what is loaded, and the steps from the run folder's state to the end."""

    def __init__(self, recipe: Recipe, teachers: Teachers, processes: Processes, log: Log, student: Student | None = None):
        """teachers: loaded, on the CPU. student: one of type `own`. Raises UserError where sizes do not fit."""
        self.recipe, self.processes, self.log = recipe, processes, log
        self.folder = RunFolder(recipe.out, recipe.engine.keep)
        torch.manual_seed(recipe.seed)
        self.begun = recipe.begin(teachers, self.folder.beginning(), student)
        self.config, network = self.begun.config, self.begun.network
        problems = check_sizes(recipe, network, processes.world_size)
        if problems:
            raise UserError(*problems)
        processes.share_batch_statistics(network)
        clock = Clock(processes.device)
        self.monitor = Monitor(processes, log, clock)
        losses: dict[Kind, Loss] = {kind: getattr(recipe.loss, kind).build() for kind in KINDS}
        objective = Objective(losses, recipe.balance.build(recipe.weights()), recipe.loss.grid)
        moved = {name: teacher.to(processes.device) for name, teacher in teachers.items()}
        self.task = Distillation(network, moved, objective, clock.part).to(processes.device)
        speak_raw(self.task, self.begun.kept)
        self.ema = Ema(network, recipe.engine.ema) if recipe.engine.ema else None
        self.stages = list(find_stages(recipe, self.task))
        autocast = autocast_dtype(recipe.engine.precision, processes.device)
        # Seen: the fused kernel's backward on a CPU in bfloat16 halves the speed of a ViT-tiny step (317 -> 178 images/s a core).
        network.student.fuse_attention(not (processes.device.type == "cpu" and autocast is torch.bfloat16))
        self.suite = PeriodicSuite(recipe, moved, processes.device)
        self.suite.check(self.config, network)
        spared = {f"network.student.{name}" for name in network.student.no_decay() | self.begun.partly_trained}
        self.optimizer = build_optimizer(self.task, recipe.optimizer, spared)
        self.context = Context(
            recipe=recipe,
            processes=processes,
            log=log,
            folder=self.folder,
            task=self.task,
            ema=self.ema,
            stages=self.stages,
            feeds=Feeds(recipe, processes),
            clock=clock,
            stop=Stop(),
            autocast=autocast,
        )
        self.calibration, self.held_out = Calibration(self.context), HeldOut(self.context)
        self.saving = Saving(self.context, self.config, self.optimizer)

    @property
    def agreement(self) -> Agreement:
        """Held-out agreement as it was measured last."""
        return self.held_out.agreement

    @property
    def progress(self) -> Progress:
        """How far the run is, for a checkpoint."""
        return Progress(
            num_steps=self.recipe.num_steps,
            agreement=self.held_out.agreement,
            evaluated=self.held_out.step,
            suite=self.suite.done,
            skipped_images=self.monitor.num_skipped,
        )

    def introduce(self) -> None:
        """Logs what is about to be run."""
        introduce(self.context, self.config.student.type, self.begun.notes)

    def run(self) -> int:
        """Trains from the last checkpoint, or from the start, to the end or a signal; returns the step reached."""
        begun_at = self.resume()
        if self.recipe.engine.compile:
            self._compile()
        begun = time.perf_counter()
        try:
            reached = train(self._job(), begun_at)
        finally:
            self.log.close()
        self._conclude(begun_at, reached, time.perf_counter() - begun)
        return reached

    def _compile(self) -> None:
        """Compiles what the steps run; evaluations beside them run copies of the student, and the teachers as they are."""
        self.log.say("compiling student and teachers: the first step takes minutes")
        self.task.network.student.compile()
        self.task.teachers.update({name: cast(Teacher, torch.compile(teacher)) for name, teacher in self.task.teachers.items()})

    def _conclude(self, begun_at: int, reached: int, seconds: float) -> None:
        num_steps = self.recipe.num_steps
        if self.context.stop.was_followed:
            left = "" if reached < num_steps else ", before the last evaluation"
            self.log.say(f"Stopped ({self.context.stop.name}) at step {reached} of {num_steps}{left}. Run the same command to resume.")
            return
        steps = f"{num_steps} steps" if not begun_at else f"the last {num_steps - begun_at} of {num_steps} steps"
        took = f"{seconds:.0f} s" if seconds < 120 else duration(seconds)
        done = f"Finished {steps} in {took}" if reached > begun_at else f"All {num_steps} steps were done"
        self.log.say(f"{done}. Model: {self.folder.model}. Next: amradio evaluate {self.folder.path}")

    def _job(self) -> Job:
        model: nn.Module = self.task
        if self.processes.world_size > 1:
            device_ids = [self.processes.device.index] if self.processes.device.type == "cuda" else None
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch 2.7 knows no other name for this
                model = DistributedDataParallel(self.task, device_ids=device_ids, broadcast_buffers=False)
        return Job(
            task=model,
            prepare=self.task.targets,
            optimizer=self.optimizer,
            stages=self.stages,
            engine=self.recipe.engine,
            schedule=self.recipe.optimizer,
            processes=self.processes,
            monitor=self.monitor,
            clock=self.context.clock,
            stop=self.context.stop,
            autocast=self.context.autocast,
            open_batches=self._open_batches,
            begin_stage=self.calibration.measure,
            evaluate=self._evaluate_aside,
            evaluate_due=lambda step: self.held_out.due(step) or self.suite.due(step),
            save=self.save,
            spare=self._spare,
            after_step=self._after_step,
        )

    def _open_batches(self, stage: Stage, group: Group, step: int) -> Iterator[Batch]:
        del stage
        return self.context.feeds.training(group, step)

    def _after_step(self) -> None:
        if self.ema:
            self.ema.update(self.task.network)

    def _spare(self, stage: Stage) -> None:
        """Takes the gradients (zeros) from heads that the stage does without: with one, decay and momentum would still move them."""
        present = {name for group in stage.groups for name in group.partition.teachers}
        for name, head in self.task.network.heads.items():
            if name not in present:
                head.zero_grad(set_to_none=True)

    def _evaluate_aside(self, step: int) -> None:
        with self.context.clock.paused():
            if self.held_out.due(step):
                self.held_out.measure(step)
            if self.suite.due(step):
                exported = self.config, self.folded_network()
                if not self.processes.first_does(partial(self.suite.run, step, exported, self.folder, self.log, self.context.stop)):
                    raise StopAskedError
                self.suite.done = step

    def evaluate(self, step: int) -> None:
        """Held-out agreement with every teacher of the stage that `step` ends or is in, into evaluations/ and metrics.jsonl."""
        self.held_out.measure(step)

    def save(self, step: int) -> None:
        """A checkpoint and the model folder; raises UserError where the disk refuses, on every process."""
        self.saving.save(step, self.progress)

    def folded_network(self) -> Network:
        """The network as it is exported; see `Saving.folded_network`."""
        return self.saving.folded_network()

    def resume(self) -> int:
        """Fills everything from the last checkpoint and completes the run folder; returns its step, 0 where there is none."""
        found = self.saving.resume()
        if found is None:
            return 0
        step, progress = found
        self.held_out.agreement, self.held_out.step = copy.deepcopy(progress.agreement), progress.evaluated
        self.suite.done, self.monitor.num_skipped = progress.suite, progress.skipped_images
        self.log.forget_after(step)
        self.log.say(f"resuming {self.folder.path} from step {step} of {self.recipe.num_steps}")
        self.saving.complete(step, progress)
        self.calibration.complete(step)
        return step
