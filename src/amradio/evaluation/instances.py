"""Images with one mask an object: COCO's format (polygons and RLE) and generated scenes."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pydantic

from ..config import Settings, one_of
from ..data.scenes import Scenes
from ..errors import UserError
from .base import Positive
from .labelled import read_json, spread
from .labelled_maps import existing, raise_all, read_image, upright_size
from .prompts import box_of


class Instances(NamedTuple):
    """One image with its objects."""

    image: np.ndarray
    """uint8 [H, W, 3] RGB."""
    masks: np.ndarray
    """bool [N, H, W], none of them empty."""
    boxes: np.ndarray
    """float32 [N, 4], (x0, y0, x1, y1) px."""
    areas: np.ndarray
    """float64 [N], px, as annotated: what decides between small, medium and large."""


class InstanceSet:
    """Images in a fixed order, each with masks."""

    def __len__(self) -> int:
        raise NotImplementedError

    def describe(self) -> str:
        """`2,255 masks in 355 images in /path`."""
        raise NotImplementedError

    def read(self, number: int) -> Instances:
        """One image. Raises UserError."""
        raise NotImplementedError


class InstancesSettings(Settings):
    """What is common to all readers; each adds `type`, its own keys and `build`."""

    limit: Positive | None = None
    """Images at most, spread evenly over the set; null for all."""

    def build(self) -> InstanceSet:
        """Opens the set; raises UserError where files are missing or damaged."""
        raise NotImplementedError


class CocoInstancesSettings(InstancesSettings):
    """COCO's format: a JSON with images and annotations (polygons, uncompressed or compressed RLE), and a folder of images."""

    type: Literal["coco_instances"] = "coco_instances"
    annotations: str
    """The JSON file."""
    images: str
    """The folder of `file_name`."""
    min_area: float = pydantic.Field(default=1.0, ge=0)
    """px of the least annotation that counts, by its `area`; the published harness takes 1."""
    crowds: bool = True
    """Whether regions of many objects (`iscrowd`) count as well."""

    def build(self) -> "CocoInstances":
        """Reads the JSON; raises UserError with all problems: files missing, sizes that differ, annotations without a mask."""
        return CocoInstances(self)


class SceneInstancesSettings(InstancesSettings):
    """Generated scenes; a mask is what is visible of an object."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 256
    """How many."""
    seed: int = pydantic.Field(default=1, ge=0)
    """The world; training scenes are of world 0 unless they are told otherwise."""
    image_size: int = pydantic.Field(default=64, ge=16)
    """px of a side."""

    def build(self) -> "SceneInstances":
        """Never fails."""
        return SceneInstances(Scenes(self.length, self.seed, self.image_size), self.limit)


INSTANCES: tuple[type[InstancesSettings], ...] = (CocoInstancesSettings, SceneInstancesSettings)
"""Every reader; a new one is one class and one entry here."""

if TYPE_CHECKING:
    AnyInstances = InstancesSettings
else:
    AnyInstances = one_of(INSTANCES)


class SceneInstances(InstanceSet):
    """See `SceneInstancesSettings`."""

    def __init__(self, scenes: Scenes, limit: int | None = None):
        self.scenes, self.kept = scenes, spread(len(scenes), limit)

    def __len__(self) -> int:
        return len(self.kept)

    def describe(self) -> str:
        """See `InstanceSet.describe`."""
        return f"{len(self):,} generated scenes of {self.scenes.image_size} px (seed {self.scenes.seed})"

    def read(self, number: int) -> Instances:
        """See `InstanceSet.read`."""
        scene = self.scenes.scene(self.kept[number])
        masks = scene.instance_masks
        boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
        return Instances(scene.image, masks, boxes, masks.sum((1, 2)).astype(np.float64))


class CocoInstances(InstanceSet):
    """See `CocoInstancesSettings`; images without an annotation that counts are left out."""

    def __init__(self, settings: CocoInstancesSettings):
        self.file, self.folder = Path(settings.annotations).expanduser(), existing(settings.images)
        data = read_json(self.file)
        try:
            listed = {entry["id"]: (entry["file_name"], entry["height"], entry["width"]) for entry in data["images"]}
            annotations: list[Mapping[str, Any]] = [
                {key: entry[key] for key in ("id", "image_id", "segmentation")}
                | {key: entry.get(key) for key in ("area", "bbox", "iscrowd")}
                for entry in data["annotations"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.file}: not COCO instances, it lacks {error}; expected images and annotations with masks") from None
        by_image: dict[Any, list[Mapping[str, Any]]] = {}
        for entry in annotations:
            if settings.crowds or not entry["iscrowd"]:
                by_image.setdefault(entry["image_id"], []).append(entry)
        strangers = [image for image in by_image if image not in listed]
        if strangers:
            raise UserError(f"{self.file}: {len(strangers)} image_id of annotations belong to no image, the first is {strangers[0]}")
        self.min_area = settings.min_area
        decode_mask([], 1, 1)  # whether pycocotools is there
        found = [(listed[image], entries) for image, entries in by_image.items()]
        self.entries = [found[number] for number in spread(len(found), settings.limit)]
        if not self.entries:
            raise UserError(f"{self.file}: there is no annotation in it")
        raise_all((self._check(*entry) for entry in self.entries), str(self.file))

    def __len__(self) -> int:
        return len(self.entries)

    def describe(self) -> str:
        """See `InstanceSet.describe`."""
        return f"{sum(len(entries) for _, entries in self.entries):,} masks in {len(self):,} images in {self.folder}"

    def _check(self, listed: tuple[str, int, int], entries: Sequence[Mapping[str, Any]]) -> Callable[[], None]:
        """Cheap, without decoding: the image file, its size, the form of each mask."""

        def check() -> None:
            name, height, width = listed
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path}: this image of {self.file.name} is missing")
            size = upright_size(path)
            if size != (width, height):
                raise UserError(f"{path}: the image is {size[0]}x{size[1]} px and its masks {width}x{height} px; both must be of one size")
            for entry in entries:
                _check_mask(entry, height, width, self.file)

        return check

    def read(self, number: int) -> Instances:
        """See `InstanceSet.read`; annotations below `min_area` and empty masks are left out."""
        (name, height, width), entries = self.entries[number]
        masks, boxes, areas = [], [], []
        for entry in entries:
            mask = decode_mask(entry["segmentation"], height, width)
            area = float(mask.sum()) if entry["area"] is None else float(entry["area"])
            if area < self.min_area or not mask.any():
                continue
            masks.append(mask)
            areas.append(area)
            boxes.append(box_of(mask) if entry["bbox"] is None else _corners(entry["bbox"]))
        shape = (len(masks), height, width)
        return Instances(
            read_image(self.folder / name),
            np.array(masks, dtype=bool).reshape(shape),
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.array(areas, dtype=np.float64),
        )


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _check_mask(entry: Mapping[str, Any], height: int, width: int, file: Path) -> None:
    where, mask = f"{file}: annotation {entry['id']}", entry["segmentation"]
    if isinstance(mask, dict):
        if list(mask.get("size", ())) != [height, width]:
            raise UserError(f"{where}: its mask is of size {mask.get('size')} and its image {[height, width]}; both must be of one size")
        if not isinstance(mask.get("counts"), str | list):
            raise UserError(f"{where}: an RLE without counts; expected a string or a list")
    elif not isinstance(mask, list) or not all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in mask):
        raise UserError(f"{where}: neither polygons (lists of x, y of at least three corners) nor RLE")


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """COCO's polygons [[x0, y0, ...], ...] or RLE ({size, counts}, compressed or not) as a mask bool [H, W], by pycocotools.

    Raises UserError where pycocotools is not installed.
    """
    try:
        from pycocotools import mask as coco
    except ImportError:
        raise UserError("masks in COCO's format are read by pycocotools, which is missing: install amradio[coco]") from None
    if isinstance(segmentation, list):
        if not segmentation:
            return np.zeros((height, width), dtype=bool)
        encoded: Any = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = coco.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # pycocotools and NumPy 2 disagree on a keyword
        return np.asarray(coco.decode(encoded)).astype(bool)
