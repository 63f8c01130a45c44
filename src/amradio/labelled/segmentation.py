"""Images with one class a pixel: plain folders, ADE20K, PASCAL VOC, Cityscapes and generated scenes, all behind one interface."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pydantic

from ..config import Positive, SceneSize, Seed, Settings, UserPath, one_of
from ..data.names import PassedOver, to_key
from ..data.scenes import CLASS_NAMES, Scenes
from ..data.walk import walk
from ..errors import UserError, shown
from ..files import read_lines
from .annotations import read_classes
from .class_names import ADE20K, CITYSCAPES, PASCAL_VOC
from .classification import spread
from .paired_files import LabelledFile, LabelledFiles, PairedFiles, check_same_size, existing, read_ids, read_image, same_names

IGNORE = 255
"""The class of pixels that do not count, in every reader; so there are at most 255 classes."""


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

    def notes(self) -> tuple[str, ...]:
        """What was passed over when the images were listed, one sentence a place; mostly empty."""
        return ()


class LabelFiles(PairedFiles, LabelledMaps):
    """Files of images and of labels; labels are pictures of one channel, or with a palette, whose values are ids."""

    def __init__(self, where: str, pairs: LabelledFiles, names: Sequence[str], class_of: Mapping[int, int], limit: int | None = None):
        """class_of: {id in the files: class, or IGNORE}; any other id is an error. Raises UserError as `check` does."""
        self.names = tuple(names)
        if not self.names:
            raise UserError(f"{where}: there are no classes; name them in `classes`")
        if len(self.names) > IGNORE:
            raise UserError(f"{where}: {len(self.names)} classes; there can be at most {IGNORE}")
        super().__init__(where, pairs, limit)
        self.table = np.full(256, -1, dtype=np.int16)
        for file_id, wanted in class_of.items():
            self.table[file_id] = wanted
        self.check()

    def describe(self) -> str:
        """`233 labelled images of 11 classes in /path`."""
        return f"{len(self):,} labelled images of {len(self.names)} classes in {self.where}"

    def check_values(self, number: int) -> None:
        """Raises UserError where a label has an unknown id."""
        self.label(number)

    def label(self, number: int) -> np.ndarray:
        """The classes uint8 [H, W] of a label file, IGNORE where a pixel does not count. Raises UserError for an unknown id."""
        pair = self.pairs[number]
        ids = read_ids(pair.label)
        classes = self.table[ids] if ids.min(initial=0) >= 0 and ids.max(initial=0) < 256 else None
        if classes is None or classes.min(initial=0) < 0:
            known = np.flatnonzero(self.table >= 0)
            bad = sorted(set(np.unique(ids).tolist()) - set(known.tolist()))
            raise UserError(
                f"{shown(pair.label)}: ids that are no class: {', '.join(map(str, bad[:8]))}; there are {len(self.names)} classes "
                f"and the ids known are {_spans(known.tolist())}; name all classes, or an ignore_index"
            )
        return classes.astype(np.uint8)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] RGB and its classes uint8 [H, W]. Raises UserError where a file cannot be read or sizes differ."""
        pair = self.pairs[number]
        image, label = read_image(pair.image), self.label(number)
        check_same_size(pair, image.shape[1::-1], label.shape[::-1])
        return image, label


class SceneMaps(LabelledMaps):
    """Generated scenes; class 0 is the background."""

    names = ("background", *CLASS_NAMES)

    def __init__(self, scenes: Scenes, limit: int | None = None):
        self.scenes, self.kept = scenes, spread(len(scenes), limit)

    def __len__(self) -> int:
        return len(self.kept)

    def describe(self) -> str:
        """`512 generated scenes of 64 px, 25 classes (seed 1)`."""
        return f"{len(self):,} generated scenes of {self.scenes.image_size} px, {len(self.names)} classes (seed {self.scenes.seed})"

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The scene uint8 [H, W, 3] RGB and its classes uint8 [H, W]."""
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
    path: UserPath
    """The folder that holds `images` and `labels`."""
    classes: list[str] | None = None
    """Names in the order of the ids from 0; null for those of `classes.json`, here or one folder up."""
    ignore_index: int | None = pydantic.Field(default=None, ge=0, le=255)
    """Id of the pixels that do not count; null for that of `classes.json`, else 255."""

    def build(self) -> LabelFiles:
        """Lists the files; raises UserError where the folders are missing, files lack their partner or sizes differ."""
        folder = existing(self.path, "images", "labels")
        names, ignore = read_classes(folder) if self.classes is None else (self.classes, None)
        ignore = next(value for value in (self.ignore_index, ignore, IGNORE) if value is not None)
        if ignore < len(names):
            raise UserError(f"{shown(folder)}: ignore_index {ignore} is also the id of the class '{names[ignore]}'; take another")
        class_of = {number: number for number in range(len(names))} | {ignore: IGNORE}
        return LabelFiles(shown(folder), same_names(folder / "images", folder / "labels"), names, class_of, self.limit)


class Ade20kSettings(MapsSettings):
    """ADE20K as the scene-parsing benchmark ships it (ADEChallengeData2016)."""

    type: Literal["ade20k"] = "ade20k"
    path: UserPath
    """The folder that holds `images` and `annotations`."""
    split: Literal["training", "validation"] = "validation"
    """Which part."""
    reduce_zero_label: bool = True
    """Whether id 0 is unlabelled and ids 1 to 150 are the classes; else ids 0 to 149 are, and 255 does not count."""

    def build(self) -> LabelFiles:
        """Lists the files of the split; raises UserError where folders or files are missing or damaged."""
        folder = existing(self.path, f"images/{self.split}", f"annotations/{self.split}")
        shift = int(self.reduce_zero_label)
        class_of = {0: IGNORE, IGNORE: IGNORE} | {number + shift: number for number in range(len(ADE20K))}
        pairs = same_names(folder / "images" / self.split, folder / "annotations" / self.split)
        return LabelFiles(f"{shown(folder)} ({self.split})", pairs, ADE20K, class_of, self.limit)


class PascalVocSettings(MapsSettings):
    """PASCAL VOC; ids 0 to 20 with 0 the background, 255 does not count."""

    type: Literal["pascal_voc"] = "pascal_voc"
    path: UserPath
    """The folder VOC2012 (or VOC2007), which holds `JPEGImages`."""
    split: str = "val"
    """A list in ImageSets/Segmentation."""

    def build(self) -> LabelFiles:
        """Lists the files that the split's text file names; raises UserError where one is missing or damaged."""
        folder = existing(self.path, "JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
        listed = folder / "ImageSets" / "Segmentation" / f"{self.split}.txt"
        if not listed.is_file():
            there = ", ".join(sorted(to_key(path.stem) for path in listed.parent.glob("[!.]*.txt")))
            raise UserError(f"{shown(listed)}: there is no such list; there is: {there or 'none'}")
        names = [line.strip() for line in read_lines(listed, file_names=True) if line.strip()]
        images, labels = folder / "JPEGImages", folder / "SegmentationClass"
        files = [LabelledFile(to_key(name), images / f"{name}.jpg", labels / f"{name}.png") for name in dict.fromkeys(names)]
        pairs = LabelledFiles(files, PassedOver())
        class_of = {number: number for number in range(len(PASCAL_VOC))} | {IGNORE: IGNORE}
        return LabelFiles(f"{shown(folder)} ({self.split})", pairs, PASCAL_VOC, class_of, self.limit)


class CityscapesSettings(MapsSettings):
    """Cityscapes (fine) and what follows its layout: label ids become the 19 classes that are evaluated."""

    type: Literal["cityscapes"] = "cityscapes"
    path: UserPath
    """The folder that holds `leftImg8bit` and `gtFine`."""
    split: Literal["train", "val"] = "val"
    """Which part."""

    def build(self) -> LabelFiles:
        """Lists the files of the split; raises UserError where folders or files are missing or damaged."""
        folder = existing(self.path, f"leftImg8bit/{self.split}", f"gtFine/{self.split}")
        images, labels = folder / "leftImg8bit" / self.split, folder / "gtFine" / self.split
        passed = PassedOver()
        by_name = {name.split("_leftImg8bit")[0]: images / name for name in sorted(walk(images, passed)) if "_leftImg8bit." in name}
        files = [LabelledFile(to_key(name), image, labels / f"{name}_gtFine_labelIds.png") for name, image in by_name.items()]
        pairs = LabelledFiles(files, passed)
        class_of = dict.fromkeys(range(256), IGNORE) | {file_id: number for number, file_id in enumerate(CITYSCAPES)}
        return LabelFiles(f"{shown(folder)} ({self.split})", pairs, tuple(CITYSCAPES.values()), class_of, self.limit)


class SceneMapsSettings(MapsSettings):
    """Generated scenes, drawn when they are read; the class of a pixel is colour and texture of the object that it shows."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 512
    """How many."""
    seed: Seed = 1
    """The world; training scenes of the student are of world 0 unless the recipe names another, and the probe's should be of a third."""
    image_size: SceneSize = 64
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


def _spans(numbers: Sequence[int]) -> str:
    """`0 to 10, 255`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
