"""Masks in COCO's format: polygons and run lengths, checked before any of them reaches native code."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, brief
from .annotations import Id, WrongError, field, finite_number, identifier, optional, whole_number

FAR = 10
"""Sizes of the image by which a corner may be beyond its edge; it is clipped as pycocotools does. Annotation tools stay within one."""
LONGEST_OUTLINE = 1000
"""Sizes of the image (width and height together) that a polygon's outline may have: pycocotools takes 40 bytes a pixel of it."""
MOST_OUTLINE = 2**23
"""px of an outline, whatever the image's size: 340 MB."""

Box = tuple[float, float, float, float]


class Polygons(NamedTuple):
    """The union of polygons."""

    parts: list[list[float]]
    """Of each x0, y0, x1, y1, ... in px."""


class Runs(NamedTuple):
    """Lengths of runs of 0 and 1 in turn, down the columns, beginning with 0."""

    counts: np.ndarray
    """int64 [N], with the sum H * W."""


class Annotation(NamedTuple):
    """One object."""

    mask: Polygons | Runs
    area: float | None
    """px, as annotated."""
    box: Box | None
    """(x0, y0, x1, y1) px."""
    category: Id | None
    """The `category_id`."""
    crowd: bool
    """Whether it is a region of many objects."""


def read_annotation(entry: Mapping[str, Any], height: int, width: int, boxes_suffice: bool = False) -> Annotation:
    """An annotation of an image of height x width px. boxes_suffice: its mask may be missing where it has a box. Raises WrongError."""

    def area(value: Any) -> float:
        number = finite_number(value)
        if number < 0:
            raise WrongError(f"found {brief(value)}; expected 0 or more px")
        return number

    box = optional(entry, "bbox", lambda value: _box(value, height, width))
    if boxes_suffice and box is None and entry.get("segmentation") is None:
        raise WrongError("it lacks 'bbox' and 'segmentation'; expected one of them at least")
    is_without_mask = boxes_suffice and box is not None and entry.get("segmentation") is None
    mask = Polygons([]) if is_without_mask else field(entry, "segmentation", lambda value: read_mask(value, height, width))
    return Annotation(mask, optional(entry, "area", area), box, optional(entry, "category_id", identifier), is_crowd(entry))


def is_crowd(entry: Mapping[str, Any]) -> bool:
    """`iscrowd`: 0, 1 or missing. Raises WrongError."""
    flag = entry.get("iscrowd")
    if flag is None or flag in (0, 1):
        return bool(flag)
    raise WrongError(f"iscrowd: found {brief(flag)}; expected 0 or 1")


def _box(value: Any, height: int, width: int) -> Box:
    if not isinstance(value, list) or len(value) != 4:
        raise WrongError(f"found {brief(value)}; expected [x, y, width, height]")
    x, y, w, h = map(finite_number, value)
    if w < 0 or h < 0 or not _is_near(x, width) or not _is_near(y, height) or not _is_near(x + w, width) or not _is_near(y + h, height):
        raise WrongError(f"found {brief(value)}; expected [x, y, width, height] in px of an image of {width}x{height} px")
    return x, y, x + w, y + h


def _is_near(coordinate: float, size: int) -> bool:
    return -FAR * size <= coordinate <= (FAR + 1) * size


def read_mask(value: Any, height: int, width: int) -> Polygons | Runs:
    """A `segmentation`: [[x0, y0, ...], ...] or {size, counts}, counts a list or pycocotools' text. Raises WrongError."""
    if isinstance(value, list):
        return Polygons([_polygon(part, number, height, width) for number, part in enumerate(value)])
    if not isinstance(value, dict):
        raise WrongError(f"found {brief(value)}; expected polygons (lists of x, y of at least three corners) or RLE")
    size = value.get("size")
    if not isinstance(size, list) or [whole_number(side) for side in size] != [height, width]:
        raise WrongError(f"a mask of size {brief(size)}, and its image is {[height, width]}; both must be of one size")
    counts = value.get("counts")
    if isinstance(counts, str):
        runs = _uncompressed(counts)
    elif isinstance(counts, list):
        runs = np.array([whole_number(count) for count in counts], dtype=object)
    else:
        raise WrongError("an RLE without counts; expected a text or a list of whole numbers")
    total = sum(runs.tolist())
    if total != height * width:
        raise WrongError(f"an RLE of {brief(total)} px, and its image has {height * width:,}; the counts must add up to that")
    return Runs(runs.astype(np.int64))


def _polygon(part: Any, number: int, height: int, width: int) -> list[float]:
    where = f"polygon {number}"
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        raise WrongError(f"{where} is {brief(part)}; expected polygons (lists of x, y of at least three corners) or RLE")
    try:
        corners = np.array([finite_number(number) for number in part]).reshape(-1, 2)
    except WrongError as error:
        raise WrongError(f"{where}: {error}") from None
    far = next((corner for corner in corners if not (_is_near(corner[0], width) and _is_near(corner[1], height))), None)
    if far is not None:
        raise WrongError(
            f"{where} has a corner at {far[0]:.6g}, {far[1]:.6g}, which is over {FAR} sizes of the image ({width}x{height} px) away"
        )
    outline = np.abs(corners - np.roll(corners, 1, axis=0)).max(1).sum()
    if outline > min(LONGEST_OUTLINE * (height + width), MOST_OUTLINE):
        raise WrongError(f"{where} has an outline of {outline:.6g} px, which no object in an image of {width}x{height} px has")
    return corners.reshape(-1).tolist()


def _uncompressed(text: str) -> np.ndarray:
    """The counts of pycocotools' text, int64 [N]: five bits a letter from `0` on, the least first, a sixth for more to come; from the
    fourth on each is the difference to the one before the last (maskApi.c, rleFrString). Raises WrongError."""
    wrong = WrongError("an RLE whose text is damaged; expected what pycocotools writes")
    letters = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(letters):
        return letters
    more = letters & 0x20 != 0
    ends = np.flatnonzero(~more)
    if letters.min() < 0 or letters.max() > 63 or more[-1]:
        raise wrong
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits, beyond the 32 that pycocotools has
        raise wrong
    places = np.arange(len(letters)) - np.repeat(starts, lengths)
    values = np.add.reduceat((letters & 0x1F) << (5 * places), starts)
    values = np.where(letters[ends] & 0x10 != 0, values - (1 << (5 * lengths)), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0 or values.max() >= 2**32:
        raise wrong
    return values


def decode_mask(mask: Polygons | Runs, height: int, width: int) -> np.ndarray:
    """The mask bool [H, W]; polygons by pycocotools. Raises UserError where that is not installed."""
    if isinstance(mask, Runs):
        return np.repeat(np.arange(len(mask.counts)) % 2 == 1, mask.counts).reshape(width, height).T
    coco = find_pycocotools()
    if not mask.parts:
        return np.zeros((height, width), dtype=bool)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # pycocotools and NumPy 2 disagree on a keyword
        return np.asarray(coco.decode(coco.merge(coco.frPyObjects(mask.parts, height, width)))).astype(bool)


def find_pycocotools() -> Any:
    """Its module of masks. Raises UserError where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError("masks in COCO's format are read by pycocotools, which is missing: install amradio[coco]") from None
    return mask
