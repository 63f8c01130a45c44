"""Images with objects as a detector takes them: laid on a square canvas, with large-scale jitter in training."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data import stateless_random as chance
from ...data.loading_processes import read_each
from ...errors import UserError
from ...labelled.instances import Instances, InstanceSet
from .settings import ScheduleSettings

_VIEWS, _SAMPLES, _ORDER = 11, 12, 13
"""Streams of random numbers."""
LEAST_SIDE = 1.0
"""px of the side of a box below which it is dropped, as an edge of the canvas leaves too little of it."""


class Examples(NamedTuple):
    """A batch. What one process takes of it, and pieces of that, have the same form."""

    images: Tensor
    """uint8 [B, 3, S, S] RGB; what lies beyond the picture is 0."""
    sizes: list[tuple[int, int]]
    """(height, width) px of each picture on its canvas."""
    boxes: list[Tensor]
    """float32 [N, 4] each, (x0, y0, x1, y1) px of the canvas."""
    labels: list[Tensor]
    """int64 [N] each, indices into the classes."""
    masks: list[Tensor | None]
    """uint8 [N, S, S] each; None where no masks are asked for."""
    seeds: list[int]
    """Of what is drawn for each image in a step."""
    keys: tuple[str, ...]
    """Names of the images."""
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        boxes, labels = ([part.to(device) for part in parts] for parts in (self.boxes, self.labels))
        masks = [None if part is None else part.to(device) for part in self.masks]
        return self._replace(images=self.images.to(device, non_blocking=True), boxes=boxes, labels=labels, masks=masks)

    def piece(self, number: int, count: int) -> Self:
        """Every `count`-th image from the `number`-th on (from 0)."""
        part = slice(number, None, count)
        return type(self)(self.images[part], *(column[part] for column in self[1:7]), self.skipped, self.remarks)  # type: ignore[arg-type]


class View(NamedTuple):
    """How an image is laid on its canvas."""

    scale: float
    """px of the canvas per px of the image."""
    left: int
    """px of the scaled image that are cut off; at most one of cut and margin is there."""
    top: int
    is_flipped: bool = False


def whole_view(height: int, width: int, side: int) -> View:
    """The whole image, its long side that of the canvas."""
    return View(side / max(height, width), 0, 0)


def random_view(numbers: np.ndarray, settings: ScheduleSettings, height: int, width: int) -> View:
    """Large-scale jitter (ViTDet). numbers: 4, uniform in [0, 1)."""
    low, high = settings.scale
    scale = settings.image_size / max(height, width) * (low + (high - low) * float(numbers[0]))
    left, top = (
        int(max(0, round(size * scale) - settings.image_size) * float(number) + 0.5)
        for size, number in ((width, numbers[1]), (height, numbers[2]))
    )
    return View(scale, left, top, bool(numbers[3] < settings.flip))


def lay_out(image: np.ndarray, view: View, side: int) -> tuple[np.ndarray, int, int]:
    """uint8 [H, W, 3] (or [H, W]) -> (uint8 [S, S, 3] (or [S, S]), height and width of the picture on it), bilinear."""
    height, width = image.shape[:2]
    scaled = max(1, round(width * view.scale)), max(1, round(height * view.scale))
    shown = min(side, scaled[0] - view.left), min(side, scaled[1] - view.top)
    x, y = width / scaled[0], height / scaled[1]
    box = (view.left * x, view.top * y, min(width, (view.left + shown[0]) * x), min(height, (view.top + shown[1]) * y))
    picture = np.asarray(Image.fromarray(image).resize(shown, Image.Resampling.BILINEAR, box))
    canvas = np.zeros((side, side, *image.shape[2:]), dtype=np.uint8)
    canvas[: shown[1], : shown[0]] = picture[:, ::-1] if view.is_flipped else picture
    return canvas, shown[1], shown[0]


def boxes_on(boxes: np.ndarray, view: View, height: int, width: int) -> np.ndarray:
    """Boxes [N, 4] px of an image -> px of the canvas on which it is shown at height x width px, cut at the edges of the picture."""
    moved = boxes * view.scale - np.array([view.left, view.top] * 2)
    moved = moved.clip(0, np.array([width, height] * 2))
    if view.is_flipped:
        moved = np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], 1)
    return moved.astype(np.float32)


def example(image: Instances, view: View, side: int, with_masks: bool) -> tuple[Tensor, tuple[int, int], Tensor, Tensor, Tensor | None]:
    """One image with the objects to learn from: no crowds, nothing without a category, nothing of less than a px."""
    canvas, height, width = lay_out(image.image, view, side)
    boxes = boxes_on(image.boxes, view, height, width)
    kept = ~image.crowds & (image.labels >= 0) & ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
    masks = None
    if with_masks:
        drawn = [lay_out(mask.astype(np.uint8) * 255, view, side)[0] >= 128 for mask in image.masks[kept]]
        masks = torch.from_numpy(np.stack(drawn).astype(np.uint8) if drawn else np.zeros((0, side, side), dtype=np.uint8))
    pixels = torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))
    return pixels, (height, width), torch.from_numpy(boxes[kept]), torch.from_numpy(image.labels[kept]), masks


class TrainingExamples:
    """Step number -> this process's share of its batch: a function of (seed, step) alone, on any number of processes."""

    def __init__(self, images: InstanceSet, settings: ScheduleSettings, seed: int, share: range, with_masks: bool):
        """share: the indices within a batch that fall to this process."""
        self.images, self.settings, self.seed, self.share, self.with_masks = images, settings, seed, share, with_masks

    def read(self, step: int) -> tuple:
        """The fields of `Examples`; each epoch shows every image once, in an order of its own. Raises UserError for an unreadable image."""
        share, count = self.share, len(self.images)
        views = chance.uniform(self.seed, _VIEWS, step, share.start, len(share), 8)
        columns: list[list] = [[] for _ in range(5)]
        keys, seeds = [], []
        for row, index in enumerate(share):
            position = step * self.settings.batch_size + index
            number = chance.permuted(position % count, count, chance.key_of(self.seed, _ORDER, position // count))
            image = self.images.read(number)
            view = random_view(views[row], self.settings, *image.image.shape[:2])
            for column, part in zip(columns, example(image, view, self.settings.image_size, self.with_masks), strict=True):
                column.append(part)
            keys.append(self.images.key(number))
            seeds.append(chance.key_of(self.seed, _SAMPLES, position) >> 1)
        return torch.stack(columns[0]), *columns[1:], seeds, tuple(keys)

    def batches(self, first: int, num_steps: int, num_workers: int | None) -> Iterator[Examples]:
        """Those of the steps `first` to `num_steps`; closing the iterator ends its workers."""
        with closing(read_each(self.read, range(first, num_steps), num_workers)) as items:
            for images, sizes, boxes, labels, masks, seeds, keys in items:
                yield Examples(images, [tuple(size) for size in sizes], list(boxes), list(labels), list(masks), list(seeds), tuple(keys))


def check_objects(images: InstanceSet, key: str, with_masks: bool) -> None:
    """Raises UserError where a set is not one to learn classes (and masks) from. key: of the settings, for the message."""
    if not images.classes:
        raise UserError(f"{key}: the annotation file has no categories, and a detector needs them; add them to it")
    if with_masks and not any(len(masks := images.read(number).masks) and masks.any() for number in range(min(len(images), 16))):
        raise UserError(f"{key}: there is no mask in the first images, and mask_rcnn learns from masks; take detector=faster_rcnn")


def same_classes(train: Sequence[str], other: Sequence[str], key: str) -> None:
    """Raises UserError where another set has other classes than the detector."""
    if tuple(train) != tuple(other):
        only = sorted(set(train) ^ set(other))[:5]
        raise UserError(f"{key}: its categories are not those of the detector ({', '.join(only) or 'their order differs'}); give the same")
