"""Summaries of an image set by every model, through the bench's cache."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from ..features import Features
from ..labelled.base import ImageSet
from .base import Bench, summary_of
from .cache import Summaries
from .inputs import Counts
from .predictors import Predict, Predictor
from .reading import Broken, encode, no_image, num_windows, read_image_windows


def summaries(images: ImageSet, predict: Predict, bench: Bench, broken: Broken) -> Mapping[str, Summaries]:
    """The summary (of a model without one the mean of its map) of every readable image by every model; broken images go into `broken`.

    One pass over the images for all models that are not in the cache yet; several processes share the images out. Raises UserError where
    not one image can be read.
    """
    identity = images.fingerprint()
    keys = {name: (identity, name, call.joint.view) for name, call in predict.items() if isinstance(call, Predictor)}
    entries = {name: entry for name, key in keys.items() if (entry := bench.cache.get(key)) is not None}
    for name, entry in entries.items():
        recorded(predict[name]).update(entry.inputs)
    missing = {name: call for name, call in predict.items() if name not in entries}
    broken.tell(images.notes())
    if not missing:
        broken.reasons |= bench.cache.broken.get(identity, {})
        return entries
    parts = bench.share.collect(lambda numbers: _encoded(images, missing, bench, numbers), num_windows(images))
    reasons = {key: reason for part in parts for key, reason in part.reasons.items()}
    broken.reasons |= reasons
    indices = torch.tensor([index for part in parts for index in part.indices], dtype=torch.int64)
    if not len(indices):
        raise no_image(images, broken)
    bench.cache.broken[identity] = reasons
    for name, call in missing.items():
        features = torch.cat([batch for part in parts for batch in part.features[name]])
        entries[name] = Summaries(features, indices, dict(recorded(call)))
        if name in keys:
            bench.cache.put(keys[name], entries[name])
    return {name: entries[name] for name in predict}


class _Window(NamedTuple):
    """What is made of WINDOW images."""

    features: dict[str, list[torch.Tensor]]
    """{model: summaries float32 [n, D] of some images at a time, on the CPU}."""
    indices: list[int]
    """Of the readable images."""
    reasons: dict[str, str]
    """{key: reason} of the others."""


def _encoded(images: ImageSet, predict: Predict, bench: Bench, numbers: Sequence[int]) -> dict[int, _Window]:
    """The windows of these numbers."""
    done: dict[int, _Window] = {}
    for window in read_image_windows(images, numbers, bench.num_workers, bench.progress):
        made = done[window.number] = _Window({name: [] for name in predict}, [], window.reasons)
        for batch in window.batches:
            made.indices.extend(index for index, _ in batch)
            for name, taken in encode(predict, [image for _, image in batch], bench.device, _take, bench.side_by_side).items():
                made.features[name].append(taken["summary"].cpu())
    return done


def recorded(call: Callable[[torch.Tensor], Features]) -> Counts:
    """The sizes that a row's model has received so far; a plain function has none."""
    return call.joint.recorded.sizes if isinstance(call, Predictor) else {}


def _take(features: Features) -> dict[str, torch.Tensor]:
    return {"summary": summary_of(features)}
