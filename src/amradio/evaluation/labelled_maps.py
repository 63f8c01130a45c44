"""Images with one class a pixel: plain folders, ADE20K, PASCAL VOC, Cityscapes and generated scenes, all behind one interface."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pydantic
from PIL import Image

from ..config import Settings, one_of
from ..data.decode import UnreadableError, decode
from ..data.scenes import CLASS_NAMES, Scenes
from ..errors import UserError
from .base import Positive
from .class_names import ADE20K, CITYSCAPES, PASCAL_VOC
from .labelled import spread

IGNORE = 255
"""The class of pixels that do not count, in every reader; so there are at most 255 classes."""
IDS_CHECKED = 200
"""Of how many label files `check` reads the ids; those of the others are checked when their turn comes."""
PROBLEMS_SHOWN = 20

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Pair(NamedTuple):
    """An image file and its label file."""

    key: str
    image: Path
    label: Path


class LabelledMaps:
    """Images in a fixed order, each with a class id a pixel. Attributes: `names` of the classes by id."""

    names: Sequence[str]

    def __len__(self) -> int:
        raise NotImplementedError

    def describe(self) -> str:
        """`233 labelled images of 11 classes in /path`."""
        raise NotImplementedError

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] RGB and its classes uint8 [H, W], IGNORE where a pixel does not count. Raises UserError."""
        raise NotImplementedError

    def label(self, number: int) -> np.ndarray:
        """Only the classes uint8 [H, W]. Raises UserError."""
        return self.read(number)[1]


class LabelFiles(LabelledMaps):
    """Pairs of files; labels are pictures of one channel, or with a palette, whose values are ids."""

    def __init__(self, where: str, pairs: Sequence[Pair], names: Sequence[str], class_of: Mapping[int, int], limit: int | None = None):
        """class_of: {id in the files: class, or IGNORE}; any other id is an error. Raises UserError as `check` does."""
        self.where, self.names = where, tuple(names)
        self.pairs = [pairs[number] for number in spread(len(pairs), limit)]
        if not self.names:
            raise UserError(f"{where}: there are no classes; name them in `classes`")
        if len(self.names) > IGNORE:
            raise UserError(f"{where}: {len(self.names)} classes; there can be at most {IGNORE}")
        if not self.pairs:
            raise UserError(f"{where}: there is no image in it; looked for {', '.join(IMAGE_EXTENSIONS)}")
        self.table = np.full(256, -1, dtype=np.int16)
        for found, wanted in class_of.items():
            self.table[found] = wanted
        self.check()

    def __len__(self) -> int:
        return len(self.pairs)

    def describe(self) -> str:
        """See `LabelledMaps.describe`."""
        return f"{len(self):,} labelled images of {len(self.names)} classes in {self.where}"

    def check(self) -> None:
        """Looks for missing files and for labels of another size than their image (all), and for unknown ids (some, evenly spread).

        Raises UserError with all problems, at most PROBLEMS_SHOWN.
        """
        step = max(1, len(self.pairs) // IDS_CHECKED)
        checks: Iterable[Callable[[], None]] = (
            lambda number=number, pair=pair: self._check_pair(number, pair, number % step == 0) for number, pair in enumerate(self.pairs)
        )
        raise_all(checks, self.where)

    def _check_pair(self, number: int, pair: Pair, ids_as_well: bool) -> None:
        for path, what in ((pair.image, "image"), (pair.label, "label")):
            if not path.is_file():
                raise UserError(f"{pair.key}: its {what} {path} is missing")
        if ids_as_well:
            self.label(number)
        _same_size(pair, upright_size(pair.image), upright_size(pair.label))

    def label(self, number: int) -> np.ndarray:
        """See `LabelledMaps.label`."""
        pair = self.pairs[number]
        ids = read_ids(pair.label)
        found = self.table[ids] if ids.max(initial=0) < 256 else None
        if found is None or found.min(initial=0) < 0:
            known = np.flatnonzero(self.table >= 0)
            bad = sorted(set(np.unique(ids).tolist()) - set(known.tolist()))
            raise UserError(
                f"{pair.label}: ids that are no class: {', '.join(map(str, bad[:8]))}; there are {len(self.names)} classes "
                f"and the ids known are {_spans(known.tolist())}; name all classes, or an ignore_index"
            )
        return found.astype(np.uint8)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """See `LabelledMaps.read`."""
        pair = self.pairs[number]
        image, label = read_image(pair.image), self.label(number)
        _same_size(pair, image.shape[1::-1], label.shape[::-1])
        return image, label


class SceneMaps(LabelledMaps):
    """Generated scenes; class 0 is the background."""

    names = ("background", *CLASS_NAMES)

    def __init__(self, scenes: Scenes, limit: int | None = None):
        self.scenes, self.kept = scenes, spread(len(scenes), limit)

    def __len__(self) -> int:
        return len(self.kept)

    def describe(self) -> str:
        """See `LabelledMaps.describe`."""
        return f"{len(self):,} generated scenes of {self.scenes.image_size} px, {len(self.names)} classes (seed {self.scenes.seed})"

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """See `LabelledMaps.read`."""
        scene = self.scenes.scene(self.kept[number])
        return scene.image, scene.semantic


class MapsSettings(Settings):
    """What is common to all readers; each adds `type`, its own keys and `build`."""

    limit: Positive | None = None
    """Images at most, spread evenly over the set; null for all."""

    def build(self) -> LabelledMaps:
        """Opens the set; raises UserError where files are missing, sizes differ or ids are unknown."""
        raise NotImplementedError


class ImagesLabelsSettings(MapsSettings):
    """A folder with `images` and `labels` (PNG class ids of the same name), as CamVid is often stored."""

    type: Literal["images_labels"] = "images_labels"
    path: str
    """The folder that holds `images` and `labels`."""
    classes: list[str] | None = None
    """Names in the order of the ids from 0; null for those of `classes.json`, here or one folder up."""
    ignore_index: int | None = pydantic.Field(default=None, ge=0, le=255)
    """Id of the pixels that do not count; null for that of `classes.json`, else 255."""

    def build(self) -> LabelFiles:
        """See `MapsSettings.build`."""
        folder = existing(self.path, "images", "labels")
        names, ignore = _described_classes(folder) if self.classes is None else (self.classes, None)
        ignore = next(found for found in (self.ignore_index, ignore, IGNORE) if found is not None)
        if ignore < len(names):
            raise UserError(f"{folder}: ignore_index {ignore} is also the id of the class '{names[ignore]}'; take another")
        class_of = {number: number for number in range(len(names))} | {ignore: IGNORE}
        return LabelFiles(str(folder), list(_same_names(folder / "images", folder / "labels")), names, class_of, self.limit)


class Ade20kSettings(MapsSettings):
    """ADE20K as the scene-parsing benchmark ships it (ADEChallengeData2016)."""

    type: Literal["ade20k"] = "ade20k"
    path: str
    """The folder that holds `images` and `annotations`."""
    split: Literal["training", "validation"] = "validation"
    """Which part."""
    reduce_zero_label: bool = True
    """Whether id 0 is unlabelled and ids 1 to 150 are the classes; else ids 0 to 149 are, and 255 does not count."""

    def build(self) -> LabelFiles:
        """See `MapsSettings.build`."""
        folder = existing(self.path, f"images/{self.split}", f"annotations/{self.split}")
        shift = int(self.reduce_zero_label)
        class_of = {0: IGNORE, IGNORE: IGNORE} | {number + shift: number for number in range(len(ADE20K))}
        pairs = _same_names(folder / "images" / self.split, folder / "annotations" / self.split)
        return LabelFiles(f"{folder} ({self.split})", list(pairs), ADE20K, class_of, self.limit)


class PascalVocSettings(MapsSettings):
    """PASCAL VOC; ids 0 to 20 with 0 the background, 255 does not count."""

    type: Literal["pascal_voc"] = "pascal_voc"
    path: str
    """The folder VOC2012 (or VOC2007), which holds `JPEGImages`."""
    split: str = "val"
    """A list in ImageSets/Segmentation."""

    def build(self) -> LabelFiles:
        """See `MapsSettings.build`."""
        folder = existing(self.path, "JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
        listed = folder / "ImageSets" / "Segmentation" / f"{self.split}.txt"
        if not listed.is_file():
            there = ", ".join(sorted(path.stem for path in listed.parent.glob("*.txt")))
            raise UserError(f"{listed}: there is no such list; there is: {there or 'none'}")
        names = listed.read_text(encoding="utf-8").split()
        pairs = [Pair(name, folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png") for name in names]
        class_of = {number: number for number in range(len(PASCAL_VOC))} | {IGNORE: IGNORE}
        return LabelFiles(f"{folder} ({self.split})", pairs, PASCAL_VOC, class_of, self.limit)


class CityscapesSettings(MapsSettings):
    """Cityscapes (fine) and what follows its layout: label ids become the 19 classes that are evaluated."""

    type: Literal["cityscapes"] = "cityscapes"
    path: str
    """The folder that holds `leftImg8bit` and `gtFine`."""
    split: Literal["train", "val"] = "val"
    """Which part."""

    def build(self) -> LabelFiles:
        """See `MapsSettings.build`."""
        folder = existing(self.path, f"leftImg8bit/{self.split}", f"gtFine/{self.split}")
        images, labels = folder / "leftImg8bit" / self.split, folder / "gtFine" / self.split
        pairs = []
        for image in sorted(images.glob("*/*_leftImg8bit.*")):
            key = image.relative_to(images).as_posix().split("_leftImg8bit")[0]
            pairs.append(Pair(key, image, labels / f"{key}_gtFine_labelIds.png"))
        class_of = dict.fromkeys(range(256), IGNORE) | {found: number for number, found in enumerate(CITYSCAPES)}
        return LabelFiles(f"{folder} ({self.split})", pairs, tuple(CITYSCAPES.values()), class_of, self.limit)


class SceneMapsSettings(MapsSettings):
    """Generated scenes, drawn when they are asked for; the class of a pixel is colour and texture of the object that it shows."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 512
    """How many."""
    seed: int = pydantic.Field(default=1, ge=0)
    """The world; training scenes of the student are of world 0 unless they are told otherwise, and the probe's should be of another one."""
    image_size: int = pydantic.Field(default=64, ge=16)
    """px of a side."""

    def build(self) -> SceneMaps:
        """Never fails."""
        return SceneMaps(Scenes(self.length, self.seed, self.image_size), self.limit)


MAPS: tuple[type[MapsSettings], ...] = (ImagesLabelsSettings, Ade20kSettings, PascalVocSettings, CityscapesSettings, SceneMapsSettings)
"""Every reader; a new one is one class and one entry here."""

if TYPE_CHECKING:
    AnyMaps = MapsSettings
else:
    AnyMaps = one_of(MAPS)


def raise_all(checks: Iterable[Callable[[], None]], where: str) -> None:
    """Runs all checks and raises one UserError with what they found: at most PROBLEMS_SHOWN problems and how many more there are."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        more = len(problems) - PROBLEMS_SHOWN
        tail = (f"{where}: and {more} more such problems",) if more > 0 else ()
        raise UserError(*problems[:PROBLEMS_SHOWN], *tail)


def existing(path: str, *below: str) -> Path:
    """The folder `path` if it and all folders `below` are there; else UserError that names what is missing."""
    folder = Path(path).expanduser()
    missing = [str(place) for place in (folder, *(folder / name for name in below)) if not place.is_dir()]
    if missing:
        raise UserError(f"{folder}: {', '.join(missing)} missing; give the folder that holds {' and '.join(below)}")
    return folder


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] RGB, upright; raises UserError."""
    try:
        return decode(path.read_bytes())
    except (UnreadableError, OSError) as error:
        raise UserError(f"{path}: the image cannot be read ({error}); replace it or take it out") from None


def read_ids(path: Path) -> np.ndarray:
    """The values of a picture of one channel, integers [H, W]; raises UserError."""
    try:
        with Image.open(path, formats=("PNG", "TIFF", "BMP", "GIF")) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
                raise UserError(f"{path}: a label of mode {image.mode}; labels are ids in one channel (8 or 16 bit grey, or a palette)")
            return np.asarray(image).astype(np.int64)
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: the label cannot be read ({error}); labels are PNG or TIFF files of ids") from None


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) px as shown, from the header; raises UserError."""
    try:
        with Image.open(path) as image:
            turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) >= 5
            return (image.height, image.width) if turned else (image.width, image.height)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: not a picture ({error}); replace it or take it out") from None


def _same_size(pair: Pair, image: tuple[int, ...], label: tuple[int, ...]) -> None:
    if tuple(image) != tuple(label):
        raise UserError(
            f"{pair.key}: the label is {label[0]}x{label[1]} px and the image {image[0]}x{image[1]} px; both must be of one size"
        )


def _same_names(images: Path, labels: Path) -> Iterable[Pair]:
    """An image and the PNG of its name, for all images; a label without an image stands for a missing image."""
    by_name = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in IMAGE_EXTENSIONS}
    lonely = {path.stem for path in labels.glob("*.png")} - by_name.keys()
    for name in sorted(by_name.keys() | lonely):
        yield Pair(name, by_name.get(name, images / f"{name}.jpg"), labels / f"{name}.png")


def _described_classes(folder: Path) -> tuple[list[str], int | None]:
    """Names and ignore index of `classes.json` in the folder or above it: a list of names, or {classes: [...], ignore_index: n}."""
    for file in (folder / "classes.json", folder.parent / "classes.json"):
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: not valid JSON ({error})") from None
        names, ignore = (found.get("classes"), found.get("ignore_index")) if isinstance(found, dict) else (found, None)
        if (
            isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and (ignore is None or (type(ignore) is int and 0 <= ignore <= IGNORE))
        ):
            return names, ignore
        raise UserError(f'{file}: expected a list of names, or {{"classes": [names], "ignore_index": 0 to 255}}')
    raise UserError(f"{folder}: no classes.json here or one folder up; name the classes in `classes`, in the order of their ids")


def _spans(numbers: Sequence[int]) -> str:
    """`0 to 10, 255`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
