"""From logits to the table: labelled maps read in batches, scored by mean IoU, beside what the labels alone would score."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.loading_processes import read_each
from ...images import to_float
from ...labelled.segmentation import LabelledMaps
from ..base import Bench, Metric, Result
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


class Sample(NamedTuple):
    """One image with its classes."""

    image: Tensor
    """uint8 [3, H, W]."""
    label: Tensor
    """uint8 [H, W]."""


def to_tensors(image: np.ndarray, label: np.ndarray) -> Sample:
    """uint8 [H, W, 3] and [H, W] as tensors."""
    return Sample(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).copy()), torch.from_numpy(np.array(label)))


def read_sample(maps: LabelledMaps, number: int) -> Sample:
    """One image of a data set with its classes. Raises UserError."""
    return to_tensors(*maps.read(number))


def score(maps: LabelledMaps, logits_of: Logits, bench: Bench, priors: Priors | None = None) -> Result:
    """Mean IoU of every model on all of `maps`; logits are upsampled to the size of the label. priors: for the floors.

    Raises UserError where a file cannot be read or has unknown ids.
    """
    num_classes = len(maps.names)
    confusions: dict[str, Confusion] = {}
    trivial: dict[str, Confusion] = priors.confusions() if priors is not None else {}
    digest = hashlib.sha256("\0".join(maps.names).encode())
    samples = bench.progress(
        read_each(partial(read_sample, maps), range(len(maps)), bench.num_workers), f"segmentation of {len(maps):,} images", len(maps)
    )
    for batch in _batches(samples, digest.update):
        images = to_float(torch.stack([sample.image for sample in batch]).to(bench.device))
        logits_by_model = logits_of(images)
        for number, sample in enumerate(batch):
            truth = sample.label.to(bench.device)
            for name, logits in logits_by_model.items():
                predicted = classes_of(logits[number : number + 1], (truth.shape[0], truth.shape[1]))[0]
                confusions.setdefault(name, Confusion(num_classes, bench.device)).update(predicted, truth)
            if priors is not None:
                priors.update(trivial, sample.label)
    rows = {name: confusion.scores() for name, confusion in confusions.items()}
    details = {"iou_by_class": {name: _by_class(confusion, maps.names) for name, confusion in confusions.items()}}
    counts = {"images": len(maps), "classes": num_classes, "pixels": _pixels(confusions)}
    floors, notes = _floors({name: confusion.scores() for name, confusion in trivial.items()})
    floor = "predictions that ignore the image" if floors else ""
    return Result(METRICS, rows, counts, digest.hexdigest()[:16], floors, floor=floor, notes=(*maps.notes(), *notes), details=details)


def _batches(samples: Iterator[Sample], hashed: Callable[[bytes], None]) -> Iterator[Sequence[Sample]]:
    """At most BATCH samples of one size, out of windows of WINDOW samples."""
    window: list[Sample] = []
    for sample in samples:
        hashed(sample.image.numpy().tobytes() + sample.label.numpy().tobytes())
        window.append(sample)
        if len(window) == WINDOW:
            yield from _by_size(window)
            window = []
    yield from _by_size(window)


def _by_size(window: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
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
