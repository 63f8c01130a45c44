"""Encoded pictures to RGB or ids: every mode and orientation, no more pixels decoded than the crop needs, memory bounded by area."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import sides_of
from .guard import FORMATS, MAX_PIXELS, Encoded, UnreadableError, check_area, guarded, open_file, read_file

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Box",
    "Encoded",
    "UnreadableError",
    "centre_box",
    "crop_and_resize",
    "decode",
    "decode_ids",
    "random_box",
]

LARGE = 2**24
"""Pixels (4096 x 4096) above which a picture whose format cannot be decoded at a smaller size is averaged over blocks, strip by strip,
where a smaller one will do: what is held beside Pillow's own copy stays below 50 MiB."""
STRIP = 2**20
"""Pixels that are converted at a time."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in px of the upright picture."""

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


def decode(data: Encoded, least: int | None = None, most: int | None = None) -> np.ndarray:
    """The whole picture, upright: uint8 [H, W, 3] RGB. Raises UnreadableError.

    least: px that the short side keeps; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as it does, another picture of more than
    LARGE pixels is averaged over blocks. most: pixels at most, reached in the same way. None for no such bound: the whole size.
    """
    return guarded(data, lambda image: _whole(image, least, most))


def crop_and_resize(data: Encoded, choose: Callable[[int, int], Box], size: int | tuple[int, int], full: bool = False) -> np.ndarray:
    """The part `choose(width, height)` of the upright picture, resized (bicubic, antialiased): uint8 [H, W, 3] RGB.

    size: px of the side of a square, or (H, W). A JPEG is decoded at 1/2, 1/4 or 1/8 of its size (the DCT does it) as long as the crop
    keeps at least `size` px; `full` forbids that. Raises UnreadableError.
    """
    return guarded(data, lambda image: np.asarray(_cropped(image, choose, sides_of(size), full)))


def decode_ids(data: bytes) -> np.ndarray:
    """The values of a picture of one channel, or the indices of a palette, exactly as stored: uint8, uint16 or int32 [H, W].

    Raises UnreadableError, also where a picture has several channels or numbers that are not whole.
    """
    return guarded(data, lambda image: _ids(image, data), ("PNG", "TIFF", "BMP", "GIF"))


def decode_channels(data: bytes) -> np.ndarray:
    """The three channels of an RGB picture exactly as stored, which stand for something else than colours: uint8 [H, W, 3].

    A fourth one is left out. Raises UnreadableError, also where a picture has one channel, a palette, or other colours than RGB.
    """
    return guarded(data, _channels, ("PNG", "TIFF", "BMP"))


def picture_size(path: str | Path, upright: bool = True) -> tuple[int, int]:
    """(width, height) px as shown (`upright`) or as stored, from the header. Raises UnreadableError or OSError."""

    def size(image: Image.Image) -> tuple[int, int]:
        check_area(image)
        return (image.height, image.width) if upright and _orientation(image) >= 5 else (image.width, image.height)

    try:
        with warnings.catch_warnings(action="ignore"), open_file(path) as file, Image.open(file, formats=FORMATS) as image:
            return size(image)
    except (UnreadableError, FileNotFoundError, PermissionError):
        raise
    except Exception:  # the whole file, then: it may be its metadata alone that cannot be read
        return guarded(read_file(path), size)


def _whole(image: Image.Image, least: int | None, most: int | None) -> np.ndarray:
    turn = _orientation(image)
    short, area = min(image.size), image.width * image.height
    if least is not None or most is not None:
        by_least = short // least if least is not None else 8
        by_most = max(1, math.ceil(math.sqrt(area / most))) if most is not None else by_least
        shrink = next((shrink for shrink in (8, 4, 2) if shrink <= min(by_least, by_most)), 1) if _drafts(image) else 1
        if shrink > 1:
            image.draft(None, (image.width // shrink, image.height // shrink))  # pyright: ignore[reportArgumentType]
    area = image.width * image.height
    factor = 1
    if most is not None and area > most:
        factor = math.ceil(math.sqrt(area / most))
    if least is not None:
        bound = max(1, min(image.size) // least)
        factor = min(max(factor, math.ceil(math.sqrt(area / LARGE))), bound) if most is None else min(factor, bound)
    return _turned(_pixels(image, factor), turn)


def _pixels(image: Image.Image, factor: int, part: Box | None = None) -> np.ndarray:
    """uint8 [H / factor, W / factor, 3] RGB of a part as stored (None: the whole), averaged over blocks of `factor` px.

    A large one is converted strip by strip.
    """
    left, top, right, bottom = part or (0, 0, *image.size)
    width, height = right - left, bottom - top
    if factor == 1 and part is None and width * height <= STRIP:
        return np.asarray(_to_rgb(image))
    image.load()
    pixels = np.empty((-(-height // factor), -(-width // factor), 3), dtype=np.uint8)
    rows = max(1, STRIP // width // factor) * factor
    for row in range(0, height, rows):
        strip = _to_rgb(image.crop((left, top + row, right, min(top + row + rows, bottom))))
        strip = strip.reduce(factor) if factor > 1 else strip
        pixels[row // factor : row // factor + strip.height] = np.asarray(strip)
    return pixels


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """[H, W, 3] upright, out of pixels stored with EXIF orientation `turn`."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if turn in (3, 4, 7, 8) else pixels


def _cropped(image: Image.Image, choose: Callable[[int, int], Box], sides: tuple[int, int], full: bool) -> Image.Image:
    turn = _orientation(image)
    width, height = image.size if turn < 5 else image.size[::-1]
    size = (sides[1], sides[0]) if turn < 5 else sides  # width and height, as they are stored
    box = stored_box(choose(width, height), turn, width, height)
    shrink = 1 if full else _reduction(image, box, size)
    if shrink > 1:
        image.draft(None, (image.width // shrink, image.height // shrink))  # pyright: ignore[reportArgumentType]
    left, top, right, bottom = (edge / shrink for edge in box)
    within = (left, top, min(right, image.width), min(bottom, image.height))
    if image.width * image.height > LARGE and not full:
        image, within = _cut_out(image, within, size)
    rgb = _to_rgb(image)
    return _upright(rgb.resize(size, Image.Resampling.BICUBIC, box=within, reducing_gap=None if full else 3.0), turn)


def _cut_out(image: Image.Image, box: tuple[float, ...], size: tuple[int, int]) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Of a large picture the part alone, averaged over blocks as far as the resize to `size` (width, height) does it; the box within it."""
    left, top = math.floor(box[0]), math.floor(box[1])
    part = (left, top, min(image.width, math.ceil(box[2])), min(image.height, math.ceil(box[3])))
    factor = max(1, int(min((part[2] - left) / size[0], (part[3] - top) / size[1]) / 3))
    cut = Image.fromarray(_pixels(image, factor, part))
    x0, y0, x1, y1 = (edge / factor for edge in (box[0] - left, box[1] - top, box[2] - left, box[3] - top))
    return cut, (x0, y0, min(x1, cut.width), min(y1, cut.height))


def _reduction(image: Image.Image, box: Box, size: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 by which a JPEG may shrink such that the box keeps `size` (width, height) px."""
    if not _drafts(image):
        return 1
    least = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    return next((shrink for shrink in (8, 4, 2) if least >= shrink), 1)


def _drafts(image: Image.Image) -> bool:
    """Whether it can be decoded at 1/2, 1/4 or 1/8 of its size."""
    return image.format in ("JPEG", "MPO")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none that can be read. Pillow turns TIFF on its own, so those count as upright."""
    if image.format == "TIFF":
        return 1
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except (OSError, MemoryError):  # of the pixels: a PNG is decoded first
        raise
    except Exception:  # EXIF is parsed as it comes, and anything may come
        return 1
    return turn if isinstance(turn, int) and turn in _TURNS else 1


def _channels(image: Image.Image) -> np.ndarray:
    if image.mode not in ("RGB", "RGBA"):
        raise UnreadableError(f"a picture of mode {image.mode}; expected RGB, three channels of 8 bits")
    return np.ascontiguousarray(np.asarray(image)[..., :3])


def _ids(image: Image.Image, data: bytes) -> np.ndarray:
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        raise UnreadableError(f"a picture of mode {image.mode}; expected one channel of whole numbers: 8 or 16 bit grey, or a palette")
    bits, is_inverted = _grey_bits(image, data)
    ids = np.asarray(image)
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    elif bits in (2, 4) and image.mode == "L":  # Pillow spreads them over 0 to 255
        ids = ids // (255 // (2**bits - 1))
    if is_inverted and image.mode in ("1", "L"):
        ids = (2 ** min(bits, 8) - 1) - ids
    return ids.astype(np.uint16) if image.mode.startswith("I;16") else ids


def _grey_bits(image: Image.Image, data: bytes) -> tuple[int, bool]:
    """Bits of a stored sample, and whether 0 is white, which Pillow inverts (TIFF)."""
    if image.format == "PNG":
        return data[24], False
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (1,))  # pyright: ignore[reportAttributeAccessIssue]
        return bits[0] if isinstance(bits, tuple) else bits, image.tag_v2.get(262) == 0  # pyright: ignore[reportAttributeAccessIssue]
    return 8, False


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


def centre_box(width: int, height: int, aspect: float = 1.0) -> Box:
    """The largest central part whose width is `aspect` times its height, to whole px."""
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_box(draws: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], width: int, height: int) -> Box:
    """The box of torchvision's RandomResizedCrop, drawn from 22 numbers in [0, 1): ten tries of area and ratio, then a position.

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


def rgb_of(image: Image.Image) -> np.ndarray:
    """An opened picture of any mode, upright: uint8 [H, W, 3] RGB. Raises UnreadableError, or what Pillow raises on a damaged file."""
    return np.asarray(_upright(_to_rgb(image), _orientation(image)))
