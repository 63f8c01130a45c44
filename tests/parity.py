"""Whether an adapter equals the original library's own processor and model, on images that are not square.

Three comparisons each. (1) Preprocessing of float images: the same arithmetic, so equal to float32 rounding, 1e-5 per pixel.
(2) Features of the library's own pixel values: the same modules, 1e-5 relative. (3) From uint8 to features: the library rounds the
resized image to 8 bits (at most half a step of 1/255 per pixel, 2e-3 of the range), we keep floats; the random tiny models amplify that
to at most 2 % of the features' norm (seen: 0.6 %).
"""

from collections.abc import Callable

import torch
import torchvision
import transformers
from PIL import Image
from torch import Tensor

from amradio.features import Features
from amradio.teachers import Teacher
from tiny import photo

SIZES = [(100, 75), (50, 90)]


def pixels(processor: transformers.BaseImageProcessor, images: Tensor, **options: object) -> Tensor:
    return processor(images=list(images), return_tensors="pt", **options)["pixel_values"]


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


def check(
    teacher: Teacher,
    processor: transformers.BaseImageProcessor,
    reference: Callable[[Tensor], Features],
    size: tuple[int, int],
) -> None:
    images = photo(*size)
    floats = 0.2 + 0.6 * images / 255  # away from the ends, where we clamp what bicubic overshoots and float processors do not
    ours = (teacher.prepare(floats) - teacher.mean) / teacher.std
    assert (ours - pixels(processor, floats, do_rescale=False)).abs().max() < 1e-5
    seen = pixels(processor, images)
    with torch.no_grad():
        expected = reference(seen)
        same_pixels = teacher.encode(seen)
    end_to_end = teacher(teacher.prepare(images / 255))
    for exact, found, wanted in zip(same_pixels, end_to_end, expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert relative(exact, wanted) < 1e-5
            assert relative(found, wanted) < 0.02


class PilProcessor:
    """The transform of a library that works on PIL images, called as the processors of transformers are."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]):
        self.transform = transform

    def __call__(self, images: list[Tensor], return_tensors: str = "pt", **options: object) -> dict[str, Tensor]:
        if images[0].is_floating_point():
            steps = [step for step in self.transform.transforms if type(step).__name__ in ("Resize", "CenterCrop", "Normalize")]
            return {"pixel_values": torchvision.transforms.Compose(steps)(torch.stack(images))}
        return {"pixel_values": torch.stack([self.transform(torchvision.transforms.functional.to_pil_image(image)) for image in images])}
