"""Images with labels or captions: folders of classes, generated scenes, COCO captions."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from ..config import Settings, one_of
from ..data.folder import EXTENSIONS, Folder
from ..data.scenes import CLASS_NAMES, Scene, Scenes
from ..errors import UserError
from .base import Positive
from .images import ImageSet


class LabelledSet(ImageSet):
    """Images of which each has a class."""

    classes: Sequence[str]
    """Readable names, for prompts."""
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
    """One folder a class: CLASS/*.jpg. A `classnames.json` ({CLASS: readable name}) beside the classes or one folder up is used."""

    type: Literal["class_folder"] = "class_folder"
    path: str
    """The folder that holds the folders of classes."""

    def build(self) -> "ClassFolder":
        """Lists the files; raises UserError where there is no such folder, no class, or a class without an image."""
        return ClassFolder(Path(self.path).expanduser(), self.limit)


class ImageFolderSettings(ImageSetSettings):
    """Images of a folder and the folders in it, nothing known of them."""

    type: Literal["folder"] = "folder"
    path: str
    """The folder."""

    def build(self) -> "ImageFolder":
        """Lists the files; raises UserError where there is no such folder or no image in it."""
        return ImageFolder(self.path, self.limit)


class ScenesImagesSettings(ImageSetSettings):
    """Generated scenes with the class of their principal object, captions and masks."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 1024
    """How many."""
    seed: int = pydantic.Field(1, ge=0)
    """The world; training scenes are of world 0 unless they are told otherwise."""
    image_size: int = pydantic.Field(64, ge=16)
    """px of a side."""

    def build(self) -> "SceneSet":
        """Never fails."""
        return SceneSet(Scenes(self.length, self.seed, self.image_size), self.limit)


class CocoCaptionsSettings(ImageSetSettings):
    """Captions in COCO's format and a folder of images."""

    type: Literal["coco_captions"] = "coco_captions"
    annotations: str
    """The JSON file: {images: [{id, file_name}], annotations: [{image_id, caption}]}."""
    images: str
    """The folder of `file_name`."""

    def build(self) -> "CocoCaptions":
        """Reads the JSON; raises UserError where it or the folder is missing, is no captions file, or names an image twice."""
        return CocoCaptions(Path(self.annotations).expanduser(), Path(self.images).expanduser(), self.limit)


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
        return self.names[index]

    def read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()


class ClassFolder(_Files, LabelledSet):
    """See `ClassFolderSettings`; classes in the order of their folders' names."""

    def __init__(self, path: Path, limit: int | None = None):
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder; give a folder with one folder a class")
        folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise UserError(f"{path}: there is no folder in it; one folder a class is expected, CLASS/*.jpg")
        names, labels = [], []
        for label, folder in enumerate(folders):
            files = sorted(f"{folder}/{file.name}" for file in (path / folder).iterdir() if file.name.lower().endswith(EXTENSIONS))
            if not files:
                raise UserError(f"{path}: the class '{folder}' is empty; put images into it, or take the folder away")
            names += files
            labels += [label] * len(files)
        self.folders = folders
        kept = spread(len(names), limit)
        super().__init__(path, [names[index] for index in kept])
        self.labels = [labels[index] for index in kept]
        self.classes = _readable_names(path, folders)

    def describe(self) -> str:
        """`1,743 images of 100 classes in /path`."""
        return f"{len(self):,} images of {len(self.classes)} classes in {self.root}"


class ImageFolder(_Files):
    """See `ImageFolderSettings`."""

    def __init__(self, path: str, limit: int | None = None):
        folder = Folder(path)
        super().__init__(folder.path, [folder.key(index) for index in spread(folder.count(), limit)])

    def describe(self) -> str:
        """`174 images in /path`."""
        return f"{len(self):,} images in {self.root}"

    def identity(self) -> Iterator[str]:
        """The names."""
        yield from self.names


def _readable_names(path: Path, folders: Sequence[str]) -> list[str]:
    file = next((place / "classnames.json" for place in (path, path.parent) if (place / "classnames.json").is_file()), None)
    if file is None:
        return [folder.replace("_", " ") for folder in folders]
    names = read_json(file)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{file}: expected a mapping of folder to readable name")
    missing = [folder for folder in folders if folder not in names]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise UserError(f"{file}: there is no name for the class {', '.join(repr(name) for name in missing[:10])}{more} of {path}")
    return [names[folder] for folder in folders]


class SceneSet(LabelledSet, CaptionedSet):
    """Generated scenes; everything about one is at hand in `scene(index)`."""

    def __init__(self, scenes: Scenes, limit: int | None = None):
        self.scenes = scenes
        self.kept = spread(len(scenes), limit)
        self.classes = CLASS_NAMES
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
        return self.scene(index).image

    def identity(self) -> Iterator[str]:
        """Number, world and size; the scenes follow from these."""
        yield f"{self.describe()} of {len(self.scenes)}"

    def _words(self, index: int) -> tuple[int, tuple[str, ...]]:
        if index not in self._known:  # drawn at the least size: labels and captions do not depend on it
            scene = Scenes(self.scenes.length, self.scenes.seed, 16).scene(self.kept[index])
            self._known[index] = scene.label, scene.captions
        return self._known[index]

    @property
    def labels(self) -> list[int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the principal objects."""
        return [self._words(index)[0] for index in range(len(self))]

    @property
    def captions(self) -> list[tuple[str, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Five paraphrases each."""
        return [self._words(index)[1] for index in range(len(self))]


class CocoCaptions(_Files, CaptionedSet):
    """See `CocoCaptionsSettings`; images without a caption are left out."""

    def __init__(self, annotations: Path, images: Path, limit: int | None = None):
        data = read_json(annotations)
        if not images.is_dir():
            raise UserError(f"{images}: there is no such folder; give the folder of the images")
        try:
            files = {entry["id"]: entry["file_name"] for entry in data["images"]}
            captions: dict[int, list[str]] = {}
            for entry in data["annotations"]:
                captions.setdefault(entry["image_id"], []).append(entry["caption"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{annotations}: not COCO captions, it lacks {error}; expected images and annotations with captions") from None
        if len(files) < len(data["images"]):
            raise UserError(f"{annotations}: an image id stands there twice")
        strangers = [image for image in captions if image not in files]
        if strangers:
            raise UserError(f"{annotations}: {len(strangers)} captions belong to no image, first image_id {strangers[0]}")
        found = [(name, captions[image]) for image, name in files.items() if image in captions]
        if not found:
            raise UserError(f"{annotations}: there is no caption in it")
        kept = spread(len(found), limit)
        super().__init__(images, [found[index][0] for index in kept])
        self.captions = [found[index][1] for index in kept]

    def describe(self) -> str:
        """`363 images with 1,815 captions in /path`."""
        return f"{len(self):,} images with {sum(map(len, self.captions)):,} captions in {self.root}"


def spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` numbers, evenly spread, in order; all for None."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def read_json(file: Path) -> Any:
    """What a JSON file holds; raises UserError where it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{file}: there is no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None


def labels_in(known: LabelledSet, asked: LabelledSet) -> Tensor:
    """The labels of `asked` as indices into the classes of `known`, int64 [N]; UserError where a class is not known there."""
    if list(known.classes) == list(asked.classes):
        return torch.tensor(asked.labels)
    strangers = [name for name in asked.classes if name not in known.classes]
    if strangers:
        raise UserError(
            f"{asked.describe()}: the class {', '.join(repr(name) for name in strangers[:10])} is none of the {len(known.classes)} classes "
            f"of {known.describe()}; both sets need the same classes"
        )
    return torch.tensor([known.classes.index(asked.classes[label]) for label in asked.labels])


def share_of_most_frequent(labels: Tensor) -> float:
    """Per cent that a constant answer scores at best; labels: int64 [N]."""
    return 100 * float(labels.bincount().max()) / len(labels)
