"""A linear probe on maps of frozen features, and how it is trained."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.loading_processes import read_each
from ...data.source import Order
from ...images import to_float
from ...labelled.segmentation import IGNORE, LabelledMaps
from ..base import Bench, Predict
from ..sharing import windows_of
from .augmentation import AugmentedSchedule, LabelledImage, ShortSchedule, augment
from .mean_iou import upsample
from .scoring import Labelled, Sample, read_sample, to_tensors

ProbeSchedule = AugmentedSchedule | ShortSchedule
WARMUP_START = 1e-6
PIECE = 4
"""Images of a batch that one process encodes; not a share of the batch, so that rounding is the same on any number of processes."""


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
    """One an image, of any kind: classes uint8 [H, W], depth float32 [H, W], normals float32 [H, W, 3]."""


class Training(NamedTuple):
    """How probes are trained."""

    rate: Callable[[int], float]
    """The learning rate of a step, from 0."""
    weight_decay: float
    """Of AdamW."""
    build: Callable[[int], nn.Module]
    """From the channels of a map to a fresh probe."""
    loss: Callable[[nn.Module, Sequence[Tensor], Sequence[Tensor]], Tensor]
    """Of a probe on maps [h, w, D] and their labels."""


def fit(batches: Iterable[ProbeBatch], training: Training) -> dict[str, nn.Module]:
    """One probe a model, trained side by side on the same batches with AdamW; in eval mode. The same on a CPU whenever it is run."""
    probes: dict[str, nn.Module] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for step, batch in enumerate(batches):
        for name, maps in batch.maps.items():
            if name not in probes:
                probes[name] = training.build(maps[0].shape[-1]).to(maps[0].device)
                optimizers[name] = torch.optim.AdamW(probes[name].parameters(), weight_decay=training.weight_decay)
            optimizer = optimizers[name]
            optimizer.param_groups[0]["lr"] = training.rate(step)
            optimizer.zero_grad(set_to_none=True)
            training.loss(probes[name], maps, batch.labels).backward()
            optimizer.step()
    return {name: probe.eval().requires_grad_(False) for name, probe in probes.items()}


def segmentation(schedule: ProbeSchedule, num_classes: int, seed: int) -> Training:
    """How a linear probe learns classes."""
    return Training(
        rate=partial(learning_rate, schedule),
        weight_decay=schedule.weight_decay,
        build=lambda dim: Probe(dim, num_classes, seed),
        loss=lambda probe, maps, labels: pixel_loss(probe(maps), labels),
    )


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


class Known(NamedTuple):
    """What a probe needs of one image."""

    maps: dict[str, Tensor]
    """{model: its map [h, w, D]}."""
    label: Tensor


Views = Callable[[int], Sample]
"""From the number of a view to an image and its label; sent to workers."""


def augmented(view_of: Views, steps: int, batch_size: int, predict: Predict, bench: Bench) -> Iterator[ProbeBatch]:
    """Batches of views that are drawn anew, seen by every model; step k has the views from k * batch_size on."""
    pieces = windows_of(batch_size, PIECE)
    shift = [(step * batch_size, piece) for step in range(steps) for piece in bench.share.numbers(len(pieces))]
    numbers = [range(start + pieces[piece].start, start + pieces[piece].stop) for start, piece in shift]
    drawn = read_each(_Windows(view_of, numbers).read, range(len(numbers)), bench.num_workers)

    def encode(parts: range) -> dict[int, list[Known]]:
        return {part: encoded(next(drawn), predict, bench) for part in parts}

    for _ in bench.progress(range(steps), "training probes", steps):
        parts = bench.share.collect(encode, len(pieces))
        yield _batch([known for part in parts for known in part], bench.device)


class _Windows:
    """Samples, several at a time."""

    def __init__(self, read: Views, numbers: Sequence[range]):
        self.sample, self.numbers = read, numbers

    def read(self, window: int) -> list[Sample]:
        return [self.sample(number) for number in self.numbers[window]]


class Crops:
    """Random crops of labelled images, by number; one does not depend on how many workers read."""

    def __init__(self, maps: LabelledMaps, schedule: AugmentedSchedule, seed: int):
        self.maps, self.schedule, self.seed = maps, schedule, seed
        self.order = Order(seed, schedule.batch_size)

    def view(self, number: int) -> Sample:
        """The image uint8 [3, H, W] and its classes uint8 [H, W]. Raises UserError."""
        index = self.order.number_in_epoch(number, len(self.maps), 0)
        return to_tensors(*augment(LabelledImage(*self.maps.read(index)), self.schedule.augmentation, self.seed, number))


def unaugmented(maps: Labelled, predict: Predict, schedule: ShortSchedule, seed: int, bench: Bench) -> Iterator[ProbeBatch]:
    """Batches of whole images in a shuffled order; features are computed when an image first comes and kept while there is room."""
    kept = _Kept(maps, predict, int(schedule.cache_gib * 2**30), bench)
    order = Order(seed, schedule.batch_size)
    for step in bench.progress(range(schedule.steps), "training probes", schedule.steps):
        numbers = range(step * schedule.batch_size, (step + 1) * schedule.batch_size)
        yield kept.batch([order.number_in_epoch(number, len(maps), 0) for number in numbers])


class _Kept:
    """Features and labels of images by number, at most `limit` bytes of them."""

    def __init__(self, maps: Labelled, predict: Predict, limit: int, bench: Bench):
        self.maps, self.predict, self.room, self.bench = maps, predict, limit, bench
        self.known: dict[int, Known] = {}

    def batch(self, numbers: Sequence[int]) -> ProbeBatch:
        missing = sorted(set(numbers) - self.known.keys())
        known = self.known | self._compute(missing)
        for number in missing:
            size = sum(tensor.numel() * tensor.element_size() for tensor in (*known[number].maps.values(), known[number].label))
            if size <= self.room:
                self.room -= size
                self.known[number] = known[number]
        return _batch([known[number] for number in numbers], self.bench.device)

    def _compute(self, numbers: Sequence[int]) -> dict[int, Known]:
        """On the CPU; each process reads and encodes its pieces."""
        pieces = windows_of(len(numbers), PIECE)

        def encode(parts: range) -> dict[int, list[Known]]:
            return {part: self._encoded([numbers[index] for index in pieces[part]]) for part in parts}

        encoded_pieces = self.bench.share.collect(encode, len(pieces))
        return dict(zip(numbers, (known for piece in encoded_pieces for known in piece), strict=True))

    def _encoded(self, numbers: Sequence[int]) -> list[Known]:
        samples = encoded([read_sample(self.maps, number) for number in numbers], self.predict, self.bench)
        return [Known({name: cells.cpu() for name, cells in sample.maps.items()}, sample.label) for sample in samples]


def encoded(samples: Sequence[Sample], predict: Predict, bench: Bench) -> list[Known]:
    """The maps of some images by every model; those of one size go through it together. On the CPU where they are to be sent."""
    groups: dict[torch.Size, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.image.shape, []).append(index)
    known: dict[int, Known] = {}
    for indices in groups.values():
        images = to_float(torch.stack([samples[index].image for index in indices]).to(bench.device))
        outputs = {name: _ordinary(call(images).spatial) for name, call in predict.items()}
        for row, index in enumerate(indices):
            maps = {name: output[row].clone() for name, output in outputs.items()}
            known[index] = Known(
                maps if bench.share.is_alone else {name: cells.cpu() for name, cells in maps.items()}, samples[index].label
            )
    return [known[index] for index in range(len(samples))]


def _batch(samples: Sequence[Known], device: torch.device) -> ProbeBatch:
    names = samples[0].maps
    maps = {name: [sample.maps[name].to(device) for sample in samples] for name in names}
    return ProbeBatch(maps, [sample.label.to(device) for sample in samples])


def _ordinary(spatial: Tensor | None) -> Tensor:
    """A float32 copy that autograd may save: models answer under inference mode."""
    assert spatial is not None, "models without a map were sorted out before"
    return spatial.to(torch.float32, copy=True)
