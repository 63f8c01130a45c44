"""Features of many images, batch by batch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import SourceSettings
from ..data.full_images import WholeImage, num_chunks, open_images, whole_images
from ..data.source import Source
from ..devices import autocast_dtype
from ..errors import UserError
from ..features import Features
from ..image_input import LONGEST
from ..images import resize, scaled, to_float
from ..model import Model, head_names
from .settings import ImageSize

WAITING = 4
"""Batches' worth of images that wait for others of their legal size; beyond it the fullest group is computed as it is."""
WAITING_PIXELS = 2**27
"""Pixels (1.6 GB) of the images that wait, beyond which the fullest group is computed as it is: images of their own size may be large."""


class Embedding(NamedTuple):
    """Features of a batch of images of one legal size."""

    keys: tuple[str, ...]
    """B names: paths relative to the folder, `shard/name`, or lines of the list."""
    features: dict[str, Features]
    """`backbone` and one entry a head, float32 on the model's device: summary [B, D], spatial [B, H, W, D]."""
    numbers: tuple[int, ...]
    """The places of the images in the source's order."""
    broken: Mapping[str, str]
    """{key: reason} of the unreadable images that were met since the last batch; they are in none."""


class InferenceOptions(NamedTuple):
    """How images become the model's input and how it is run."""

    image_size: int | None
    """px of the short side; None for that of each image."""
    batch_size: int
    autocast: torch.dtype | None = None

    @property
    def least(self) -> int | None:
        """px that the short side of a JPEG keeps when it is decoded; twice what is needed, so that the resize has something to average."""
        return self.image_size and 2 * self.image_size


def embeddings(
    model: Model,
    images: str | Path | SourceSettings,
    heads: str | Iterable[str] = (),
    image_size: ImageSize = "trained",
    batch_size: int = 64,
    precision: str = "float32",
    num_workers: int | None = 0,
) -> Iterator[Embedding]:
    """Features of every readable image of a folder, a list or tar shards, each image once, batch by batch.

    The whole image is resized (bicubic, antialiased) to the legal size nearest to `image_size`. Where images come out at several sizes, a
    batch has images of one size, and batches are only nearly in order.

    Args:
        model: what `amradio.load` returned.
        images: a folder, a text file with a path on each line, tar shards, or a source as in recipes.
        heads: a name or several; the backbone is always included.
        image_size: px of the short side; `trained` for the size of the last training, `own` for that of each image.
        batch_size: images in a batch, 1 or more.
        precision: of the computation: `float32`, `bfloat16`, or `auto` for bfloat16 where the device computes it.
        num_workers: processes that read images; 0 reads in this one, None takes one for each core but one.

    Raises UserError for an unknown head, and where there is no image or none can be read.
    """
    source, options = open_images(images), find_options(model, image_size, batch_size, precision)
    known = check_heads(model, heads)
    chunks = range(num_chunks(source.count()))
    met: dict[str, str] = {}
    num_read = 0
    with closing(whole_images(source, chunks, options.least, num_workers)) as reading:
        for embedding in embed_batches(model, reading, known, options):
            met, num_read = met | dict(embedding.broken), num_read + len(embedding.keys)
            if embedding.keys:
                yield embedding
    refuse_nothing(source, num_read, met)


def find_options(model: Model, image_size: ImageSize, batch_size: int, precision: str) -> InferenceOptions:
    """The settings' view of images for this model."""
    size = {"trained": model.config.image_size, "own": None}[image_size] if isinstance(image_size, str) else image_size
    return InferenceOptions(size, batch_size, autocast_dtype(precision, next(model.parameters()).device))


def check_heads(model: Model, heads: str | Iterable[str]) -> tuple[str, ...]:
    """The names once each, a text being one; raises UserError for those that the model has not."""
    return tuple(head_names(heads, model.heads))


def refuse_nothing(source: Source, num_read: int, broken: Mapping[str, str]) -> None:
    """Raises UserError where not one image was read."""
    if not num_read:
        first = next((f"{key}: {reason}" for key, reason in broken.items()), "there is no image in it")
        raise UserError(f"{source.describe()}: none of the {len(broken)} images can be read; the first: {first}")


def embed_batches(model: Model, images: Iterable[WholeImage], heads: tuple[str, ...], options: InferenceOptions) -> Iterator[Embedding]:
    """Batches of images of one legal size; the last one may have no image, where only broken ones are left to be named."""
    device = next(model.parameters()).device
    waiting: dict[tuple[int, int], list[tuple[WholeImage, Tensor]]] = {}
    broken: dict[str, str] = {}
    for image in images:
        reason = image.reason or _too_long(image.image)
        if image.image is None or reason:
            broken[image.key] = reason
            continue
        pixels = to_float(image.image[None].to(device, non_blocking=True))
        legal = model.nearest_size(*scaled(pixels, options.image_size))
        group = waiting.setdefault(legal, [])
        group.append((image._replace(image=None), resize(pixels, legal)))
        num_pixels = sum(len(members) * height * width for (height, width), members in waiting.items())
        is_full = sum(map(len, waiting.values())) >= WAITING * options.batch_size or num_pixels > WAITING_PIXELS
        if len(group) == options.batch_size or is_full:
            fullest = max(waiting, key=lambda size: len(waiting[size]))
            yield _embed(model, waiting.pop(fullest), heads, options, broken)
            broken = {}
    for group in waiting.values():
        yield _embed(model, group, heads, options, broken)
        broken = {}
    if broken:
        yield Embedding((), {}, (), broken)


def _too_long(image: Tensor | None) -> str:
    if image is None or max(image.shape[1:]) <= LONGEST * min(image.shape[1:]):
        return ""
    return f"{image.shape[2]}x{image.shape[1]} px: one side is more than {LONGEST} times the other"


@torch.inference_mode()
def _embed(
    model: Model, group: list[tuple[WholeImage, Tensor]], heads: tuple[str, ...], options: InferenceOptions, broken: Mapping[str, str]
) -> Embedding:
    pixels = torch.cat([resized for _, resized in group])
    with torch.autocast(pixels.device.type, options.autocast, enabled=options.autocast is not None):
        outputs = model(pixels, heads=heads)
    features = {name: Features(*(None if kind is None else kind.float() for kind in features)) for name, features in outputs.items()}
    return Embedding(tuple(image.key for image, _ in group), features, tuple(image.number for image, _ in group), broken)
