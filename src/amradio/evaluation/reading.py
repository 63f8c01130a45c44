"""Images of any size for evaluations: read in a fixed order, broken ones counted and named, encoded by every model in one pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.full_images import CHUNK, WholeImage, load_images, num_chunks
from ..errors import UserError
from ..features import Features
from ..images import to_float
from ..labelled.base import ImageSet
from .predictors import Joint, Predict, Predictor
from .progress import Progress

WINDOW = 64
"""Images that are held at a time, to be put together by size; more would be faster where sizes vary, and take more memory. A multiple of
CHUNK, as windows are shared out over processes."""
WINDOW_PIXELS = 2**28
"""Pixels (800 MB) that are held at a time, whatever their number of images."""
MOST_PIXELS = 2**25
"""Pixels (5793 x 5793) to which a larger picture is averaged when it is read: no model sees so many, and each costs 15 bytes on the way."""
NAMED = 5
"""Broken images that a note names."""


class Broken:
    """The images of some sets that could not be read, or were passed over."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.passed_over: dict[str, None] = {}

    def tell(self, notes: Sequence[str]) -> None:
        """Adds what was passed over in a set (`ImageSet.notes`); each sentence once."""
        self.passed_over |= dict.fromkeys(notes)

    def note(self) -> tuple[str, ...]:
        """What was passed over, and one sentence with the number and the first names of broken images; empty where all is well."""
        if not self.reasons:
            return tuple(self.passed_over)
        named = "; ".join(f"{key}: {reason}" for key, reason in list(self.reasons.items())[:NAMED])
        more = f" and {len(self.reasons) - NAMED} more" if len(self.reasons) > NAMED else ""
        return (
            *self.passed_over,
            f"{len(self.reasons)} images could not be read and were left out: {named}{more}",
        )


class ImagesRead(NamedTuple):
    """WINDOW images of a set in a row, less those that cannot be read."""

    number: int
    """The window's number in the set."""
    batches: Iterator[list[tuple[int, Tensor]]]
    """(index, uint8 [3, H, W]), at most WINDOW_PIXELS pixels at a time; to be taken before the next window is."""
    reasons: dict[str, str]
    """{key: reason} of those that cannot be read, when the images are taken."""


def num_windows(images: ImageSet) -> int:
    """How many windows of WINDOW images a set has."""
    return -(-len(images) // WINDOW)


def read_image_windows(images: ImageSet, numbers: Sequence[int], num_workers: int | None, progress: Progress) -> Iterator[ImagesRead]:
    """Some of the windows of a set, the same on any number of workers.

    Args:
        images: the set.
        numbers: of the windows, in rising order.
        num_workers: processes that read.
        progress: is shown the images, one by one.
    """
    per_window = WINDOW // CHUNK
    chunks = [chunk for number in numbers for chunk in range(number * per_window, min((number + 1) * per_window, num_chunks(len(images))))]
    count = sum(min(WINDOW, len(images) - number * WINDOW) for number in numbers)
    with closing(load_images(images, chunks, most=MOST_PIXELS, num_workers=num_workers)) as loaded:
        for number, group in groupby(progress(loaded, images.describe(), count), lambda image: image.number // WINDOW):
            reasons: dict[str, str] = {}
            yield ImagesRead(number, windows(_readable(group, reasons)), reasons)


def _readable(loaded: Iterable[WholeImage], reasons: dict[str, str]) -> Iterator[tuple[int, Tensor]]:
    for image in loaded:
        if image.image is None:
            reasons[image.key] = image.reason
        else:
            yield image.number, image.image


def no_image(images: ImageSet, broken: Broken) -> UserError:
    """What is raised where not one image of a set can be read."""
    first = next(iter(broken.reasons.items()), ("", "there is no image in it"))
    return UserError(f"{images.describe()}: not one can be read; the first: {': '.join(filter(None, first))}")


def windows(items: Iterator[tuple[int, Tensor]], size: int = WINDOW) -> Iterator[list[tuple[int, Tensor]]]:
    """Lists of at most `size` items and, but for a single larger image, WINDOW_PIXELS pixels."""
    window: list[tuple[int, Tensor]] = []
    num_pixels = 0
    for item in items:
        here = item[1].shape[1] * item[1].shape[2]
        if window and num_pixels + here > WINDOW_PIXELS:
            yield window
            window, num_pixels = [], 0
        window.append(item)
        num_pixels += here
        if len(window) == size:
            yield window
            window, num_pixels = [], 0
    if window:
        yield window


NamedTensors = Mapping[str, Tensor]


def encode(
    predict: Predict,
    images: Sequence[Tensor],
    device: torch.device,
    take: Callable[[Features], NamedTensors],
    side_by_side: bool = False,
) -> dict[str, NamedTensors]:
    """What `take` takes of each model's features: {model: {part: [N, ...]}}, in the order of `images` (uint8 [3, H, W], of any sizes).

    Images of one size are batched, and so are those that a model's preparation brings to one size; a model with several outputs
    is computed once. take: Features of a batch -> {part: [B, ...]}, of one shape for all images. side_by_side: whether models on a CPU
    are computed at the same time, each with a share of torch's threads.
    """
    models = _by_joint(predict)
    work = partial(_encode_one, batches=batched(images, device), take=take)
    threads = torch.get_num_threads()
    num_at_once = min(threads, len(models)) if side_by_side and device.type == "cpu" else 1
    if num_at_once == 1:
        parts = [work(outputs) for outputs in models]
    else:
        try:
            with ThreadPoolExecutor(num_at_once, "encode", torch.set_num_threads, (threads // num_at_once,)) as pool:
                parts = list(pool.map(work, models))
        finally:
            torch.set_num_threads(threads)
    encoded = {name: part for named in parts for name, part in named.items()}
    return {name: encoded[name] for name in predict}


@torch.inference_mode()
def _encode_one(
    outputs: Mapping[str, Callable[[Tensor], Features]], batches: "SizedBatches", take: Callable[[Features], NamedTensors]
) -> dict[str, NamedTensors]:
    """`encode` for the outputs of one model."""
    first = next(iter(outputs.values()))
    taken: dict[str, dict[str, list[Tensor]]] = {name: {} for name in outputs}
    order: list[int] = []
    for indices, batch in _prepared(first.joint, batches) if isinstance(first, Predictor) else batches:
        order += indices
        for name, call in outputs.items():
            features = call.of_prepared(batch) if isinstance(call, Predictor) else call(batch)
            for key, part in take(features).items():
                taken[name].setdefault(key, []).append(part)
    back = torch.tensor(order, device=batches[0][1].device).argsort()
    return {name: {key: torch.cat(part)[back] for key, part in parts.items()} for name, parts in taken.items()}


def _by_joint(predict: Predict) -> list[dict[str, Callable[[Tensor], Features]]]:
    """The outputs of each model together."""
    groups: dict[int, dict[str, Callable[[Tensor], Features]]] = {}
    for name, call in predict.items():
        groups.setdefault(id(call.joint) if isinstance(call, Predictor) else id(call), {})[name] = call
    return list(groups.values())


SizedBatches = list[tuple[list[int], Tensor]]


def batched(images: Sequence[Tensor], device: torch.device) -> SizedBatches:
    """(indices, float [B, 3, H, W] in [0, 1]) by size."""
    groups: dict[torch.Size, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return [(indices, to_float(torch.stack([images[index] for index in indices]).to(device))) for indices in groups.values()]


def _prepared(joint: Joint, batches: SizedBatches) -> SizedBatches:
    """The batches at the model's legal size; those that come out equal are put together."""
    groups: dict[torch.Size, SizedBatches] = {}
    for indices, batch in batches:
        view = joint.prepare(batch)
        groups.setdefault(view.shape[1:], []).append((indices, view))
    return [([i for indices, _ in group for i in indices], torch.cat([view for _, view in group])) for group in groups.values()]
