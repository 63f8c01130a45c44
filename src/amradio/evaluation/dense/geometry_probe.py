"""Probes of depth and of normals on frozen maps: which maps they read, how they are trained, how they are scored."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from ...config import Decay, LearningRate, Positive, Settings, Share, one_of
from ...data.source import Order
from ...errors import UserError
from ...features import Features
from ...images import to_float
from ...labelled.geometry import GeometryMaps
from ...model import Model
from ..base import Bench, Evaluation, Metric, Predict, Predictors, Result
from ..predictors import Joint, Predictor, inputs_of
from .augmentation import ShortSchedule
from .geometry_floors import NOTHING_KNOWN, constant_answers
from .geometry_heads import NUM_BLOCKS, DptHeadSettings, LinearHeadSettings, block_numbers, seeded
from .linear_segmentation import with_maps
from .mean_iou import upsample
from .probe import ProbeBatch, Training, augmented, fit, learning_rate, unaugmented
from .scoring import Sample, by_size, score_windows, to_tensors

Probes = Mapping[str, nn.Module]
LEAST_RATE = 0.01
"""Of the learning rate, at the first step and at the last one (Probe3D)."""


class EpochSchedule(Settings):
    """Passes over the training images, the learning rate on a quarter of a cosine (Probe3D)."""

    type: Literal["published"] = "published"
    epochs: Positive = 10
    """Passes."""
    batch_size: Positive = 8
    """Images an update."""
    learning_rate: LearningRate = 5e-4
    """Of AdamW, after the warm-up."""
    weight_decay: Decay = 0.01
    """Of AdamW."""
    warmup_epochs: Annotated[float, pydantic.Field(ge=0, le=1e6)] = 1.5
    """Passes over which the learning rate rises in a straight line."""
    flip: Share = 0.0
    """How often an image is mirrored, and its depth or its normals with it; Probe3D mirrors half of NYUv2 and none of NAVI."""

    def steps(self, num_images: int) -> int:
        """Updates for so many training images."""
        return self.epochs * max(1, num_images // self.batch_size)

    def rate(self, num_images: int, step: int) -> float:
        """The learning rate of a step, from 0."""
        steps, warmup = self.steps(num_images), self.warmup_epochs * max(1, num_images // self.batch_size)
        rising = step <= warmup and warmup > 0
        part = step / warmup if rising else math.cos(0.5 * math.pi * (step - warmup) / max(steps - warmup, 1))
        return self.learning_rate * ((1 - LEAST_RATE) * part + LEAST_RATE)


if TYPE_CHECKING:
    AnyGeometrySchedule = EpochSchedule | ShortSchedule
else:
    AnyGeometrySchedule = one_of((EpochSchedule, ShortSchedule))


class Target(Protocol):
    """What is predicted: depth, or normals. Predictions and truth are [N, C, H, W]; the truth is 0 where it is not known."""

    name: str
    outputs: int
    """Channels of a head."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """The columns; all have a better direction."""
        ...

    def decode(self, outputs: Tensor) -> Tensor:
        """What a head makes of maps, [N, outputs, h, w] -> predictions for the loss."""
        ...

    def loss(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Of predictions at the size of the truth: one number."""
        ...

    def scores(self, predicted: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
        """{name of a metric: [N]}."""
        ...

    def prepare(self, label: Tensor) -> Tensor:
        """A label as it is read, [H, W] or [H, W, 3] -> [C, H, W]."""
        ...

    def mirrored(self, label: Tensor) -> Tensor:
        """The label of the mirrored image."""
        ...


class GeometryProbe(Evaluation):
    """Depth or normals by a head on frozen maps: trained on some images, scored on others."""

    is_shared = True

    def __init__(
        self,
        target: Target,
        data: "Data",
        head: LinearHeadSettings | DptHeadSettings,
        schedule: EpochSchedule | ShortSchedule,
        seed: int = 0,
    ):
        self.target, self.train, self.test = target, data.train, data.test
        self.head, self.schedule, self.seed = head, schedule, seed

    def check(self, predict: Predictors, bench: Bench) -> None:
        """Raises UserError where DPT is asked for and there is no ViT student among the rows."""
        if isinstance(self.head, DptHeadSettings):
            student_with_blocks(predict, bench, self.target.name)

    def run(self, predict: Predict, bench: Bench) -> Result:
        """The metrics of the target for every model that has a map (linear), or for the student (DPT).

        Floors: one answer for all pixels, and one for each place of the image, whichever is better. Raises UserError where no model suits.
        """
        if isinstance(self.head, DptHeadSettings):
            predict = with_blocks(student_with_blocks(predict, bench, self.target.name), predict)
        else:
            predict = with_maps(predict, bench.device, self.target.name)
        answers = constant_answers(self.train, self.target.prepare)
        probes = fit(self._batches(predict, bench), self._training())

        def measure(window: list[Sample]) -> list[Scores]:
            return [scores for batch in by_size(window) for scores in self._scores(batch, predict, probes, answers)]

        title = f"{self.target.name} of {len(self.test):,} images"
        parts, digest = score_windows(self.test, title, bench, measure)
        images = [scores for part in parts for scores in part]
        if not images:
            raise UserError(f"{self.test.describe()}: {NOTHING_KNOWN}; nothing can be scored")
        means = _means([scores.models for scores in images])
        trivial = _means([scores.trivial for scores in images])
        best = {metric.name: max if metric.better == "higher" else min for metric in self.target.metrics}
        unknown = len(self.test) - len(images)
        notes = [f"{unknown} images without a pixel of known {self.target.name} were left out"] if unknown else []
        return Result(
            self.target.metrics,
            means,
            {"training_images": len(self.train), "images": len(images)},
            digest[:16],
            {name: choose(row[name] for row in trivial.values()) for name, choose in best.items()},
            floor="predictions that ignore the image",
            inputs=inputs_of(predict),
            notes=(*self.test.notes(), *notes),
        )

    def _training(self) -> Training:
        schedule, target, dim_to_head = self.schedule, self.target, self.head.build

        def loss(probe: nn.Module, maps: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
            total = maps[0].new_zeros(())
            for numbers in _alike(maps, labels):
                truth = torch.stack([target.prepare(labels[number]) for number in numbers])
                predicted = predictions(target, probe, torch.stack([maps[number] for number in numbers]), (truth.shape[2], truth.shape[3]))
                total = total + target.loss(predicted, truth) * len(numbers) / len(maps)
            return total

        is_short = isinstance(schedule, ShortSchedule)
        return Training(
            rate=partial(learning_rate, schedule) if is_short else partial(schedule.rate, len(self.train)),
            weight_decay=schedule.weight_decay,
            build=lambda dim: seeded(lambda: dim_to_head(dim, target.outputs), self.seed),
            loss=loss,
        )

    def _batches(self, predict: Predict, bench: Bench) -> Iterator[ProbeBatch]:
        schedule = self.schedule
        if isinstance(schedule, ShortSchedule):
            return unaugmented(self.train, predict, schedule, self.seed, bench)
        views = _Views(self.train, schedule, self.target, self.seed)
        return augmented(views.view, schedule.steps(len(self.train)), schedule.batch_size, predict, bench)

    @torch.no_grad()
    def _scores(self, batch: Sequence[Sample], predict: Predict, probes: Probes, answers: Mapping[str, Tensor]) -> list["Scores"]:
        """Of the images of one size that have a known pixel."""
        batch = [sample for sample in batch if bool((self.target.prepare(sample.label) != 0).any())]
        if not batch:
            return []
        device = next(next(iter(probes.values())).parameters()).device
        images = to_float(torch.stack([sample.image for sample in batch]).to(device))
        truth = torch.stack([self.target.prepare(sample.label) for sample in batch]).to(device)
        size = truth.shape[2], truth.shape[3]
        models: dict[str, Mapping[str, Tensor]] = {}
        for name, call in predict.items():
            spatial = call(images).spatial
            assert spatial is not None
            models[name] = self.target.scores(predictions(self.target, probes[name], spatial, size), truth)
        trivial = {
            name: self.target.scores(upsample(answer[None].to(device), size).expand(len(batch), -1, -1, -1), truth)
            for name, answer in answers.items()
        }
        return [Scores(*(_of_image(kind, number) for kind in (models, trivial))) for number in range(len(batch))]


class Data(NamedTuple):
    """Images of one kind."""

    train: GeometryMaps
    """For the probe."""
    test: GeometryMaps
    """For the score."""


Values = dict[str, dict[str, float]]
"""{row: {metric: value}}."""


class Scores(NamedTuple):
    """Of one image."""

    models: Values
    trivial: Values
    """Of predictions that ignore the image."""


def predictions(target: Target, probe: nn.Module, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [N, h, w, D] -> predictions [N, C, *size], upsampled bilinearly."""
    return upsample(target.decode(probe(maps.permute(0, 3, 1, 2))), size)


class _Views:
    """Training images in a shuffled order, some of them mirrored; by the number of the view."""

    def __init__(self, maps: GeometryMaps, schedule: EpochSchedule, target: Target, seed: int):
        self.maps, self.flip, self.target, self.seed = maps, schedule.flip, target, seed
        self.order = Order(seed, schedule.batch_size)

    def view(self, number: int) -> Sample:
        sample = to_tensors(*self.maps.read(self.order.number_in_epoch(number, len(self.maps), 0)))
        draws = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, number))))
        if draws.random() >= self.flip:
            return sample
        return Sample(sample.image.flip(2), self.target.mirrored(sample.label))


def student_with_blocks(predict: Predict, bench: Bench, name: str) -> Model:
    """The student, whose row must be among those that are measured. Raises UserError where it has not four blocks that can be read."""
    model = bench.model if "student" in predict else None
    count = model.network.student.num_blocks if model is not None else 0
    if model is None or count < NUM_BLOCKS:
        there = "there is no student" if model is None else f"the student has {count or 'none'}"
        raise UserError(f"{name}: head dpt reads {NUM_BLOCKS} blocks of a student of type vit, and {there}; take head: linear")
    return model


def with_blocks(model: Model, predict: Predict) -> dict[str, Predictor]:
    """The row `student`, whose map has four blocks behind one another: [B, h, w, 4 D]."""
    student = predict["student"]
    assert isinstance(student, Predictor)
    numbers = block_numbers(model.network.student.num_blocks)

    def blocks(images: Tensor) -> Features:
        maps = [features.spatial for features in model.intermediates(images, numbers)]
        return Features(None, torch.cat([cells for cells in maps if cells is not None], -1))

    return {"student": Predictor(Joint(student.joint.prepare, blocks, (student.joint.view, "blocks"), student.joint.autocast))}


def _alike(maps: Sequence[Tensor], labels: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of the images whose maps, and whose labels, are of one size."""
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for number, (cells, label) in enumerate(zip(maps, labels, strict=True)):
        groups.setdefault((cells.shape, label.shape), []).append(number)
    return list(groups.values())


def _of_image(scores: Mapping[str, Mapping[str, Tensor]], number: int) -> Values:
    return {row: {name: float(values[number]) for name, values in by_metric.items()} for row, by_metric in scores.items()}


def _means(images: Sequence[Values]) -> Values:
    """Over images, of which each counts as much as another."""
    return {
        row: {metric: math.fsum(image[row][metric] for image in images) / len(images) for metric in by_metric}
        for row, by_metric in images[0].items()
    }
