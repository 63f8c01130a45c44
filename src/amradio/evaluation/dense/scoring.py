"""From logits to the table: labelled maps read in batches, scored by mean IoU, beside what the labels alone would score."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...images import to_float
from ...labelled.segmentation import LabelledMaps
from ..base import Bench, Metric, Result
from ..sharing import read_windows, windows_of
from .mean_iou import Confusion, Priors, classes_of

METRICS = (
    Metric("mean_iou", "mIoU"),
    Metric("accuracy", "accuracy", headline=False),
    Metric("class_accuracy", "class accuracy", headline=False),
)
WINDOW = 32
"""Images that are held at a time, to be put together by size."""
BATCH = 8
"""Images of one size that a model sees at once."""

Logits = Callable[[Tensor], Mapping[str, Tensor]]
"""Float images [B, 3, H, W] in [0, 1] -> {model: logits [B, K, h, w]}, covering the image from edge to edge."""


class Labelled(Protocol):
    """Images with a label of any kind, by number; sent to workers."""

    def __len__(self) -> int: ...

    def read(self, number: int, /) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] and its label [H, W] or [H, W, C]. Raises UserError."""
        ...


class Sample(NamedTuple):
    """One image with its label."""

    image: Tensor
    """uint8 [3, H, W]."""
    label: Tensor
    """Classes uint8 [H, W], depth float32 [H, W], or normals float32 [H, W, 3]."""


def to_tensors(image: np.ndarray, label: np.ndarray) -> Sample:
    """An image uint8 [H, W, 3] and its label as tensors."""
    return Sample(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).copy()), torch.from_numpy(np.array(label)))


def read_sample(maps: Labelled, number: int) -> Sample:
    """One image of a data set with its label. Raises UserError."""
    return to_tensors(*maps.read(number))


Part = TypeVar("Part")


def score_windows(maps: Labelled, title: str, bench: Bench, work: Callable[[list[Sample]], Part]) -> tuple[list[Part], str]:
    """What `work` makes of WINDOW images at a time, which are shared out over the processes; and 64 hex digits of all images and labels.

    Raises UserError where a file cannot be read or has a wrong value.
    """
    windows = windows_of(len(maps), WINDOW)

    def run(numbers: range) -> dict[int, tuple[Part, list[bytes]]]:
        chosen = [windows[number] for number in numbers]
        samples = read_windows(partial(read_sample, maps), chosen, bench.num_workers, bench.progress, title)
        return {number: (work(window), [_digest(sample) for sample in window]) for number, window in zip(numbers, samples, strict=True)}

    parts = bench.share.collect(run, len(windows))
    return [part for part, _ in parts], hashlib.sha256(b"".join(digest for _, digests in parts for digest in digests)).hexdigest()


def _digest(sample: Sample) -> bytes:
    return hashlib.sha256(sample.image.numpy().tobytes() + sample.label.numpy().tobytes()).digest()


class _Counts(NamedTuple):
    """Of some images."""

    models: dict[str, Tensor]
    """{model: counts of pixels int64 [K, K]} on the CPU."""
    trivial: dict[str, Tensor]
    """The same of what the labels alone answer."""


def score(maps: LabelledMaps, logits_of: Logits, bench: Bench, priors: Priors | None = None) -> Result:
    """Mean IoU of every model on all of `maps`; logits are upsampled to the size of the label. priors: for the floors.

    Raises UserError where a file cannot be read or has unknown ids.
    """
    num_classes = len(maps.names)

    def count(window: list[Sample]) -> _Counts:
        models: dict[str, Confusion] = {}
        trivial: dict[str, Confusion] = priors.confusions() if priors is not None else {}
        for batch in by_size(window):
            images = to_float(torch.stack([sample.image for sample in batch]).to(bench.device))
            logits_by_model = logits_of(images)
            for number, sample in enumerate(batch):
                truth = sample.label.to(bench.device)
                for name, logits in logits_by_model.items():
                    predicted = classes_of(logits[number : number + 1], (truth.shape[0], truth.shape[1]))[0]
                    models.setdefault(name, Confusion(num_classes, bench.device)).update(predicted, truth)
                if priors is not None:
                    priors.update(trivial, sample.label)
        return _Counts(*({name: confusion.counts.cpu() for name, confusion in kind.items()} for kind in (models, trivial)))

    parts, digest = score_windows(maps, f"segmentation of {len(maps):,} images", bench, count)
    confusions = _added([part.models for part in parts])
    rows = {name: confusion.scores() for name, confusion in confusions.items()}
    details = {"iou_by_class": {name: _by_class(confusion, maps.names) for name, confusion in confusions.items()}}
    counts = {"images": len(maps), "classes": num_classes, "pixels": _pixels(confusions)}
    floors, notes = _floors({name: confusion.scores() for name, confusion in _added([part.trivial for part in parts]).items()})
    floor = "predictions that ignore the image" if floors else ""
    fingerprint = hashlib.sha256("\0".join((*maps.names, digest)).encode()).hexdigest()[:16]
    return Result(METRICS, rows, counts, fingerprint, floors, floor=floor, notes=(*maps.notes(), *notes), details=details)


def _added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Confusion]:
    """The counts of all parts together."""
    confusions: dict[str, Confusion] = {}
    for part in parts:
        for name, counts in part.items():
            confusions.setdefault(name, Confusion(len(counts))).counts += counts
    return confusions


def by_size(window: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """At most BATCH samples of one size at a time."""
    groups: dict[torch.Size, list[Sample]] = {}
    for sample in window:
        groups.setdefault(sample.image.shape, []).append(sample)
    for group in groups.values():
        yield from (group[start : start + BATCH] for start in range(0, len(group), BATCH))


def _by_class(confusion: Confusion, names: Sequence[str]) -> dict[str, float]:
    """In %; classes that neither occur nor are predicted are left out. Of several classes of one name each has its id behind it."""
    shown = [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]
    return {name: 100 * iou for name, iou in zip(shown, confusion.ious().tolist(), strict=True) if not math.isnan(iou)}


def _pixels(confusions: Mapping[str, Confusion]) -> int:
    return next((int(confusion.counts.sum()) for confusion in confusions.values()), 0)


def _floors(scores: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], tuple[str, ...]]:
    """The best trivial answer by metric, and a sentence with all of them."""
    floors = {metric.name: max(row[metric.name] for row in scores.values()) for metric in METRICS} if scores else {}
    parts = [f"{name}: mIoU {row['mean_iou']:.1f} %, accuracy {row['accuracy']:.1f} %" for name, row in scores.items()]
    return floors, (f"predictions that ignore the image: {'; '.join(parts)}",) if parts else ()
