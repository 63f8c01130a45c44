"""From a picture, however it is given, to the tensor that models take."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data.decode import UnreadableError, decode, rgb_of
from .data.guard import read_file
from .errors import UserError
from .files import user_path
from .images import resize, to_float

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""A file, an image of Pillow, a uint8 array [H, W, 3] or [H, W], or a tensor [3, H, W] or [B, 3, H, W], uint8 or float in [0, 1]."""
Size = int | tuple[int, int] | None
"""px of the short side, (height, width) in px, or None for that of the picture."""
TOLERANCE = 1e-3
"""Beyond 0 and 1: rounding. A bicubic resize that is not clamped afterwards goes further."""
LONGEST = 16
"""Long side to short side. With a short side of 432 px, a line of 1 x 5000 px would have 2 million wide."""
LARGEST = 65_536
"""px of a side: JPEG's limit."""
DECODED = 2
"""A JPEG is decoded at no less than so many times the short side that is wanted, so that the resize has something to average."""


def read_image(image: Picture, size: Size = None) -> Tensor:
    """A picture as models take it: float32 [1, 3, H, W], RGB in [0, 1]. (A tensor [B, 3, H, W] stays a batch.)

    The EXIF orientation is applied, transparency is composited on white, grey becomes three equal channels. Models take legal sizes
    only: see `Model.nearest_size`, or let `Model.features` choose.

    Args:
        image: the path of a JPEG, PNG, WebP, BMP, TIFF or GIF file; a Pillow image; a uint8 array [H, W, 3], [H, W, 4] or [H, W]; or a
            tensor [3, H, W] or [B, 3, H, W], uint8 or float in [0, 1].
        size: px of the short side, which keeps the aspect; or (height, width); None for no resize. Resizing is bicubic with antialiasing,
            and values are clamped to [0, 1].

    Raises UserError where the file cannot be read, or the array or tensor is of another shape, type or range.
    """
    check_size(size)
    pixels = pixels_of(image, least_side(size))
    return resize(pixels, scaled_size(pixels.shape[-2], pixels.shape[-1], size))


def least_side(size: Size) -> int | None:
    """px of the short side at which a JPEG is decoded at least for a resize to `size`; None for all of it."""
    return None if size is None else DECODED * (size if isinstance(size, int) else max(size))


def scaled_size(height: int, width: int, size: Size) -> tuple[int, int]:
    """(height, width) in px after a resize to `size`. Raises UserError where the short side is set for a picture like a line."""
    if size is None:
        return height, width
    if not isinstance(size, int):
        return size[0], size[1]
    if max(height, width) > LONGEST * min(height, width):
        raise UserError(
            f"image: {width}x{height} px: one side is more than {LONGEST} times the other, and with a short side of {size} px the long one "
            "would take too much memory; crop it, or give size=(height, width)"
        )
    scale = size / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


class InputCheck:
    """Refuses what a model would answer wrongly without a word. Values are looked at on a CPU; on a GPU those of the first batch alone,
    as looking at a value waits for all that was queued; while a graph is traced none."""

    def __init__(self) -> None:
        self.looks = True
        """Whether values are still looked at."""

    def __call__(self, images: Any, shape: str = "[B, 3, H, W]") -> None:
        """Raises UserError for anything but a float tensor of this shape with values in [0, 1]."""
        check_images(images, shape)
        if not self.looks or type(images) is not Tensor or images.is_meta or torch.compiler.is_compiling():
            return
        check_range(images)
        self.looks = images.device.type == "cpu"


def check_range(images: Tensor) -> None:
    """Raises UserError where values are not in [0, 1]: pixels of 0 to 255 or normalised ones would give wrong features without a word."""
    if not images.numel():
        return
    low, high = (edge.item() for edge in images.detach().aminmax())
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("images: there are values that are not finite (NaN or infinity); expected RGB in [0, 1]")
    if high > 2 and low >= -TOLERANCE:
        hint = "these look like pixels of 0 to 255: divide by 255, or use amradio.read_image"
    elif low < -0.5 or high > 2:
        hint = "these look normalized already; the model does that itself (or call model.external_preprocessing() first)"
    else:
        hint = "clamp them to 0 and 1 (a bicubic resize overshoots)"
    raise UserError(f"images: expected RGB in [0, 1], found values from {low:.4g} to {high:.4g}; {hint}")


def check_images(images: Any, shape: str = "[B, 3, H, W]") -> None:
    """Raises UserError that says how to fix it where `images` is no float tensor of the shape."""
    if not isinstance(images, Tensor):
        kind = f"{type(images).__module__.partition('.')[0]}.{type(images).__name__}".removeprefix("builtins.")
        raise UserError(
            f"images: expected a float tensor {shape}, RGB in [0, 1], found {kind}; read pictures with amradio.read_image(...), "
            "or call model.features(...), which takes files, Pillow images and arrays"
        )
    axes = shape.count(",") + 1
    if images.ndim == axes and images.shape[-3] == 3 and images.is_floating_point():
        return
    hint = ""
    if images.dtype == torch.uint8:
        hint = "; amradio.read_image takes uint8, or divide by 255"
    elif images.ndim == 3 < axes and images.shape[0] == 3:
        hint = "; add the batch: images[None]"
    elif images.ndim == 4 and images.shape[-1] == 3:
        hint = "; the channels come before height and width: images.permute(0, 3, 1, 2)"
    elif images.ndim == 3 and images.shape[-1] == 3:
        hint = "; the channels come before height and width: images.permute(2, 0, 1)"
    raise UserError(f"images: expected float {shape} in [0, 1], found {_kind(images)}{hint}")


def check_size(size: Any) -> None:
    """Raises UserError where `size` is no `Size`."""
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    sides = size if is_pair else () if size is None else (size,)
    if not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= LARGEST for side in sides):
        raise UserError(f"size: expected px of the short side, or (height, width), found {size!r}")


def pixels_of(image: Any, least: int | None) -> Tensor:
    """As `read_image`, but not resized. least: see `stored_pixels`."""
    pixels = stored_pixels(image, least)
    if pixels.dtype == torch.uint8:
        return to_float(pixels)
    check_range(pixels)
    return pixels.float()


def stored_pixels(image: Any, least: int | None = None) -> Tensor:
    """uint8 (or float, as it was given) [B, 3, H, W] of a picture as of `read_image`.

    least: px that the short side of a JPEG keeps at least where it is decoded at a fraction of its size; None decodes all of it.
    """
    if isinstance(image, str | Path):
        image = _of_file(image, least)
    elif isinstance(image, Image.Image):
        image = _of_pillow(image)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(_channels_last(image).transpose(2, 0, 1).copy())
    if not isinstance(image, Tensor):
        known = "a path, a Pillow image, a uint8 array [H, W, 3] or a tensor [3, H, W]"
        raise UserError(f"image: expected {known}, found {type(image).__name__}")
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim == 4 and batch.shape[1] == 3 and batch.numel() and (batch.dtype == torch.uint8 or batch.is_floating_point()):
        return batch
    hint = "; the channels come first: image.permute(2, 0, 1)" if image.ndim == 3 and image.shape[-1] == 3 else ""
    raise UserError(f"image: expected a tensor [3, H, W] or [B, 3, H, W], uint8 or float in [0, 1], found {_kind(image)}{hint}")


def one_picture(image: Any) -> Tensor:
    """[3, H, W], uint8 or as it was given, of one picture as of `read_image`."""
    pixels = stored_pixels(image)
    if len(pixels) != 1:
        raise UserError(f"image: expected one picture, found {_kind(pixels)}")
    return pixels[0]


def _of_file(name: str | Path, least: int | None) -> np.ndarray:
    path = user_path(name)
    try:
        return decode(read_file(path), least)
    except UnreadableError as error:
        raise UserError(f"{path}: it cannot be read as a picture: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}; give the path of an image file") from None


def _of_pillow(image: Image.Image) -> np.ndarray:
    try:
        return rgb_of(image)
    except (UnreadableError, OSError, ValueError, SyntaxError) as error:  # Pillow reads the pixels only now
        raise UserError(f"image: this Pillow image cannot be read: {error}") from None


def _channels_last(array: np.ndarray) -> np.ndarray:
    """[H, W, 3] of an array [H, W, 3] of uint8 or floats, or of uint8 [H, W], [H, W, 1] (grey) or [H, W, 4] (with transparency)."""
    squeezed = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if squeezed.ndim == 3 and squeezed.shape[2] == 3 and (squeezed.dtype == np.uint8 or np.issubdtype(squeezed.dtype, np.floating)):
        return squeezed
    if squeezed.dtype == np.uint8 and squeezed.size and (squeezed.ndim == 2 or (squeezed.ndim == 3 and squeezed.shape[2] == 4)):
        return rgb_of(Image.fromarray(np.ascontiguousarray(squeezed)))
    hint = "; the channels come last: array.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] == 3 else ""
    raise UserError(f"image: expected an array [H, W, 3] of uint8, or of floats in [0, 1], found {array.dtype} {list(array.shape)}{hint}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
