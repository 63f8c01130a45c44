"""Images with labels or captions: folders of classes, generated scenes, COCO captions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import Positive, SceneSize, Seed, Settings, UserPath, one_of
from ..data.folder import Folder
from ..data.guard import read_file
from ..data.names import PassedOver, to_key
from ..data.scenes import CLASS_NAMES, Scene, Scenes
from ..errors import UserError, shown
from ..files import user_path
from .annotations import read_captions, read_names
from .base import ImageSet
from .class_folders import list_classes


class LabelledSet(ImageSet):
    """Images of which each has a class."""

    class_ids: Sequence[str]
    """What a class is known by, unique: the name of its folder. Sets are matched by these."""
    classes: Sequence[str]
    """Readable names, for prompts and tables; two classes may have the same."""
    unnamed: Sequence[str] = ()
    """Those of `class_ids` that have no readable name, so that no prompt can be made of them."""
    labels: Sequence[int]
    """One index into `classes` an image, known without reading it."""

    def identity(self) -> Iterator[str]:
        """Keys, labels and names of the classes."""
        yield from self.classes
        for index in range(len(self)):
            yield f"{self.key(index)}={self.labels[index]}"


class CaptionedSet(ImageSet):
    """Images with captions."""

    captions: Sequence[Sequence[str]]
    """At least one an image, known without reading it."""

    def identity(self) -> Iterator[str]:
        """Keys and captions."""
        for index in range(len(self)):
            yield "\0".join((self.key(index), *self.captions[index]))


class ImageSetSettings(Settings):
    """What is common to all sets of images for evaluations."""

    limit: Positive | None = None
    """Images at most, spread evenly over the set; null for all."""


class ClassFolderSettings(ImageSetSettings):
    """One folder a class, with its images in it or below. Readable names are those of a `classnames.json` ({CLASS: readable name}) beside
    the classes or one folder up, ImageNet's for folders that are called after WordNet's synsets (n01440764), else the folders' own."""

    type: Literal["class_folder"] = "class_folder"
    path: UserPath
    """The folder that holds the folders of classes."""

    def build(self) -> "ClassFolder":
        """Lists the files; raises UserError where there is no such folder, or no folder with an image in it."""
        return ClassFolder(user_path(self.path), self.limit)


class ImageFolderSettings(ImageSetSettings):
    """Images of a folder and the folders in it, nothing known of them."""

    type: Literal["folder"] = "folder"
    path: UserPath
    """The folder."""

    def build(self) -> "ImageFolder":
        """Lists the files; raises UserError where there is no such folder or no image in it."""
        return ImageFolder(self.path, self.limit)


class ScenesImagesSettings(ImageSetSettings):
    """Generated scenes with the class of their principal object, captions and masks."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 1024
    """How many."""
    seed: Seed = 1
    """The world; training scenes are of world 0 unless the recipe names another."""
    image_size: SceneSize = 64
    """px of a side."""

    def build(self) -> "SceneSet":
        """Never fails."""
        return SceneSet(Scenes(self.length, self.seed, self.image_size), self.limit)


class CocoCaptionsSettings(ImageSetSettings):
    """Captions in COCO's format and a folder of images."""

    type: Literal["coco_captions"] = "coco_captions"
    annotations: UserPath
    """The JSON file: {images: [{id, file_name}], annotations: [{image_id, caption}]}."""
    images: UserPath
    """The folder of `file_name`."""

    def build(self) -> "CocoCaptions":
        """Reads the JSON; raises UserError where it or the folder is missing, is no captions file, or names an image twice."""
        return CocoCaptions(user_path(self.annotations), user_path(self.images), self.limit)


LABELLED: tuple[type[ImageSetSettings], ...] = (ClassFolderSettings, ScenesImagesSettings)
"""Sets with classes."""
CAPTIONED: tuple[type[ImageSetSettings], ...] = (CocoCaptionsSettings, ScenesImagesSettings)
"""Sets with captions."""
IMAGES: tuple[type[ImageSetSettings], ...] = (ImageFolderSettings, ClassFolderSettings, CocoCaptionsSettings, ScenesImagesSettings)
"""Sets of images, whatever is known of them."""

if TYPE_CHECKING:
    AnyLabelled = ClassFolderSettings | ScenesImagesSettings
    AnyCaptioned = CocoCaptionsSettings | ScenesImagesSettings
    AnyImages = ImageFolderSettings | AnyLabelled | AnyCaptioned
else:
    AnyLabelled, AnyCaptioned, AnyImages = one_of(LABELLED), one_of(CAPTIONED), one_of(IMAGES)


class _Files(ImageSet):
    def __init__(self, root: Path, names: Sequence[str]):
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        return to_key(self.names[index])

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.names[index])


class ClassFolder(_Files, LabelledSet):
    """Images of one folder a class, classes in the order of their folders' names."""

    def __init__(self, path: Path, limit: int | None = None):
        listed = list_classes(path)
        kept = spread(len(listed.names), limit)
        super().__init__(path, [listed.names[index] for index in kept])
        self.labels = [listed.labels[index] for index in kept]
        self.class_ids = [to_key(folder) for folder in listed.folders]
        self.passed = listed.passed
        self.classes, self.unnamed = read_names(path, self.class_ids)

    def describe(self) -> str:
        """`1,743 images of 100 classes in /path`."""
        return f"{len(self):,} images of {len(self.classes)} classes in {shown(self.root)}"

    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of file or folder that was passed over."""
        return self.passed.note(self.root)


class ImageFolder(_Files):
    """All images of a folder and of the folders in it, without labels."""

    def __init__(self, path: str, limit: int | None = None):
        folder = Folder(path)
        super().__init__(folder.path, [folder.name(index) for index in spread(folder.count(), limit)])
        self.passed: PassedOver = folder.passed

    def describe(self) -> str:
        """`174 images in /path`."""
        return f"{len(self):,} images in {shown(self.root)}"

    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of file that was passed over."""
        return self.passed.note(self.root)

    def identity(self) -> Iterator[str]:
        """The keys."""
        yield from map(self.key, range(len(self)))


class SceneSet(LabelledSet, CaptionedSet):
    """Generated scenes; everything about one is at hand in `scene(index)`."""

    def __init__(self, scenes: Scenes, limit: int | None = None):
        self.scenes = scenes
        self.kept = spread(len(scenes), limit)
        self.class_ids = self.classes = CLASS_NAMES
        self._known: dict[int, tuple[int, tuple[str, ...]]] = {}

    def __len__(self) -> int:
        return len(self.kept)

    def describe(self) -> str:
        """`1,024 generated scenes of 64 px (seed 1)`."""
        return f"{len(self):,} generated scenes of {self.scenes.image_size} px (seed {self.scenes.seed})"

    def key(self, index: int) -> str:
        """`scene-<seed>-<index>`."""
        return self.scenes.key(self.kept[index])

    def scene(self, index: int) -> Scene:
        """Everything about an image: picture, label, captions, masks."""
        return self.scenes.scene(self.kept[index])

    def read(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return self.scenes.image(self.kept[index])

    def identity(self) -> Iterator[str]:
        """Number, world and size; the scenes follow from these."""
        yield f"{self.describe()} of {len(self.scenes)}"

    def _words(self, index: int) -> tuple[int, tuple[str, ...]]:
        if index not in self._known:
            self._known[index] = self.scenes.label_and_captions(self.kept[index])
        return self._known[index]

    @property
    def labels(self) -> list[int]:
        """Of the principal objects."""
        return [self._words(index)[0] for index in range(len(self))]

    @property
    def captions(self) -> list[tuple[str, ...]]:
        """Five paraphrases each."""
        return [self._words(index)[1] for index in range(len(self))]


class CocoCaptions(_Files, CaptionedSet):
    """Images with captions from a file in COCO's format; images without a caption are left out."""

    def __init__(self, annotations: Path, images: Path, limit: int | None = None):
        captioned = read_captions(annotations, images)
        kept = spread(len(captioned), limit)
        super().__init__(images, [captioned[index][0] for index in kept])
        self.captions = [captioned[index][1] for index in kept]

    def describe(self) -> str:
        """`363 images with 1,815 captions in /path`."""
        return f"{len(self):,} images with {sum(map(len, self.captions)):,} captions in {shown(self.root)}"


def spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` numbers, evenly spread, in order; all for None."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def labels_in(database: LabelledSet, queries: LabelledSet) -> Tensor:
    """The labels of `queries` as indices into the classes of `database`, int64 [N]: classes are the same where their ids (folders) are.

    Raises UserError where a class is not known there.
    """
    if list(database.class_ids) == list(queries.class_ids):
        return torch.tensor(queries.labels)
    number = {name: index for index, name in enumerate(database.class_ids)}
    unknown = [name for name in queries.class_ids if name not in number]
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise UserError(
            f"{queries.describe()}: the class {', '.join(repr(name) for name in unknown[:10])}{more} is none of the "
            f"{len(database.class_ids)} classes of {database.describe()}; "
            "classes are matched by the names of their folders, so both sets need the same"
        )
    return torch.tensor([number[queries.class_ids[label]] for label in queries.labels])


def check_named(images: LabelledSet) -> None:
    """Raises UserError where classes have no readable name of which prompts could be made."""
    if images.unnamed:
        more = f" and {len(images.unnamed) - 10} more" if len(images.unnamed) > 10 else ""
        raise UserError(
            f"{images.describe()}: there is no readable name for the class {', '.join(images.unnamed[:10])}{more}, which is no synset of "
            'ImageNet-21k; prompts are made of names: put classnames.json ({"FOLDER": "readable name"}) beside the folders'
        )


def share_of_most_frequent(labels: Tensor, count: int = 1) -> float:
    """Per cent that a constant answer of `count` classes scores at best; labels: int64 [N]."""
    frequencies = labels.bincount()
    return 100 * float(frequencies.topk(min(count, len(frequencies))).values.sum()) / len(labels)
