"""A linear probe on maps of frozen features, and how it is trained."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.loading_processes import read_each
from ...data.source import Order
from ...images import to_float
from ...labelled.segmentation import IGNORE, LabelledMaps
from ..base import Bench, Predict
from .augmentation import AugmentedSchedule, LabelledImage, ShortSchedule, augment
from .mean_iou import upsample
from .scoring import Sample, read_sample, to_tensors

ProbeSchedule = AugmentedSchedule | ShortSchedule
WARMUP_START = 1e-6


class Probe(nn.Module):
    """BatchNorm and a 1x1 convolution: maps [h, w, D] -> logits [K, h, w]. Statistics are over all positions of a batch."""

    def __init__(self, dim: int, num_classes: int, seed: int = 0):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps may differ in size."""
        logits = self.linear(self.norm(torch.cat([cells.flatten(0, 1) for cells in maps])))
        parts = logits.split([cells.shape[0] * cells.shape[1] for cells in maps])
        return [part.unflatten(0, cells.shape[:2]).permute(2, 0, 1) for part, cells in zip(parts, maps, strict=True)]


class ProbeBatch(NamedTuple):
    """What a step of training sees."""

    maps: Mapping[str, Sequence[Tensor]]
    """{model: one map [h, w, D] an image}."""
    labels: Sequence[Tensor]
    """uint8 [H, W] an image."""


def fit(batches: Iterable[ProbeBatch], schedule: ProbeSchedule, num_classes: int, seed: int) -> dict[str, Probe]:
    """One probe a model, trained side by side on the same batches with AdamW; in eval mode. The same on a CPU whenever it is run."""
    probes: dict[str, Probe] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for step, batch in enumerate(batches):
        for name, maps in batch.maps.items():
            if name not in probes:
                probes[name] = Probe(maps[0].shape[-1], num_classes, seed).to(maps[0].device)
                optimizers[name] = torch.optim.AdamW(probes[name].parameters(), weight_decay=schedule.weight_decay)
            optimizer = optimizers[name]
            optimizer.param_groups[0]["lr"] = learning_rate(schedule, step)
            optimizer.zero_grad(set_to_none=True)
            pixel_loss(probes[name](maps), batch.labels).backward()
            optimizer.step()
    return {name: probe.eval().requires_grad_(False) for name, probe in probes.items()}


def learning_rate(schedule: ProbeSchedule, step: int) -> float:
    """A straight line up over the warm-up, then a straight line down to 0 (the polynomial of power 1)."""
    if step < schedule.warmup:
        part = WARMUP_START + (1 - WARMUP_START) * step / schedule.warmup
    else:
        part = 1 - (step - schedule.warmup) / max(schedule.steps - schedule.warmup, 1)
    return schedule.learning_rate * part


def pixel_loss(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Cross entropy of logits [K, h, w], upsampled to their labels uint8 [H, W]: the mean over all pixels that count, 0 where none does."""
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for number, (scores, label) in enumerate(zip(logits, labels, strict=True)):
        groups.setdefault((scores.shape, label.shape), []).append(number)
    total = logits[0].new_zeros(())
    counted = 0
    for numbers in groups.values():
        truth = torch.stack([labels[number] for number in numbers])
        scores = upsample(torch.stack([logits[number] for number in numbers]), (truth.shape[1], truth.shape[2]))
        total = total + F.cross_entropy(scores, truth.long(), ignore_index=IGNORE, reduction="sum")
        counted = counted + (truth != IGNORE).sum()
    return total / counted.clamp(min=1) if isinstance(counted, Tensor) else total


def augmented(maps: LabelledMaps, predict: Predict, schedule: AugmentedSchedule, seed: int, bench: Bench) -> Iterator[ProbeBatch]:
    """Batches of random crops, seen by every model."""
    steps = bench.progress(
        read_each(_Crops(maps, schedule, seed).of_step, range(schedule.steps), bench.num_workers), "training probes", schedule.steps
    )
    for images, labels in steps:
        images = to_float(images.to(bench.device))
        yield ProbeBatch({name: list(_ordinary(call(images).spatial)) for name, call in predict.items()}, list(labels.to(bench.device)))


class _Crops:
    """Random crops of labelled images; those of a step do not depend on how many workers read."""

    def __init__(self, maps: LabelledMaps, schedule: AugmentedSchedule, seed: int):
        self.maps, self.schedule, self.seed = maps, schedule, seed
        self.order = Order(seed, schedule.batch_size)

    def of_step(self, step: int) -> Sample:
        """The batch of a step: images uint8 [B, 3, H, W] and classes uint8 [B, H, W]. Raises UserError."""
        size = self.schedule.batch_size
        crops = [self._crop(number) for number in range(step * size, (step + 1) * size)]
        return Sample(torch.stack([crop.image for crop in crops]), torch.stack([crop.label for crop in crops]))

    def _crop(self, number: int) -> Sample:
        index = self.order.number_in_epoch(number, len(self.maps), 0)
        return to_tensors(*augment(LabelledImage(*self.maps.read(index)), self.schedule.augmentation, self.seed, number))


def unaugmented(maps: LabelledMaps, predict: Predict, schedule: ShortSchedule, seed: int, bench: Bench) -> Iterator[ProbeBatch]:
    """Batches of whole images in a shuffled order; features are computed when an image first comes and kept while there is room."""
    kept = _Kept(maps, predict, int(schedule.cache_gib * 2**30), bench)
    order = Order(seed, schedule.batch_size)
    for step in bench.progress(range(schedule.steps), "training probes", schedule.steps):
        numbers = range(step * schedule.batch_size, (step + 1) * schedule.batch_size)
        yield kept.batch([order.number_in_epoch(number, len(maps), 0) for number in numbers])


class _Known(NamedTuple):
    maps: dict[str, Tensor]
    label: Tensor


class _Kept:
    """Features and labels of images by number, at most `limit` bytes of them."""

    def __init__(self, maps: LabelledMaps, predict: Predict, limit: int, bench: Bench):
        self.maps, self.predict, self.room, self.device = maps, predict, limit, bench.device
        self.known: dict[int, _Known] = {}

    def batch(self, numbers: Sequence[int]) -> ProbeBatch:
        missing = sorted(set(numbers) - self.known.keys())
        known = self.known | self._compute(missing)
        for number in missing:
            size = sum(tensor.numel() * tensor.element_size() for tensor in (*known[number].maps.values(), known[number].label))
            if size <= self.room:
                self.room -= size
                self.known[number] = known[number]
        maps = {name: [known[number].maps[name].to(self.device) for number in numbers] for name in self.predict}
        return ProbeBatch(maps, [known[number].label.to(self.device) for number in numbers])

    def _compute(self, numbers: Sequence[int]) -> dict[int, _Known]:
        """On the CPU; images of one size go through the models together."""
        groups: dict[torch.Size, list[tuple[int, Sample]]] = {}
        for number in numbers:
            sample = read_sample(self.maps, number)
            groups.setdefault(sample.image.shape, []).append((number, sample))
        known: dict[int, _Known] = {}
        for group in groups.values():
            images = to_float(torch.stack([sample.image for _, sample in group]).to(self.device))
            outputs = {name: _ordinary(call(images).spatial).cpu() for name, call in self.predict.items()}
            for row, (number, sample) in enumerate(group):
                known[number] = _Known({name: output[row].clone() for name, output in outputs.items()}, sample.label)
        return known


def _ordinary(spatial: Tensor | None) -> Tensor:
    """A float32 copy that autograd may save: models answer under inference mode."""
    assert spatial is not None, "models without a map were sorted out before"
    return spatial.to(torch.float32, copy=True)
