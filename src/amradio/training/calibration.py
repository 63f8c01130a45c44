"""Statistics of the teachers before a stage's first step, and the pictures of what every model sees."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..batch import Batch
from ..distillation.calibration import calibrate
from ..distillation.hadamard import has_hadamard
from ..distillation.metrics import MeanAndStd
from ..distillation.views import Partition
from ..drawing.contact_sheet import contact_sheet
from ..errors import UserError
from ..features import KINDS, Kind
from ..files import disk_errors, read_json
from ..recipe import Recipe
from ..tensors import read_tensors, write_tensors
from .schedule import Group, Stage
from .setup import Context

DRAWN_IMAGES = 8
"""Images of the first batch that the contact sheet shows."""
FEW = 100
"""Images from which a channel's deviation is known to within 7 % (1 / sqrt(2 N)); targets are divided by it."""


class Calibration:
    """Measures the statistics of the stage that begins at a step, before its first update; a hook of the trainer.

    They are kept in `calibration/stage_0/clip_summary.safetensors` (mean, std, shift, scale, and its
    inverse where channels are mixed) with a manifest.
    """

    def __init__(self, context: Context):
        self.context = context

    def due(self, step: int, stopping: bool) -> bool:
        """Whether a stage begins at `step` whose statistics are not set."""
        stage = self._beginning_at(step)
        return stage is not None and stage.number != self.context.calibrated_stage and not stopping

    def run(self, step: int) -> None:
        """Sets the normalizers; see `measure`."""
        stage = self._beginning_at(step)
        assert stage is not None
        self.measure(stage)

    def _beginning_at(self, step: int) -> Stage | None:
        return next((stage for stage in self.context.stages if stage.start == step), None)

    def measure(self, stage: Stage) -> None:
        """Sets the normalizers from the stage's first batches. Raises StopAskedError, with nothing changed, where a stop is asked for."""
        context = self.context
        followers = [context.ema.average] if context.ema else []
        what = f"stage {stage.number + 1} of {len(context.stages)}: statistics of {', '.join(stage.teachers)}"
        settings = context.recipe.normalize
        total = len(stage.groups) * settings.batches
        with context.log.phase(f"{what} over {settings.batches} batches"):
            images = context.log.watch(self._images(stage), what, total)
            counts = calibrate(context.task, images, settings, context.processes, context.autocast, followers)
        context.calibrated_stage = stage.number
        self._warn_of_few(stage)
        self._warn_of_widths(counts)
        context.processes.first_does(lambda: self._write(stage))

    def _warn_of_few(self, stage: Stage) -> None:
        recipe = self.context.recipe
        counts = dict.fromkeys(stage.teachers, 0)
        for group in stage.groups:
            for name in group.partition.teachers:
                counts[name] += recipe.normalize.batches * group.settings.batch_size
        few = {name: count for name, count in counts.items() if count < FEW}
        if few:
            images = ", ".join(f"{name} {count}" for name, count in few.items())
            self.context.log.warn(f"statistics from few images ({images}): channels may be scaled wrongly; raise normalize.batches")

    def _warn_of_widths(self, counts: Mapping[tuple[str, Kind], int]) -> None:
        """Of teachers whose number of channels has no Hadamard matrix, and of covariances from fewer samples than channels."""
        context = self.context
        for (name, kind), count in counts.items():
            settings, width = context.recipe.normalize.of(kind), len(context.task.normalizers.of(name, kind).mean)
            if not settings.mixes_channels:
                continue
            if settings.wants_hadamard and not has_hadamard(width):
                context.log.warn(
                    f"normalize.{kind}: no Hadamard matrix of {width} rows, the channels of {name}, can be built; an orthogonal matrix "
                    "takes its place"
                )
            if count < width:
                context.log.warn(
                    f"normalize.{kind}: the covariance of the {width} channels of {name} is measured from {count} samples, fewer than "
                    "channels; raise normalize.batches, or take 'per_channel'"
                )

    def complete(self, step: int) -> None:
        """Writes again what a kill or a user removed of the stages that have begun by `step`.

        Statistics that a later stage has measured anew cannot be restored; a warning names them.
        """
        started = [stage for stage in self.context.stages if stage.start < max(step, 1)]
        for stage in started:
            if not step or self._is_whole(stage):
                continue
            later = {name for other in started[started.index(stage) + 1 :] for name in other.teachers}
            lost = [name for name in stage.teachers if name in later]
            if lost:
                self.context.log.warn(f"{self._folder(stage)}: incomplete, and a later stage has measured {', '.join(lost)} anew since")
            else:
                self.context.log.say(f"{self._folder(stage)}: incomplete; written again")
                self.context.processes.first_does(lambda stage=stage: self._write(stage))

    def _images(self, stage: Stage) -> Iterator[tuple[Batch, Partition]]:
        context = self.context
        for group in stage.groups:
            batches = context.feeds.training(group, stage.start)
            for index in range(context.recipe.normalize.batches):
                batch = next(batches).to(context.processes.device)
                context.stop.check(context.processes.any)
                if index == 0 and context.processes.is_first:
                    self._draw_first_batch(stage, group, batch)
                yield batch, group.drawn(stage.start + index)

    def _draw_first_batch(self, stage: Stage, group: Group, batch: Batch) -> None:
        folder = self.context.folder.path
        name = "first_batch.png" if (stage.number, group.partition.name) == (0, "0.0") else f"first_batch_{group.partition.name}.png"
        rows: list[tuple[str, Tensor]] = []
        for partition in group.sizes:
            views = self.context.task.views.of(batch.images[:DRAWN_IMAGES], partition, batch.draws[:DRAWN_IMAGES])
            rows += [("student", views.student.images), *((f"teacher {name}", view.images) for name, view in views.teachers.items())]
        with disk_errors(folder):
            contact_sheet(rows, folder / "images" / name)

    def _folder(self, stage: Stage) -> Path:
        return self.context.folder.path / "calibration" / f"stage_{stage.number}"

    def _write(self, stage: Stage) -> None:
        task, folder = self.context.task, self._folder(stage)
        normalize = self.context.recipe.normalize
        manifest: dict[str, Any] = {"batches": normalize.batches, "teachers": {}}
        manifest["target_spaces"] = {kind: normalize.of(kind).model_dump()["type"] for kind in KINDS}
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for (name, kind), normalizer in task.normalizers.by_name().items():
                tensors = {key: value for key, value in normalizer.state_dict().items() if key != "calibrated"}
                write_tensors(tensors, folder / f"{name}_{kind}.safetensors")
        for name, sphere in task.spheres.items():
            spread = {key: float(sphere.get_buffer(key)) for key in ("dispersion", "tangent_variance")}
            manifest.setdefault("directions", {})[name] = spread
        for group in stage.groups:
            for name in group.partition.teachers:
                teacher = task.teachers[name]
                sizes = manifest["teachers"].setdefault(name, {"source": teacher.source, "sizes": []})["sizes"]
                sizes += [list(task.views.teacher_size(name, partition)) for partition in group.sizes]
        self.context.folder.write(f"calibration/stage_{stage.number}/manifest.json", json.dumps(manifest, indent=1) + "\n")

    def _is_whole(self, stage: Stage) -> bool:
        folder = self._folder(stage)
        files = [folder / f"{name}_{kind}.safetensors" for name, kind in self.context.task.normalizers.by_name()]
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            for file in files:
                with safe_open(file, "pt") as tensors:
                    list(tensors.keys())
        except (OSError, ValueError, RecursionError, SafetensorError):
            return False
        return isinstance(manifest, dict) and isinstance(manifest.get("teachers"), dict)


def read_statistics(run: Path, recipe: Recipe, step: int) -> dict[tuple[str, Kind], MeanAndStd]:
    """Mean and standard deviation of each channel, [D] each, as a run calibrated them for the stage that `step` is in, by teacher and kind.

    A teacher that only earlier stages had has the statistics of the last of them; one without files has none. Raises UserError where a
    file is damaged.
    """
    statistics: dict[tuple[str, Kind], MeanAndStd] = {}
    start = 0
    for number, stage in enumerate(recipe.stages):
        folder = run / "calibration" / f"stage_{number}"
        if start < max(step, 1) and (folder / "manifest.json").is_file():
            teachers = read_json(folder / "manifest.json").get("teachers")
            if not isinstance(teachers, dict):
                raise UserError(f"{folder / 'manifest.json'}: it names no teachers; copy the run folder again, or delete {folder}")
            keys: list[tuple[str, Kind]] = [(name, kind) for name in recipe.teachers if name in teachers for kind in KINDS]
            tensors = {key: read_tensors(file) for key in keys if (file := folder / f"{key[0]}_{key[1]}.safetensors").is_file()}
            statistics |= {key: (named["mean"], named["std"]) for key, named in tensors.items() if named.keys() >= {"mean", "std"}}
        start += stage.steps
    return statistics
