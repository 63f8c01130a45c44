"""Encoded pictures to RGB: every mode and orientation, and no more pixels decoded than the crop needs."""

import io
import math
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is opened; Pillow's other readers are never tried on a file that a stranger made."""

MAX_PIXELS = 178_956_970
"""Larger pictures are refused from their header; it is where Pillow itself stops."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in px of the upright picture."""

Encoded = bytes | np.ndarray
"""A file's bytes, or pixels uint8 [H, W, 3] RGB."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableError(Exception):
    """A picture that cannot be read; the message is the reason."""


def decode(data: Encoded, least: int | None = None) -> np.ndarray:
    """The whole picture, upright: uint8 [H, W, 3] RGB. Raises UnreadableError.

    least: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as its short side keeps so many px; None for whole size.
    """
    return _guarded(data, lambda image: _upright(_to_rgb(_smaller(image, least)), _orientation(image)))


def crop_and_resize(data: Encoded, choose: Callable[[int, int], Box], size: int, full: bool = False) -> np.ndarray:
    """The part `choose(width, height)` of the upright picture, resized (bicubic, antialiased): uint8 [size, size, 3] RGB.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size (the DCT does it) as long as the crop keeps at least `size` px; `full`
    forbids that. Raises UnreadableError.
    """
    return _guarded(data, lambda image: _cropped(image, choose, size, full))


def _guarded(data: Encoded, read: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    # Pillow warns of odd metadata and of large pictures; a picture is either read or refused here.
    with warnings.catch_warnings(action="ignore"):
        try:
            if isinstance(data, np.ndarray):
                return np.asarray(read(Image.fromarray(data)))
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableError(f"{image.width}x{image.height} px are more than the limit of {MAX_PIXELS:,} pixels")
                return np.asarray(read(image))
        except (UnreadableError, MemoryError):
            raise
        except Image.UnidentifiedImageError:
            found = "an empty file" if not len(data) else f"not a picture in {', '.join(FORMATS)}"
            raise UnreadableError(found) from None
        except Exception as error:  # Pillow's readers raise nearly anything on broken input
            raise UnreadableError(f"{type(error).__name__}: {error}") from error


def _smaller(image: Image.Image, least: int | None) -> Image.Image:
    shrink = _reduction(image, (0, 0, *image.size), least) if least else 1
    if shrink > 1:
        image.draft(None, (image.width // shrink, image.height // shrink))  # pyright: ignore[reportArgumentType]
    return image


def _cropped(image: Image.Image, choose: Callable[[int, int], Box], size: int, full: bool) -> Image.Image:
    turn = _orientation(image)
    width, height = image.size if turn < 5 else image.size[::-1]
    box = stored_box(choose(width, height), turn, width, height)
    shrink = 1 if full else _reduction(image, box, size)
    if shrink > 1:
        image.draft(None, (image.width // shrink, image.height // shrink))  # pyright: ignore[reportArgumentType]
    rgb = _to_rgb(image)
    left, top, right, bottom = (edge / shrink for edge in box)
    within = (left, top, min(right, rgb.width), min(bottom, rgb.height))
    return _upright(rgb.resize((size, size), Image.Resampling.BICUBIC, box=within, reducing_gap=None if full else 3.0), turn)


def _reduction(image: Image.Image, box: Box, size: int) -> int:
    """The largest of 8, 4, 2, 1 by which a JPEG may shrink such that the box keeps `size` px a side."""
    if image.format not in ("JPEG", "MPO"):
        return 1
    short = min(box[2] - box[0], box[3] - box[1])
    return next((shrink for shrink in (8, 4, 2) if short >= shrink * size), 1)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8. Pillow turns TIFF on its own, so those count as upright."""
    if image.format == "TIFF":
        return 1
    turn = image.getexif().get(_ORIENTATION, 1)
    return turn if turn in _TURNS else 1


def _upright(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def stored_box(box: Box, turn: int, width: int, height: int) -> Box:
    """A box in the upright picture of width x height px, in the coordinates of the file with EXIF orientation `turn`."""
    corners = [_stored_point(x, y, turn, width, height) for x, y in (box[:2], box[2:])]
    (x0, x1), (y0, y1) = (sorted(line) for line in zip(*corners, strict=True))
    return x0, y0, x1, y1


def _stored_point(x: int, y: int, turn: int, width: int, height: int) -> tuple[int, int]:
    mirrored_x, mirrored_y = width - x, height - y
    return {
        2: (mirrored_x, y),
        3: (mirrored_x, mirrored_y),
        4: (x, mirrored_y),
        5: (y, x),
        6: (y, mirrored_x),
        7: (mirrored_y, mirrored_x),
        8: (mirrored_y, x),
    }.get(turn, (x, y))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB; alpha is laid on white, 16 bit becomes 8."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to mode L, 65535 becoming 255; wider numbers have no agreed white and are refused."""
    if image.mode == "F":
        raise UnreadableError("floating-point pixels have no agreed range; store 8 or 16 bit")
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableError("32-bit pixels outside of 0 to 65535; store 8 or 16 bit")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def centre_box(width: int, height: int) -> Box:
    """The central square as wide as the short side."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def random_box(draws: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], width: int, height: int) -> Box:
    """The box of torchvision's RandomResizedCrop, drawn from 22 numbers in [0, 1): ten tries of area and ratio, then a place.

    scale: the part of the area; ratio: width to height, log-uniform. Where no try fits, the largest central box of a legal
    ratio.
    """
    low, high = (math.log(edge) for edge in ratio)
    for area_draw, ratio_draw in draws[:20].reshape(10, 2).tolist():
        area = width * height * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(low + ratio_draw * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[20] * (width - w + 1)), int(draws[21] * (height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
