"""Summaries of an image set by every model, through the bench's cache."""

from collections.abc import Callable, Mapping

import torch

from ..features import Features
from ..labelled.base import ImageSet
from .base import Bench, summary_of
from .cache import Summaries
from .inputs import Counts
from .predictors import Predict, Predictor
from .reading import Broken, encode, readable, windows


def summaries(images: ImageSet, predict: Predict, bench: Bench, broken: Broken) -> Mapping[str, Summaries]:
    """The summary (of a model without one the mean of its map) of every readable image by every model; broken images go into `broken`.

    One pass over the images for all models that are not in the cache yet. Raises UserError where not one image can be read.
    """
    identity = images.fingerprint()
    keys = {name: (identity, name, call.joint.view) for name, call in predict.items() if isinstance(call, Predictor)}
    entries = {name: entry for name, key in keys.items() if (entry := bench.cache.get(key)) is not None}
    for name, entry in entries.items():
        recorded(predict[name]).update(entry.inputs)
    missing = {name: call for name, call in predict.items() if name not in entries}
    if not missing:
        broken.tell(images.notes())
        broken.reasons |= bench.cache.broken.get(identity, {})
        return entries
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in missing}
    indices: list[int] = []
    for window in windows(bench.progress(readable(images, broken, bench.num_workers), images.describe(), len(images))):
        indices += [index for index, _ in window]
        for name, found_here in encode(missing, [image for _, image in window], bench.device, _take, bench.side_by_side).items():
            parts[name].append(found_here["summary"].cpu())
    bench.cache.broken[identity] = dict(broken.reasons)
    for name, part in parts.items():
        entries[name] = Summaries(torch.cat(part), torch.tensor(indices), dict(recorded(missing[name])))
        if name in keys:
            bench.cache.put(keys[name], entries[name])
    return {name: entries[name] for name in predict}


def recorded(call: Callable[[torch.Tensor], Features]) -> Counts:
    """The sizes that a row's model has received so far; a plain function has none."""
    return call.joint.recorded.sizes if isinstance(call, Predictor) else {}


def _take(features: Features) -> dict[str, torch.Tensor]:
    return {"summary": summary_of(features)}
