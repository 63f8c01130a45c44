"""Images with one mask an object: COCO's format (polygons and RLE) and generated scenes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic

from ..config import Positive, SceneSize, Seed, Settings, UserPath, one_of
from ..data.scenes import CLASS_NAMES, Scenes
from ..errors import UserError, brief, shown, together
from ..files import LARGEST_ANNOTATIONS, read_json, unusable, user_path
from .annotations import (
    Id,
    Listed,
    Problems,
    WrongError,
    check_unique,
    entries,
    field,
    identifier,
    image_of,
    optional,
    plain_text,
    raise_all,
    read_images,
)
from .classification import spread
from .masks import Annotation, Polygons, decode_mask, find_pycocotools, is_crowd, read_annotation
from .paired_files import existing, image_size, read_image

Purpose = Literal["masks", "boxes", "score"]
"""masks, boxes: images with objects that have a mask, or at least a box. score: as detectors are measured, all images, also those without
an object, and all annotations that have a box, crowds and those without a mask among them."""
MOST_MASK_PIXELS = 2**32
"""Pixels (4 GiB) of all masks of one image together, which are held at once."""


class Instances(NamedTuple):
    """One image with its objects."""

    image: np.ndarray
    """uint8 [H, W, 3] RGB."""
    masks: np.ndarray
    """bool [N, H, W]; of a set for boxes or for the score one may be empty, where only its box is annotated."""
    boxes: np.ndarray
    """float32 [N, 4], (x0, y0, x1, y1) px."""
    areas: np.ndarray
    """float64 [N], px, as annotated: what decides between small, medium and large."""
    labels: np.ndarray
    """int64 [N], indices into `InstanceSet.classes`; -1 for an object without a category."""
    crowds: np.ndarray
    """bool [N], regions of many objects."""


class InstanceSet:
    """Images in a fixed order, each with masks.

    Attributes: `classes`, the names of the categories in the order of their labels; empty where the set has none.
    """

    classes: Sequence[str] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def describe(self) -> str:
        """`2,255 masks in 355 images in /path`."""
        raise NotImplementedError

    def key(self, number: int) -> str:
        """The name of an image, unique within the set."""
        raise NotImplementedError

    def read(self, number: int) -> Instances:
        """One image. Raises UserError."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all that makes this set another one: names and sizes of images, boxes, areas and categories."""
        raise NotImplementedError


class InstancesSettings(Settings):
    """What is common to all readers; each adds `type`, its own keys and `build`."""

    limit: Positive | None = None
    """Images at most, spread evenly over the set; null for all."""

    def build(self, purpose: Purpose = "masks") -> InstanceSet:
        """Opens the set; raises UserError where files are missing or damaged, or nothing in it serves the purpose."""
        raise NotImplementedError


class CocoInstancesSettings(InstancesSettings):
    """COCO's format: a JSON with images and annotations (polygons, uncompressed or compressed RLE), and a folder of images."""

    type: Literal["coco_instances"] = "coco_instances"
    annotations: UserPath
    """The JSON file."""
    images: UserPath
    """The folder of `file_name`."""
    min_area: Annotated[float, pydantic.Field(ge=0, le=1e10)] = 1.0
    """px of the least annotation that counts, by its `area`; the published harness takes 1."""
    crowds: bool = True
    """Whether regions of many objects (`iscrowd`) count as well."""

    def build(self, purpose: Purpose = "masks") -> "CocoInstances":
        """Reads the JSON; raises UserError with all problems: files missing, sizes that differ, annotations without a mask.

        purpose: for the score `min_area` and `crowds` do not count.
        """
        return CocoInstances(self, purpose)


class SceneInstancesSettings(InstancesSettings):
    """Generated scenes; a mask is what is visible of an object."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 256
    """How many."""
    seed: Seed = 1
    """The world; training scenes are of world 0 unless the recipe names another."""
    image_size: SceneSize = 64
    """px of a side."""

    def build(self, purpose: Purpose = "masks") -> "SceneInstances":
        """Never fails; scenes serve every purpose."""
        del purpose
        return SceneInstances(Scenes(self.length, self.seed, self.image_size), self.limit)


INSTANCES: tuple[type[InstancesSettings], ...] = (CocoInstancesSettings, SceneInstancesSettings)
"""Every reader; a new one is one class and one entry here."""

if TYPE_CHECKING:
    AnyInstances = InstancesSettings
else:
    AnyInstances = one_of(INSTANCES)


class SceneInstances(InstanceSet):
    """Generated scenes with the masks of their objects."""

    def __init__(self, scenes: Scenes, limit: int | None = None):
        self.scenes, self.kept = scenes, spread(len(scenes), limit)
        self.classes = CLASS_NAMES

    def key(self, number: int) -> str:
        """`scene-1-17`."""
        return self.scenes.key(self.kept[number])

    def __len__(self) -> int:
        return len(self.kept)

    def describe(self) -> str:
        """`256 generated scenes of 64 px (seed 1)`."""
        return f"{len(self):,} generated scenes of {self.scenes.image_size} px (seed {self.scenes.seed})"

    def fingerprint(self) -> str:
        """16 hex digits of the world, the numbers and the size of the scenes."""
        return hashlib.sha256(repr((self.scenes.seed, self.scenes.image_size, list(self.kept))).encode()).hexdigest()[:16]

    def read(self, number: int) -> Instances:
        """The scene with its masks bool [N, H, W], their boxes float32 [N, 4] and areas float64 [N]."""
        scene = self.scenes.scene(self.kept[number])
        masks = scene.instance_masks
        boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
        areas = masks.sum((1, 2)).astype(np.float64)
        return Instances(scene.image, masks, boxes, areas, scene.instance_labels, np.zeros(len(masks), dtype=bool))


class CocoInstances(InstanceSet):
    """Images with objects from a file in COCO's format; images without an annotation that counts are left out, unless for the score."""

    def __init__(self, settings: CocoInstancesSettings, purpose: Purpose = "masks"):
        """Raises UserError with all problems."""
        self.purpose: Purpose = purpose
        is_for_score = purpose == "score"
        self.file = user_path(settings.annotations)
        self.folder, data = together(partial(existing, settings.images), partial(read_json, self.file, dict, LARGEST_ANNOTATIONS))
        problems = Problems(self.file)
        images = read_images(data, self.folder, problems, with_size=True)
        categories = _categories(data, problems)
        by_image: dict[Id, list[tuple[str, Mapping[str, Any]]]] = {}
        seen: set[Id] = set()
        for where, entry in entries(data, "annotations", problems):
            try:
                check_unique(entry, seen)
                image = image_of(entry, images, problems)
                category = optional(entry, "category_id", identifier)
                if categories and category not in categories:
                    raise WrongError(f"its category_id {brief(category)} is none of the file's categories")
                if image is not None and (is_for_score or settings.crowds or not is_crowd(entry)):
                    by_image.setdefault(image, []).append((where, entry))
            except WrongError as error:
                problems.add(where, str(error))
        self.min_area = settings.min_area
        if is_for_score:
            by_image = {image: by_image.get(image, []) for image in images}
        annotated = [(images[image], of_image) for image, of_image in by_image.items()]
        kept = [annotated[number] for number in spread(len(annotated), settings.limit)]
        self.entries = [(listed, self._annotations(listed, of_image, problems)) for listed, of_image in kept]
        problems.refuse()
        self._labels = {
            category: label for label, category in enumerate(sorted(categories, key=lambda category: (isinstance(category, str), category)))
        }
        self.classes = [categories[category] for category in self._labels]
        if not any(self._serves(annotation) for _, annotations in self.entries for annotation in annotations):
            wanted, crowds = "mask" if purpose == "masks" else "box", "" if is_for_score or settings.crowds else ", crowds left out"
            raise UserError(f"{shown(self.file)}: there is no annotation with a {wanted} in it{crowds}; give a file with some")
        find_pycocotools()
        raise_all((self._check(*entry) for entry in self.entries), shown(self.file))

    def _serves(self, annotation: Annotation) -> bool:
        """Whether there may be something to use in it: a mask that is not empty, or a box that has an area."""
        box = annotation.box
        has_box = box is not None and box[2] > box[0] and box[3] > box[1]
        has_mask = bool(annotation.mask.parts) if isinstance(annotation.mask, Polygons) else len(annotation.mask.counts) > 1
        return has_mask if self.purpose == "masks" else has_box or (box is None and has_mask)

    def __len__(self) -> int:
        return len(self.entries)

    def describe(self) -> str:
        """`1,024 masks in 256 images in /path`, or `objects` where boxes suffice."""
        what, count = "masks" if self.purpose == "masks" else "objects", sum(len(annotations) for _, annotations in self.entries)
        return f"{count:,} {what} in {len(self):,} images in {shown(self.folder)}"

    def key(self, number: int) -> str:
        """Its path below the folder of images."""
        return self.entries[number][0].name

    def fingerprint(self) -> str:
        """16 hex digits over what is annotated; masks count by their boxes and areas."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for listed, annotations in self.entries:
            digest.update(repr((listed, [annotation[1:] for annotation in annotations])).encode())
        return digest.hexdigest()[:16]

    def _annotations(self, listed: Listed, entries: Sequence[tuple[str, Mapping[str, Any]]], problems: Problems) -> list[Annotation]:
        """The annotations of one image, checked and typed; what is wrong goes into `problems`."""
        annotations = []
        for where, entry in entries:
            try:
                annotations.append(read_annotation(entry, listed.height, listed.width, self.purpose != "masks"))
            except WrongError as error:
                problems.add(where, str(error))
        return annotations

    def _check(self, listed: Listed, annotations: Sequence[Annotation]) -> Callable[[], None]:
        """Cheap, without decoding: the image file, its size, the memory that all masks take."""

        def check() -> None:
            path = self.folder / listed.name
            if problem := unusable(path):
                raise UserError(f"{shown(path)}: this image of {shown(self.file.name)} {problem}; give the folder of its images")
            size, wanted = image_size(path), (listed.width, listed.height)
            if size != wanted:
                raise UserError(
                    f"{shown(path)}: the image is {size[0]}x{size[1]} px and its masks {wanted[0]}x{wanted[1]} px; both must be of one size"
                )
            if len(annotations) * size[0] * size[1] > MOST_MASK_PIXELS:
                raise UserError(
                    f"{shown(path)}: {len(annotations):,} masks of {size[0]}x{size[1]} px are too many to hold; "
                    "resize the image and its annotations, or leave annotations out"
                )

        return check

    def read(self, number: int) -> Instances:
        """The image with its masks, boxes and areas; annotations below `min_area` and empty masks are left out. Raises UserError."""
        listed, annotations = self.entries[number]
        masks = np.zeros((len(annotations), listed.height, listed.width), dtype=bool)
        kept: list[Annotation] = []
        boxes: list[tuple[float, float, float, float]] = []
        areas: list[float] = []
        for annotation in annotations:
            mask = decode_mask(annotation.mask, listed.height, listed.width)
            has_mask = bool(mask.any())
            box = annotation.box or (box_of(mask) if has_mask else None)
            fallback = float(mask.sum()) if has_mask or box is None else (box[2] - box[0]) * (box[3] - box[1])
            area = fallback if annotation.area is None else annotation.area
            if box is None or (self.purpose != "score" and area < self.min_area) or (self.purpose == "masks" and not has_mask):
                continue
            masks[len(kept)] = mask
            areas.append(area)
            boxes.append(box)
            kept.append(annotation)
        return Instances(
            read_image(self.folder / listed.name),
            masks[: len(kept)],
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.array(areas, dtype=np.float64),
            np.array([-1 if a.category is None else self._labels.get(a.category, -1) for a in kept], dtype=np.int64),
            np.array([annotation.crowd for annotation in kept], dtype=bool),
        )


def _categories(data: Mapping[str, Any], problems: Problems) -> dict[Id, str]:
    """The names of `categories` by id; empty where the file has none, as for masks of anything."""
    categories: dict[Id, str] = {}
    for where, entry in entries(data, "categories", problems) if data.get("categories") else ():
        try:
            category = field(entry, "id", identifier)
            name = optional(entry, "name", plain_text)
            if category in categories:
                raise WrongError("a category before it has the same id")
            categories[category] = name or str(category)
        except WrongError as error:
            problems.add(where, str(error))
    return categories


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) px around a mask bool [H, W]: the outer edges of its outermost pixels. The mask must not be empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
