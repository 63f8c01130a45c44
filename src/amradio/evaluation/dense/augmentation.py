"""Views for training a segmentation probe: random scale, crop, flip and colours, drawn from (seed, number of the view)."""

from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic
from PIL import Image

from ...config import AsTuple, Decay, Factor, LearningRate, Natural, Pixels, Positive, Settings, Share
from ...labelled.segmentation import IGNORE

CROP_TRIES = 10
HUE_SHIFT = 18 / 180
"""Of the colour circle, either way."""
BRIGHTNESS_SHIFT = 32
STRETCH = (0.5, 1.5)
"""Factors of contrast and saturation."""


class LabelledImage(NamedTuple):
    """One image for training."""

    image: np.ndarray
    """uint8 [H, W, 3] RGB."""
    label: np.ndarray
    """uint8 [H, W]."""


class Augmentation(Settings):
    """How views are drawn; the defaults are those of the configuration that RADIO was published with (mmsegmentation's usual pipeline)."""

    crop_size: Pixels = 512
    """px of the square view; the image's short side is brought to this times `scale` first."""
    scale: Annotated[tuple[Factor, Factor], AsTuple] = (0.5, 2.0)
    """Factors, drawn uniformly between the two."""
    max_long_side: Annotated[float, pydantic.Field(ge=1, le=1000)] = 4.0
    """The long side is at most this many times `crop_size` times the factor."""
    max_class_share: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.75
    """A crop of which one class takes more is drawn again, at most ten times."""
    flip: Share = 0.5
    """How often a view is mirrored."""
    photometric: bool = True
    """Whether brightness, contrast, saturation and hue are drawn, each in half of the views."""

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> "Augmentation":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: two numbers above 0, the smaller first, found {list(self.scale)}")
        return self


def augment(sample: LabelledImage, how: Augmentation, seed: int, number: int) -> LabelledImage:
    """A random view of one image, a square of `how.crop_size` px, black and IGNORE beyond the image.

    Args:
        sample: the image and its classes.
        how: what is drawn.
        seed: of the run.
        number: of the view; a view depends on `seed` and this alone.
    """
    draws = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, number))))
    sample = _scaled(sample, how, draws.uniform(*how.scale))
    sample = _cropped(sample, how, draws)
    if draws.random() < how.flip:
        sample = LabelledImage(sample.image[:, ::-1], sample.label[:, ::-1])
    image = recoloured(sample.image, draws) if how.photometric else sample.image
    return _padded(LabelledImage(image, sample.label), how.crop_size)


def _scaled(sample: LabelledImage, how: Augmentation, factor: float) -> LabelledImage:
    height, width = sample.label.shape
    target = how.crop_size * factor
    scale = min(target / min(height, width), target * how.max_long_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(sample.image).resize(size, Image.Resampling.BILINEAR)
    return LabelledImage(np.asarray(image), np.asarray(Image.fromarray(sample.label).resize(size, Image.Resampling.NEAREST)))


def _cropped(sample: LabelledImage, how: Augmentation, draws: np.random.Generator) -> LabelledImage:
    side = how.crop_size
    free = max(sample.label.shape[0] - side, 0), max(sample.label.shape[1] - side, 0)
    label = sample.label
    top = left = 0
    for _ in range(CROP_TRIES):
        top, left = (int(draws.integers(room + 1)) for room in free)
        label = sample.label[top : top + side, left : left + side]
        counts = np.bincount(label[label != IGNORE])
        if np.count_nonzero(counts) > 1 and counts.max() < how.max_class_share * counts.sum():
            break
    return LabelledImage(sample.image[top : top + side, left : left + side], label)


def _padded(sample: LabelledImage, side: int) -> LabelledImage:
    image, label = np.zeros((side, side, 3), np.uint8), np.full((side, side), IGNORE, np.uint8)
    height, width = sample.label.shape
    image[:height, :width], label[:height, :width] = sample.image, sample.label
    return LabelledImage(image, label)


def recoloured(image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] with another brightness, contrast (first or last, as it falls), saturation and hue, each in half of the cases."""
    chances, brightness, contrast, saturation, hue = draws.random(5), *draws.random(4)
    values = image.astype(np.float32)
    stretch = STRETCH[0] + contrast * (STRETCH[1] - STRETCH[0]) if chances[1] < 0.5 else 1.0
    if chances[0] < 0.5:
        values = np.clip(values + BRIGHTNESS_SHIFT * (2 * brightness - 1), 0, 255)
    if chances[4] < 0.5:
        values = np.clip(values * stretch, 0, 255)
    if chances[2] < 0.5 or chances[3] < 0.5:
        hsv = np.asarray(Image.fromarray(values.astype(np.uint8)).convert("HSV")).astype(np.float32)
        if chances[2] < 0.5:
            hsv[..., 1] = np.clip(hsv[..., 1] * (STRETCH[0] + saturation * (STRETCH[1] - STRETCH[0])), 0, 255)
        if chances[3] < 0.5:
            hsv[..., 0] = (hsv[..., 0] + 256 * HUE_SHIFT * (2 * hue - 1)) % 256
        values = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")).astype(np.float32)
    if chances[4] >= 0.5:
        values = np.clip(values * stretch, 0, 255)
    return values.astype(np.uint8)


class AugmentedSchedule(Settings):
    """80,000 steps of 16 augmented crops: the configuration published with RADIO (the paper's text says 160,000)."""

    type: Literal["published"] = "published"
    steps: Positive = 80_000
    """Updates."""
    batch_size: Positive = 16
    """Crops an update."""
    learning_rate: LearningRate = 1e-3
    """Of AdamW, after the warm-up; it falls to 0 in a straight line."""
    weight_decay: Decay = 0.0
    """Of AdamW."""
    warmup: Natural = 1500
    """Steps over which the learning rate rises from a millionth of itself."""
    augmentation: Augmentation = Augmentation()
    """How crops are drawn."""


class ShortSchedule(Settings):
    """A few hundred steps on whole images without augmentation, so that the features of each image are computed once."""

    type: Literal["short"] = "short"
    steps: Positive = 600
    """Updates."""
    batch_size: Positive = 8
    """Images an update."""
    learning_rate: LearningRate = 1e-2
    """Of AdamW, after the warm-up; it falls to 0 in a straight line."""
    weight_decay: Decay = 0.0
    """Of AdamW."""
    warmup: Natural = 20
    """Steps over which the learning rate rises from a millionth of itself."""
    cache_gib: Annotated[float, pydantic.Field(ge=0, le=1e6)] = 4.0
    """GiB of features that are kept in memory; those of further images are computed each time."""
