"""Training views of a few thousand photographs, cut, jittered and mixed beforehand, so that a teacher's answer to each is computed once.

A round has one view of every photograph: a random crop, flipped and with changed colours half of the time. In every second round each
view is mixed with that of another photograph (mixup), which the teacher answers as it is: more images, and none of its answers is guessed
(Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022).
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from amradio.config import AsTuple, Settings
from amradio.data.decode import crop_and_resize, random_box
from amradio.labelled.class_folders import ClassList

RATIO = (0.75, 4 / 3)
LEAST_SHARE = 0.3
"""Of the photograph that a mixed view is named after; the other one has the rest, 0.7 at most."""
CLASSES_FILE = "classes.json"


class ViewSettings(Settings):
    """How views are made."""

    image_size: int = pydantic.Field(96, gt=0)
    """px."""
    crop_scale: Annotated[tuple[float, float], AsTuple] = (0.35, 1.0)
    """Share of the photograph's area."""
    jitter: float = pydantic.Field(0.3, ge=0, lt=1)
    """Brightness, contrast and saturation are multiplied by up to 1 +- jitter, in half of the views."""
    mixed: bool = True
    """Mix the views of every second round."""
    seed: int = 0


def write_round(photographs: Path, listed: ClassList, number: int, settings: ViewSettings, out: Path) -> None:
    """Writes the views of one round, JPEG files named by their photograph's number, and their classes.

    The folder is written aside and renamed, so that one that is there is complete.
    """
    if out.is_dir():
        return
    aside = out.with_name(f".{out.name}.part")
    aside.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng((settings.seed, number))
    views = np.stack([view((photographs / name).read_bytes(), settings, draws) for name in listed.names])
    shares, others = np.ones(len(views), np.float32), np.arange(len(views))
    if settings.mixed and number % 2:
        shares, others = draws.uniform(LEAST_SHARE, 1, len(views)).astype(np.float32), draws.permutation(len(views))
        weights = shares[:, None, None, None]
        views = np.round(views * weights + views[others] * (1 - weights)).astype(np.uint8)
    classes = {}
    for row, pixels in enumerate(views):
        name = f"{row:05}.jpg"
        Image.fromarray(pixels).save(aside / name, quality=95, subsampling=0)
        classes[name] = [[listed.labels[row], float(shares[row])], [listed.labels[others[row]], float(1 - shares[row])]]
    (aside / CLASSES_FILE).write_text(json.dumps(classes), encoding="utf-8")
    aside.replace(out)


def view(encoded: bytes, settings: ViewSettings, draws: np.random.Generator) -> np.ndarray:
    """uint8 [image_size, image_size, 3]: a random crop of an encoded photograph."""
    numbers = draws.random(24)
    pixels = crop_and_resize(encoded, partial(_box, numbers, settings.crop_scale), settings.image_size)
    if draws.random() < 0.5:
        pixels = pixels[:, ::-1]
    if draws.random() < 0.5:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(float(1 + settings.jitter * draws.uniform(-1, 1)))
        pixels = np.asarray(image)
    return pixels


def _box(numbers: np.ndarray, scale: tuple[float, float], width: int, height: int) -> tuple[int, int, int, int]:
    return random_box(numbers, scale, RATIO, width, height)


def read_views(folder: Path, names: Sequence[str], batch_size: int, image_size: int) -> Iterator[Tensor]:
    """uint8 [B, 3, image_size, image_size], decoded as training does it."""
    for start in range(0, len(names), batch_size):
        batch = [whole((folder / name).read_bytes(), image_size) for name in names[start : start + batch_size]]
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()


def whole(encoded: bytes, image_size: int) -> np.ndarray:
    """uint8 [image_size, image_size, 3] of a view."""
    return crop_and_resize(encoded, lambda width, height: (0, 0, width, height), image_size)


def classes_of(folder: Path, num_classes: int) -> dict[str, Tensor]:
    """The shares of the classes in each view of a round, float32 [num_classes] by the name of its file."""
    found = {}
    for name, pairs in json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8")).items():
        shares = torch.zeros(num_classes)
        for label, share in pairs:
            shares[label] += share
        found[name] = shares
    return found
