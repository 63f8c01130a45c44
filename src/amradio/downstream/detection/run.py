"""The training of a detector: the engine's loop, saving and folder around the steps of a detector."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ... import formats
from ...batch import Batch
from ...config import to_yaml
from ...data import Feed
from ...devices import autocast_dtype
from ...engine import saving
from ...engine.distributed import Processes
from ...engine.folder import Folder
from ...engine.lock import Lock
from ...engine.log import Clock, Log
from ...engine.loop import Loop, Reporting, is_due
from ...engine.monitor import Monitor
from ...engine.optimizer import FACTOR, build_optimizer, learning_rate, set_rates
from ...engine.parallel import parallelize
from ...engine.rates import rate_factors
from ...errors import UserError, shown
from ...files import disk_errors, read_json
from ...interruption import Stop
from ...labelled.instances import InstanceSet
from ...labelled.masks import find_pycocotools
from ...students.drop_path import add_drop_path
from .detector import Detector, Losses
from .examples import Examples, TrainingExamples, check_objects, same_classes
from .files import write_detector
from .scoring import coco_scores, joined, predict
from .settings import DetectionRecipe

Result = TypeVar("Result")


class DetectionFolder(Folder):
    """The run folder of a detector."""

    recipe_type = DetectionRecipe

    def begin(self, recipe: DetectionRecipe, lock: Lock, images: InstanceSet) -> None:
        """`start`, with data.json. Raises UserError, before anything is written, where a run with a checkpoint began with other images."""
        stated, file = {"source": images.describe(), "fingerprint": images.fingerprint()}, self.path / "data.json"
        stored = read_json(file).get("data.train") if self.checkpoints.steps() and file.is_file() else None
        if isinstance(stored, dict) and stored.get("fingerprint") != stated["fingerprint"]:
            raise UserError(
                f"out: {self.path} was begun with other training images or annotations ({shown(stored.get('source'))}; "
                f"now {stated['source']}); restore them to resume it, or give another out folder"
            )
        self.start(recipe, lock)
        self.write("data.json", json.dumps({"data.train": stated}, indent=1) + "\n")


class DetectionRun:
    """One run of a recipe on this machine, from the run folder's state to the end."""

    def __init__(self, recipe: DetectionRecipe, processes: Processes, log: Log):
        """Builds everything and writes nothing. Raises UserError with all that stands against the run."""
        self.recipe, self.processes, self.log = recipe, processes, log
        self.folder = DetectionFolder(recipe.out, recipe.engine.keep)
        torch.manual_seed(recipe.seed)
        self.images, self.val, model, share = _opened(recipe, processes)
        self.config = model.config
        self.detector = _detector(recipe, model.network, self.images).to(processes.device).train()
        self.num_steps = max(1, round(recipe.schedule.epochs * len(self.images) / recipe.schedule.batch_size))
        self.examples = TrainingExamples(self.images, recipe.schedule, recipe.seed, share, self.detector.has_masks)
        self.autocast = autocast_dtype(recipe.engine.precision, processes.device)
        without_decay = {f"student.{name}" for name in self.detector.student.no_decay()}
        factors = rate_factors(self.detector, recipe.optimizer)
        self.optimizer = build_optimizer(self.detector, recipe.optimizer, without_decay, factors)
        self.factors = [group[FACTOR] for group in self.optimizer.param_groups]
        self.parallel = parallelize(self.detector, processes)
        self.monitor = Monitor(processes, log, Clock(processes.device), _in_brief)
        self.stop = Stop()
        self.scoring = ScoreHook(self)
        self.saving = DetectionSaving(self)
        self._batches: Iterator[Examples] | None = None

    def begin(self, lock: Lock) -> None:
        """Makes the run folder ready and logs what is about to be run. Raises UserError where another process has the lock."""
        self.processes.first_does(lambda: self.folder.begin(self.recipe, lock, self.images))
        if self.processes.is_first:
            self.log.open(self.folder.path, self.recipe.engine.trackers())
        trained = sum(parameter.numel() for parameter in self.detector.student.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in self.detector.parameters() if parameter.requires_grad)
        kind = self.config.student.type
        self.log.say(f"{kind} student: {trained / 1e6:.2f} M parameters trained; detector: {(total - trained) / 1e6:.2f} M")
        self.log.say(f"data: {self.images.describe()}, {len(self.images.classes)} classes; {self.num_steps} steps")

    def run(self) -> int:
        """Trains from the last checkpoint, or from the start, to the end or until a signal asks to stop; returns the step reached."""
        engine = self.recipe.engine
        first = self.saving.resume()
        if first:
            self.log.forget_after(first)
            self.log.say(f"resuming {self.folder.path} from step {first} of {self.num_steps}")
            self.processes.first_does(lambda: self.saving.write_model(first, self.saving.progress))
        reporting = Reporting(self.monitor, (engine.log_every, engine.checkpoint_every), self.num_steps)
        loop = Loop(self.processes, self.log, self.stop, self.num_steps, engine.log_every)
        self._batches = self.examples.batches(first, self.num_steps, self.recipe.data.num_workers)
        self.monitor.begin(self.num_steps)
        start = time.perf_counter()
        try:
            step = loop.run(first, self._take_step, (reporting, self.scoring, self.saving))
        finally:
            cast(Any, self._batches).close()
            self.log.close()
        loop.conclude(first, step, time.perf_counter() - start, f"Detector: {self.folder.model}. Next: amradio report {self.folder.path}")
        return step

    def _take_step(self, step: int) -> None:
        """Step number `step`, from 0."""
        assert self._batches is not None
        with self.monitor.clock.part("data"):
            batch = next(self._batches)
        rate = learning_rate(self.recipe.optimizer, step, self.num_steps)
        set_rates(self.optimizer, rate, self.factors)
        self.optimizer.zero_grad(set_to_none=True)
        count = self.recipe.engine.accumulate
        parts: list[dict[str, Tensor]] = []
        for number in range(count):
            piece = batch.piece(number, count).to(self.processes.device)
            with self.parallel.accumulating(last=number == count - 1):
                with torch.autocast(self.processes.device.type, self.autocast, enabled=self.autocast is not None):
                    means = self._over_all_processes(self.parallel(piece))
                loss = torch.stack(list(means.values())).sum()
                (loss / count).backward()
            parts.append({"loss": loss.detach()} | {name: mean.detach() for name, mean in means.items()})
        metrics = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        metrics["gradient_norm"] = self.parallel.clip(self.recipe.optimizer.clip or float("inf"))
        self.optimizer.step()
        tokens = len(batch.keys) * self.processes.world_size * (self.detector.image_size // self.detector.student.patch_size) ** 2
        self.monitor.take(step + 1, metrics, [cast(Batch, batch)], rate, tokens)

    def _over_all_processes(self, losses: Losses) -> dict[str, Tensor]:
        """The losses of a piece, scaled so that their average over the processes is the mean over all anchors, proposals and objects."""
        world_size = self.processes.world_size
        if world_size == 1:
            return losses.means
        totals = torch.tensor([float(count) for count in losses.counts.values()], device=self.processes.device)
        self.processes.add_up(totals)
        shares = {name: losses.counts[name] * world_size / total for name, total in zip(losses.counts, totals.clamp(min=1), strict=True)}
        return {name: mean * shares[name] for name, mean in losses.means.items()}


class ScoreHook:
    """COCO's numbers on data.val during the run, the images shared out over the processes. A hook."""

    def __init__(self, run: DetectionRun):
        self.run_of, self.step = run, cast(int | None, None)

    def due(self, step: int, stopping: bool) -> bool:
        """Whether it is to be measured at `step`: at every multiple of `evaluate.every` but 0, and at the end; once."""
        run = self.run_of
        if stopping or run.val is None or not step or step == self.step:
            return False
        return is_due(step, run.recipe.evaluate.every or run.num_steps, run.num_steps)

    def run(self, step: int) -> None:
        """Measures, logs the numbers and writes evaluations/step_N/detection.json."""
        run = self.run_of
        assert run.val is not None
        numbers = range(run.processes.rank, len(run.val), run.processes.world_size)
        run.detector.eval()
        with run.monitor.clock.paused(), run.log.phase(f"step {step}: detecting in {len(run.val)} images"):
            detected = predict(run.detector, run.val, numbers, run.recipe.data.num_workers, run.autocast)
            scores = coco_scores(joined(run.processes.gather(detected)), run.detector.classes)
        run.detector.train()
        self.step = step
        run.log.record({"step": step} | {f"val/{name}": value for name, value in scores.items()})
        shown = [f"{name} {scores[name]:.1f}" for name in ("box_ap", "box_ap50", "mask_ap") if name in scores]
        run.log.say(f"val at step {step}: {'  '.join(shown)}")
        text = json.dumps(scores, indent=1) + "\n"
        run.processes.first_does(lambda: run.folder.write(f"evaluations/step_{step:09d}/detection.json", text))

    def state_dict(self) -> dict[str, Any]:
        """For state.json of a checkpoint."""
        return {"evaluated": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From what `state_dict` returned."""
        self.step = state["evaluated"]


class DetectionSaving(saving.Saving[saving.Progress]):
    """Saves detector (its student included) and optimizer, and writes the model folder."""

    progress_type = saving.Progress

    def __init__(self, run: DetectionRun):
        owners = (run.scoring, run.monitor)
        super().__init__(run.folder.checkpoints, run.processes, run.log, owners, run.num_steps, run.recipe.engine.checkpoint_every)
        self.run_of = run

    def states(self) -> dict[str, dict[str, Tensor]]:
        """`detector`."""
        return {"detector": self.run_of.parallel.full_state()}

    def modules(self) -> Mapping[str, nn.Module]:
        """The same."""
        return {"detector": self.run_of.detector}

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """That of the run."""
        return self.run_of.optimizer

    def write_model(self, step: int, progress: saving.Progress) -> None:
        """The model folder of the student with the detector in it."""
        run = self.run_of
        notes: dict[str, object] = {"step": step, "num_steps": progress.num_steps, "data": f"detection in {run.images.describe()}"}
        notes["recipe"] = to_yaml(run.recipe)
        with disk_errors(run.folder.path):
            write_detector(run.folder.model, run.config, run.detector, notes)


def _opened(recipe: DetectionRecipe, processes: Processes) -> tuple[InstanceSet, InstanceSet | None, formats.LoadedModel, range]:
    """Training images, those to measure on, the model, and this process's share of a batch; raises UserError with all problems."""
    problems: list[str] = []

    def tried(key: str, open_it: Callable[[], Result]) -> Result | None:
        try:
            return open_it()
        except UserError as error:
            problems.extend(f"{key}: {problem}" if key else problem for problem in error.problems)
            return None

    schedule, with_masks = recipe.schedule, recipe.detector.type == "mask_rcnn"
    problems += recipe.engine.missing_extras()
    tried("data", find_pycocotools)
    chosen = recipe.data.train.model_copy(update=_without_crowds(recipe))
    train = tried("data.train", partial(chosen.build, "masks" if with_masks else "boxes"))
    val = tried("data.val", partial(recipe.data.val.build, "score")) if recipe.data.val is not None else None
    model = tried("model", partial(formats.read, recipe.model))
    feed = tried("schedule.batch_size", partial(Feed, schedule.image_size, schedule.batch_size, 0, processes.rank, processes.world_size))
    if feed is not None and len(feed.share(schedule.batch_size)) % recipe.engine.accumulate:
        count = len(feed.share(schedule.batch_size))
        problems.append(f"engine.accumulate: {recipe.engine.accumulate} does not divide the {count} images of a process; take a divisor")
    if train is not None:
        tried("", partial(check_objects, train, "data.train", with_masks))
    if train is not None and val is not None:
        tried("", partial(same_classes, train.classes, val.classes, "data.val"))
    if problems or train is None or feed is None or model is None:
        raise UserError(*problems)
    return train, val, model, feed.share(schedule.batch_size)


def _without_crowds(recipe: DetectionRecipe) -> dict[str, bool]:
    return {"crowds": False} if "crowds" in type(recipe.data.train).model_fields else {}


def _detector(recipe: DetectionRecipe, network: Any, images: InstanceSet) -> Detector:
    """The detector with the part of the student that is trained chosen. Raises UserError where it does not suit the student."""
    student = network.student
    try:
        recipe.backbone.choose(student, student.blocks_in_order())
    except UserError as error:
        raise UserError(*(f"backbone.{problem}" for problem in error.problems)) from None
    detector = Detector(network, recipe.detector, images.classes, recipe.schedule.image_size)
    if recipe.drop_path:
        try:
            add_drop_path(student, recipe.drop_path)
        except UserError as error:
            raise UserError(*(f"drop_path: {problem}" for problem in error.problems)) from None
    if detector.rotation is not None:
        detector.rotation.requires_grad_(False)
    for name in detector.without_gradient():
        student.get_parameter(name).requires_grad_(False)
    return detector


def _in_brief(numbers: Mapping[str, float]) -> str:
    """What a log line shows beside the loss."""
    return f"class {numbers['class']:.3f}  box {numbers['box']:.3f}"
