"""The preprocessing that a checkpoint was published with, for float images on any device."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from ..images import resize

Rule = Literal["exact", "shortest", "longest", "none"]


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop and pad, in this order, as the image processors of transformers and torchvision do."""

    mean: tuple[float, float, float]
    """Of RGB in [0, 1]."""
    std: tuple[float, float, float]
    """Of RGB in [0, 1]."""
    rule: Rule
    """The meaning of `size`: both edges, the shortest or the longest one (with the aspect kept), or that nothing is resized."""
    size: tuple[int, int]
    """(height, width) px; twice the same number for `shortest` and `longest`."""
    mode: str = "bicubic"
    """bicubic, bilinear or nearest; antialiased but for the last."""
    crop: tuple[int, int] | None = None
    """(height, width) px of the centre crop."""
    pad: tuple[int, int] | None = None
    """(height, width) px to which the right and the bottom are filled up with the mean colour (zero after normalisation)."""
    rounds: bool = False
    """Whether the corner of the crop is rounded, half to even (torchvision), or cut off (transformers)."""

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] of any size -> the same, resized, cropped and padded; not normalised."""
        images = resize(images, self.resized(*images.shape[-2:]), self.mode)
        if self.crop is not None:
            images = _centre_crop(images, self.crop, self.rounds)
        if self.pad is not None:
            images = self._pad(images, *self.pad)
        return images

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) px of an image after the resize, before crop and pad."""
        if self.rule == "none":
            return height, width
        if self.rule == "exact":
            return self.size
        if self.rule == "longest":  # segment-anything rounds half up
            scale = self.size[0] / max(height, width)
            return int(height * scale + 0.5), int(width * scale + 0.5)
        short, long = self.size[0], int(self.size[0] * max(height, width) / min(height, width))  # torchvision rounds down
        return (short, long) if height <= width else (long, short)

    def at(self, input_size: int) -> "Preprocess":
        """The same rules for a square input of another size; the margin that a centre crop cuts off scales along."""
        square = (input_size, input_size)
        if self.crop is None:
            return replace(self, size=square, rule="exact" if self.rule == "none" else self.rule, pad=self.pad and square)
        scale = input_size / min(self.crop)
        return replace(self, size=(round(self.size[0] * scale), round(self.size[1] * scale)), crop=square, pad=self.pad and square)

    @property
    def output(self) -> tuple[int, int] | None:
        """The (height, width) px that comes out, where it is the same for all images."""
        return self.pad or self.crop or (self.size if self.rule == "exact" else None)

    def _pad(self, images: Tensor, height: int, width: int) -> Tensor:
        canvas = images.new_tensor(self.mean).view(1, 3, 1, 1).repeat(len(images), 1, height, width)
        canvas[..., : images.shape[-2], : images.shape[-1]] = images
        return canvas


def _centre_crop(images: Tensor, size: tuple[int, int], rounds: bool) -> Tensor:
    """Black margins where the image is smaller, the extra one at the bottom and the right."""
    height, width = size
    missing_h, missing_w = max(height - images.shape[-2], 0), max(width - images.shape[-1], 0)
    if missing_h or missing_w:
        images = F.pad(images, (missing_w // 2, (missing_w + 1) // 2, missing_h // 2, (missing_h + 1) // 2))
    whole = round if rounds else int
    top, left = whole((images.shape[-2] - height) / 2), whole((images.shape[-1] - width) / 2)
    return images[..., top : top + height, left : left + width]


MODES = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers; Lanczos (1) as bicubic, which is what transformers falls back to on tensors."""


def of_processor(processor: Any) -> Preprocess:
    """Reads an image processor object of transformers (its own defaults and old spellings included)."""
    rule, size = _size_of(processor.size) if processor.do_resize else ("none", (0, 0))
    crop = _height_width(processor.crop_size) if processor.do_center_crop else None
    pad = _height_width(processor.pad_size) if processor.do_pad else None
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return Preprocess(three(mean), three(std), rule, size, MODES[int(processor.resample)], crop, pad)


def three(values: Any) -> tuple[float, float, float]:
    """Mean or std of red, green and blue, of whatever sequence holds them."""
    red, green, blue = values
    return red, green, blue


def _size_of(size: Any) -> tuple[Rule, tuple[int, int]]:
    size = dict(size)
    if size.get("height"):
        return "exact", (size["height"], size["width"])
    if size.get("shortest_edge"):
        return "shortest", (size["shortest_edge"],) * 2
    return "longest", (size["longest_edge"],) * 2


def _height_width(size: Any) -> tuple[int, int]:
    size = dict(size)
    return size["height"], size["width"]
