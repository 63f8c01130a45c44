"""The training loop: optimizer steps, and hooks that log, evaluate, save and calibrate between them."""

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from ..batch import Batch
from ..data import OpenData
from ..distillation.metrics import headline
from ..engine.compilation import compile_in_place, compiled, many_graphs
from ..engine.distributed import Processes
from ..engine.lock import Lock
from ..engine.log import Log
from ..engine.loop import Hook, Loop, Reporting
from ..engine.monitor import Monitor
from ..errors import UserError
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..students.base import Student
from .calibration import Calibration
from .checks import check_network
from .held_out import HeldOut
from .initialization import initialize
from .optimization import Ahead, Optimization
from .periodic_evaluation import PeriodicSuite, SuiteHook
from .saving import Saving
from .schedule import Stage
from .setup import Teachers, build_context
from .startup_log import introduce


class Trainer:
    """One run of a recipe on this machine, from the run folder's state to the end."""

    def __init__(
        self,
        recipe: Recipe,
        teachers: Teachers,
        processes: Processes,
        log: Log,
        student: Student | None = None,
        data: OpenData | None = None,
    ):
        """Builds everything and writes nothing.

        teachers: loaded, on the CPU.
        student: the user's object, where the recipe's student is a custom one.
        data: the sources, where they have been opened already.
        Raises UserError where sizes do not fit, or the suite of evaluations lacks something.
        """
        folder = RunFolder(recipe.out, recipe.engine.keep)
        torch.manual_seed(recipe.seed)
        self.initial = initialize(recipe, teachers, folder.network_record(), student)
        problems = check_network(recipe, self.initial.network, teachers, processes.world_size)
        if problems:
            raise UserError(*problems)
        self.context = build_context(recipe, teachers, self.initial, data or OpenData(recipe.data), processes, log)
        self.suite = PeriodicSuite(recipe, self.context.task.teachers, processes.device)
        self.suite.check(self.initial.config, self.initial.network)
        self.monitor = Monitor(processes, log, self.context.clock, headline)
        self.optimization = Optimization(self.context)
        self.calibration, self.held_out = Calibration(self.context), HeldOut(self.context)
        self.saving = Saving(self.context, (self.held_out, self.suite, self.monitor))
        evaluations = self.held_out, SuiteHook(self.context, self.suite, self.saving.folded_network)
        reporting = Reporting(self.monitor, (recipe.engine.log_every, recipe.engine.checkpoint_every), self.context.num_steps)
        self.hooks: Sequence[Hook] = (reporting, *evaluations, self.saving, self.calibration)
        self.loop = Loop(processes, log, self.context.stop, self.context.num_steps, recipe.engine.log_every)
        self._stage: Stage | None = None
        self._steps: Generator[tuple[Sequence[Batch], Ahead | None]] | None = None

    def begin(self, lock: Lock) -> None:
        """Makes the run folder ready, opens its log and logs what is about to be run.

        Raises UserError where another process has the lock, or the disk refuses.
        """
        context = self.context
        context.processes.first_does(lambda: context.folder.begin(context.recipe, self.initial.record, lock))
        if context.processes.is_first:
            context.log.open(context.folder.path, context.recipe.engine.trackers())
        introduce(context, self.initial.notes)

    def run(self) -> int:
        """Trains from the last checkpoint, or from the start, to the end or until a signal asks to stop; returns the step reached."""
        context = self.context
        first = self.resume()
        start = time.perf_counter()
        try:
            with self._compiled() if context.recipe.engine.compile else nullcontext():
                step = self.loop.run(first, self._take_step, self.hooks)
        finally:
            self._close_steps()
            context.log.close()
        folder = context.folder
        self.loop.conclude(first, step, time.perf_counter() - start, f"Model: {folder.model}. Next: amradio evaluate {folder.path}")
        return step

    def _take_step(self, step: int) -> None:
        """Step number `step`, from 0."""
        context = self.context
        stage = next(stage for stage in context.stages if step < stage.end)
        if self._steps is None or stage is not self._stage:
            self._close_steps()
            self._stage, self._steps = stage, self.optimization.steps(stage, step)
            self.monitor.begin(context.num_steps)
        with context.clock.part("data"):
            batches, prepared = next(self._steps)
        measure = context.is_due(step + 1, context.recipe.engine.log_every)
        metrics = self.optimization.take(stage, step, batches, measure, prepared)
        tokens = stage.num_tokens(step, context.task.network.student.patch_size)
        self.monitor.take(step + 1, metrics, batches, self.optimization.rate, tokens)

    def _close_steps(self) -> None:
        """Ends the loading processes and threads."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _compiled(self) -> AbstractContextManager[None]:
        """Compiles what steps and held-out agreement run; suites beside them run copies of the student, and the teachers as they are."""
        self.context.log.say("compiling student and teachers, once for each size: the first step of a size takes minutes")
        task = self.context.task
        compile_in_place(task.network.student)
        task.teachers.update({name: compiled(teacher) for name, teacher in task.teachers.items() if not teacher.needs_keys})
        return many_graphs()

    def resume(self) -> int:
        """Fills everything from the last checkpoint and completes the run folder; returns its step, 0 where there is none."""
        context = self.context
        step = self.saving.resume()
        if not step:
            return 0
        current = next((stage for stage in context.stages if step <= stage.end), context.stages[-1])
        context.calibrated_stage = current.number
        context.log.forget_after(step)
        context.log.say(f"resuming {context.folder.path} from step {step} of {context.num_steps}")
        self.saving.complete()
        self.calibration.complete(step)
        return step
