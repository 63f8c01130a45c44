"""A recipe becomes a job: everything is checked first, then loaded, then the loop runs it in its run folder."""

import copy
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .config import to_yaml
from .data import Batch, Feed, SourceSettings, check, describe, train_batches, val_batches
from .engine.checkpoint import disk_errors
from .engine.distributed import Processes, autocast_dtype
from .engine.ema import Ema
from .engine.log import Clock, Log
from .engine.loop import Job, Stage, train
from .engine.monitor import Monitor
from .engine.optimizer import build_optimizer
from .errors import UserError
from .evaluation.agreement import Agreement, agreement
from .features import KINDS, Kind
from .formats.folder import write_folder
from .losses import Loss
from .network import Network, Normalizers
from .periodic import PeriodicSuite
from .pictures import contact_sheet
from .recipe import PartitionSettings, Recipe
from .run import RunFolder
from .students.base import Student
from .students.trained import merged
from .task import Distillation, Objective, Partition, calibrate, fold_normalizers, speak_raw
from .teachers.base import Teacher
from .tensors import write_tensors

Teachers = Mapping[str, Teacher]
LOADING_TRIAL = 32
"""Images of which the speed of loading is measured at the start."""


class Group(NamedTuple):
    """A partition as the loop carries it around: what the task needs, and where its images come from."""

    settings: PartitionSettings
    partition: Partition
    view_size: int
    source: SourceSettings
    seed: int


def load_teachers(recipe: Recipe, own: Teachers) -> dict[str, Teacher]:
    """The frozen teachers on the CPU, one's own objects in their places; raises UserError with what all of them lack."""
    teachers, problems = {}, []
    for name, settings in recipe.teachers.items():
        try:
            teachers[name] = own[name] if name in own else settings.build()
        except UserError as error:
            problems += [f"teachers.{name}: {problem}" for problem in error.problems]
            continue
        lacks_all = all(getattr(teachers[name], f"{kind}_dim") is None or not getattr(settings, f"{kind}_weight") for kind in KINDS)
        if lacks_all:
            problems.append(
                f"teachers.{name}: nothing to learn: it has no feature with a weight; set summary_weight or spatial_weight, or drop it"
            )
        teachers[name].requires_grad_(False).eval()
    if problems:
        raise UserError(*problems)
    return teachers


def check_data(recipe: Recipe) -> list[str]:
    """What is wrong with the data sources, one sentence each."""
    problems = []
    for key, source in recipe.sources().items():
        try:
            check(source)
        except UserError as error:
            problems += [f"{key}: {problem}" for problem in error.problems]
    if recipe.data.hold_out is not None and not problems:
        try:
            recipe.data.open_val()
        except UserError as error:
            problems += error.problems
    return problems


def describe_data(recipe: Recipe) -> dict[str, str]:
    """`{"data.train": "3,490 images in /path"}`."""
    found = {key: describe(source) for key, source in recipe.sources().items()}
    return found | ({"data.hold_out": recipe.data.open_val().describe()} if recipe.data.hold_out is not None else {})


def check_sizes(recipe: Recipe, network: Network, world_size: int) -> list[str]:
    """Image sizes that the student cannot take and batches that cannot be shared out, one sentence each."""
    problems = []
    for key, settings in recipe.partitions():
        size = settings.image_size
        legal = network.student.nearest_size(size, size)
        if legal != (size, size):
            problems.append(f"{key}.image_size: the student cannot take {size} px; the nearest legal size is {legal[0]}")
        try:
            Feed(size, settings.batch_size, 0, 0, world_size)
        except UserError as error:
            problems.append(f"{key}.batch_size: {error}")
        share = settings.batch_size // world_size
        if share % recipe.engine.accumulate:
            problems.append(f"engine.accumulate: {recipe.engine.accumulate} does not divide the {share} images a process of {key}")
    return problems


class Training:
    """One run of a recipe on this machine: what is loaded, and the steps from the run folder's state to the end."""

    def __init__(self, recipe: Recipe, teachers: Teachers, processes: Processes, log: Log, student: Student | None = None):
        """teachers: loaded, on the CPU. student: one of type `own`. Raises UserError where sizes do not fit."""
        self.recipe, self.processes, self.log = recipe, processes, log
        self.folder = RunFolder(recipe.out, recipe.engine.keep)
        torch.manual_seed(recipe.seed)
        self.begun = recipe.begin(teachers, self.folder.beginning(), student)
        self.config, network = self.begun.config, self.begun.network
        processes.share_batch_statistics(network)
        problems = check_sizes(recipe, network, processes.world_size)
        if problems:
            raise UserError(*problems)
        self.clock = Clock(processes.device)
        self.monitor = Monitor(processes, log, self.clock)
        losses: dict[Kind, Loss] = {kind: getattr(recipe.loss, kind).build() for kind in KINDS}
        objective = Objective(losses, recipe.balance.build(recipe.weights()), recipe.loss.grid)
        moved = {name: teacher.to(processes.device) for name, teacher in teachers.items()}
        self.task = Distillation(network, moved, objective, self.clock.part).to(processes.device)
        speak_raw(self.task, self.begun.kept)
        self.ema = Ema(network, recipe.engine.ema) if recipe.engine.ema else None
        self.stages = list(self._stages())
        self.autocast = autocast_dtype(recipe.engine.precision, processes.device)
        # Seen: the fused kernel's backward on a CPU in bfloat16 halves the speed of a ViT-tiny step (317 -> 178 images/s a core).
        network.student.fuse_attention(not (processes.device.type == "cpu" and self.autocast is torch.bfloat16))
        self.suite = PeriodicSuite(recipe, moved, processes.device)
        self.suite.check(self.config, network)
        self.agreement: Agreement = {}
        self.evaluated: int | None = None
        spared = {f"network.student.{name}" for name in network.student.no_decay() | self.begun.partly_trained}
        self.optimizer = build_optimizer(self.task, recipe.optimizer, spared)

    def _stages(self) -> Iterator[Stage]:
        start = 0
        for index, stage in enumerate(self.recipe.stages):
            groups = [self._group(index, number, settings) for number, settings in enumerate(stage.partitions)]
            yield Stage(index, start, start + stage.steps, groups)
            start += stage.steps

    def _group(self, stage: int, number: int, settings: PartitionSettings) -> Group:
        names = tuple(settings.teachers or self.recipe.teachers)
        size = settings.image_size
        sizes = [size, *(side for name in names for side in self.task.teachers[name].size_for(size, size))]
        partition = Partition(f"{stage}.{number}", names, size, settings.weight)
        source = settings.source or self.recipe.data.train
        return Group(settings, partition, settings.view_size or max(sizes), source, self.recipe.seed + 7919 * number)

    def log_to(self, log: Log) -> None:
        """Sends what is said from now on to `log`."""
        self.log = self.monitor.log = log

    def introduce(self) -> None:
        """Says what is about to be run."""
        network, device = self.task.network, self.processes.device
        precision = str(self.autocast or torch.float32).removeprefix("torch.")
        heads = sum(p.numel() for p in network.heads.parameters()) / 1e6
        self.log.say(
            f"student {self.config.student.type}: {sum(p.numel() for p in network.student.parameters()) / 1e6:.2f} M parameters, "
            f"heads {heads:.2f} M; {self.processes.world_size} x {device}, {torch.get_num_threads()} threads, {precision}"
        )
        for name, teacher in self.task.teachers.items():
            million = sum(p.numel() for p in teacher.parameters()) / 1e6
            self.log.say(f"teacher {name}: {teacher.source}, {million:.2f} M parameters, licence {teacher.licence}")
        unread = network.student.num_summaries - len({head.slot for head in network.heads.values() if head.summary is not None})
        if unread:
            self.log.warn(f"{unread} of the student's {network.student.num_summaries} summaries is read by no head")
        for note in self.begun.notes:
            self.log.say(note)
        if self.processes.is_first:
            self.log.say(f"data: {self.data}, {self._loading_speed():.0f} images/s a core")

    def _loading_speed(self) -> float:
        """Images/s that one core draws or reads and crops for the first partition."""
        group = self.stages[0].groups[0]
        alone = self.recipe.data.model_copy(update={"num_workers": 0})
        batches = train_batches(alone, group.source, Feed(group.view_size, LOADING_TRIAL, group.seed))
        next(batches)  # opens files and warms caches
        begun = time.perf_counter()
        next(batches)
        return LOADING_TRIAL / (time.perf_counter() - begun)

    def run(self) -> int:
        """Trains from the last checkpoint, or from the start, to the end or a signal; returns the step reached."""
        step = self.resume()
        if self.recipe.engine.compile:
            self.task.network.student.compile()
            for teacher in self.task.teachers.values():
                teacher.compile()
        begun = time.perf_counter()
        try:
            reached = train(self._job(), step)
        finally:
            self.log.close()
        minutes = (time.perf_counter() - begun) / 60
        ended = "done" if reached == self.recipe.num_steps else "stopped by a signal; the same command goes on from here"
        self.log.say(f"{ended}: step {reached} of {self.recipe.num_steps}, {minutes:.1f} minutes, model in {self.folder.model}")
        return reached

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
            clock=self.clock,
            autocast=self.autocast,
            open_batches=self._open_batches,
            begin_stage=self._begin_stage,
            evaluate=self._evaluate_aside,
            evaluate_due=self._evaluate_due,
            save=self.save,
            spare=self._spare,
            after_step=self._after_step,
        )

    def _after_step(self) -> None:
        self.processes.average_running_statistics(self.task.network)
        if self.ema:
            self.ema.update(self.task.network)

    def _spare(self, stage: Stage) -> None:
        """Takes the gradients (zeros) from heads that the stage does without: with one, decay and momentum would still move them."""
        present = {name for group in stage.groups for name in group.partition.teachers}
        for name, head in self.task.network.heads.items():
            if name not in present:
                head.zero_grad(set_to_none=True)

    def _feed(self, group: Group) -> Feed:
        return Feed(group.view_size, group.settings.batch_size, group.seed, self.processes.rank, self.processes.world_size)

    def _open_batches(self, stage: Stage, group: Group, step: int) -> Iterator[Batch]:  # noqa: ARG002 - the loop's signature
        return train_batches(self.recipe.data, group.source, self._feed(group), step)

    def _begin_stage(self, stage: Stage) -> None:
        """Statistics of the teachers over the stage's first batches, and the picture of what every model sees."""
        begun = time.perf_counter()
        followers = [self.ema.average] if self.ema else []
        images = self._calibration_images(stage)
        calibrate(self.task, images, self.recipe.normalize, self.processes.add_up, self.autocast, followers)
        teachers = {name for group in stage.groups for name in group.partition.teachers}
        self.log.say(
            f"stage {stage.number + 1} of {len(self.stages)}: statistics of {len(teachers)} teachers over "
            f"{self.recipe.normalize.batches} batches in {time.perf_counter() - begun:.1f} s"
        )
        self.processes.first_does(partial(self._write_calibration, stage))

    def _calibration_images(self, stage: Stage) -> Iterator[tuple[torch.Tensor, Partition]]:
        for group in stage.groups:
            batches = self._open_batches(stage, group, stage.start)
            for index in range(self.recipe.normalize.batches):
                images = next(batches).images.to(self.processes.device)
                if index == 0 and self.processes.is_first:
                    self._draw_first_batch(stage, group, images)
                yield images, group.partition

    def _draw_first_batch(self, stage: Stage, group: Group, images: torch.Tensor) -> None:
        name = "first_batch.png" if (stage.number, group.partition.name) == (0, "0.0") else f"first_batch_{group.partition.name}.png"
        with disk_errors(self.folder.path):
            contact_sheet(self.task.views(images[:8], group.partition), self.folder.path / "images" / name)

    def _write_calibration(self, stage: Stage) -> None:
        """`calibration/stage_0/clip_summary.safetensors` (mean, std, shift, scale) and a manifest of what they were measured on."""
        folder = self.folder.path / "calibration" / f"stage_{stage.number}"
        manifest: dict[str, Any] = {"batches": self.recipe.normalize.batches, "teachers": {}}
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, kinds in self.task.normalizers.items():
                for kind, normalizer in kinds.items():  # type: ignore[union-attr]
                    tensors = {key: value for key, value in normalizer.state_dict().items() if key != "calibrated"}
                    write_tensors(tensors, folder / f"{name}_{kind}.safetensors")
        for group in stage.groups:
            for name in group.partition.teachers:
                teacher = self.task.teachers[name]
                sizes = manifest["teachers"].setdefault(name, {"source": teacher.source, "sizes": []})["sizes"]
                sizes.append(list(teacher.size_for(group.partition.image_size, group.partition.image_size)))
        self.folder.write(f"calibration/stage_{stage.number}/manifest.json", json.dumps(manifest, indent=1) + "\n")

    def _evaluate_due(self, step: int) -> bool:
        return self._agreement_due(step) or self.suite.due(step)

    def _agreement_due(self, step: int) -> bool:
        every = self.recipe.evaluate.every
        if not self.recipe.data.has_val or every is None or step == self.evaluated:
            return False
        return step % every == 0 or step == self.recipe.num_steps

    def _evaluate_aside(self, step: int) -> None:
        with self.clock.paused():
            if self._agreement_due(step):
                self.evaluate(step)
            if self.suite.due(step):
                self.suite.done = step
                handed_over = self.config, self.folded_network()
                self.processes.first_does(partial(self.suite.run, step, handed_over, self.folder, self.log))

    def evaluate(self, step: int) -> None:
        """Held-out agreement with every teacher of the stage that `step` ends or is in, into evaluations/ and metrics.jsonl."""
        stage = next(stage for stage in self.stages if step <= stage.end)
        self.agreement, self.evaluated = {}, step
        with self._averaged_weights():
            for group in stage.groups:
                for name, row in self._agreement(group).items():
                    self.agreement[name if name not in self.agreement else f"{name}@{group.partition.image_size}"] = row
        flat = {f"val/{name}/{key}": value for name, row in self.agreement.items() for key, value in row.items()}
        self.log.record({"step": step} | flat)
        summary = "  ".join(f"{name} {row['standardised_cosine']:.3f} ({row['norm_ratio']:.2f})" for name, row in self.agreement.items())
        self.log.say(f"held out at step {step}, standardised cosine (norm ratio): {summary}")
        self.processes.first_does(
            lambda: self.folder.write(f"evaluations/step_{step:09d}/held_out.json", json.dumps(self.agreement, indent=1) + "\n")
        )

    def _agreement(self, group: Group) -> Agreement:
        limit = self.recipe.evaluate.batches * group.settings.batch_size
        batches = val_batches(self.recipe.data, None, self._feed(group), limit)
        return agreement(self.task, batches, group.partition, self.autocast, self.processes.add_up)

    def save(self, step: int) -> None:
        """A checkpoint and the model folder; raises UserError where the disk refuses, on every process."""
        self.processes.first_does(partial(self._save, step))

    def _save(self, step: int) -> None:
        tensors = {"task": self.task.state_dict()} | ({"ema": self.ema.average.state_dict()} if self.ema else {})
        state = {"num_steps": self.recipe.num_steps, "agreement": self.agreement, "evaluated": self.evaluated, "suite": self.suite.done}
        state["skipped_images"] = self.monitor.num_skipped
        self.folder.checkpoints.save(step, tensors, {"optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}, state)
        notes = {"step": step, "num_steps": self.recipe.num_steps, "data": self.data, "agreement": self.agreement}
        notes["recipe"] = to_yaml(self.recipe)
        with disk_errors(self.folder.path):
            write_folder(self.folder.model, self.config, self.folded_network(), notes)

    def folded_network(self) -> Network:
        """The network as it is handed over: averaged weights where there are any, heads that speak raw teacher space."""
        network = self.ema.average if self.ema else self.task.network
        normalizers = Normalizers(network.rotation)
        handed_over = Network(merged(network.student), dict(copy.deepcopy(network.heads)), network.summary_slots, normalizers)  # type: ignore[arg-type]
        fold_normalizers(self.task, handed_over)
        return handed_over

    @cached_property
    def data(self) -> str:
        """`3,490 images in /path`, of the training source."""
        return self.recipe.data.open_train(self.recipe.data.train).describe()

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if self.ema is None:
            yield
            return
        own, self.task.network = self.task.network, self.ema.average
        try:
            yield
        finally:
            self.task.network = own
            self.ema.average.eval()

    def resume(self) -> int:
        """Fills everything from the last checkpoint; returns its step, 0 where there is none."""
        found = self.folder.checkpoints.load()
        if found is None:
            return 0
        tensors, other, state = found
        self.task.load_state_dict(tensors["task"])
        if self.ema:
            self.ema.average.load_state_dict(tensors["ema"])
        self.optimizer.load_state_dict(other["optimizer"])
        torch.set_rng_state(other["rng"])
        self.agreement, self.evaluated, self.suite.done = state["agreement"], state["evaluated"], state["suite"]
        self.monitor.num_skipped = state["skipped_images"]
        self.log.forget_after(state["step"])
        self.log.say(f"resuming {self.folder.path} from step {state['step']} of {self.recipe.num_steps}")
        return state["step"]
