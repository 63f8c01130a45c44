"""Annotation files (COCO's captions and instances, names of classes): every value is checked once and becomes a finite, typed one."""

import math
import os.path
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.guard import MAX_PIXELS
from ..errors import UserError, brief, shown
from ..files import LARGEST_ANNOTATIONS, LONGEST_NAME, LONGEST_PATH, read_json
from .imagenet import is_synset, synset_names

PROBLEMS_SHOWN = 20

Id = int | str


class WrongError(Exception):
    """A value that cannot be used; the message is what was found and what is expected."""


class Problems:
    """What is wrong with one file, the first PROBLEMS_SHOWN in words."""

    def __init__(self, file: Path):
        self.file = file
        self.texts: list[str] = []
        self.count = 0
        self.refused: set[Id] = set()
        """Ids of images that were refused, so that their annotations need no problems of their own."""

    def add(self, where: str, text: str) -> None:
        """where: `annotations[3] (id 17)`."""
        self.count += 1
        if self.count <= PROBLEMS_SHOWN:
            self.texts.append(f"{shown(self.file)}: {where}: {text}" if where else f"{shown(self.file)}: {text}")

    def refuse(self) -> None:
        """Raises UserError where there is one."""
        if self.texts:
            more = self.count - len(self.texts)
            raise UserError(*self.texts, *([f"{shown(self.file)}: and {more:,} more such problems"] if more else []))


class Listed(NamedTuple):
    """An image that an annotation file lists."""

    name: str
    """Path relative to the folder of images, within it."""
    height: int
    """px; 0 where the file need not state it and does not."""
    width: int


def raise_all(checks: Iterable[Callable[[], None]], where: str) -> None:
    """Runs all checks and raises one UserError with what they found: at most PROBLEMS_SHOWN problems and how many more there are."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.extend(error.problems)
    problems = list(dict.fromkeys(problems))  # a file may belong to several entries
    if problems:
        more = len(problems) - PROBLEMS_SHOWN
        tail = (f"{where}: and {more} more such problems",) if more > 0 else ()
        raise UserError(*problems[:PROBLEMS_SHOWN], *tail)


def whole_number(value: Any, least: int = 0) -> int:
    """An integer, or a float that is one. Raises WrongError."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise WrongError(f"found {brief(value)}; expected a whole number from {least} on")
    return value


def finite_number(value: Any) -> float:
    """A finite float. Raises WrongError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise WrongError(f"found {brief(value)}; expected a finite number")
    return float(value)


def identifier(value: Any) -> Id:
    """An id: a whole number, or a text. Raises WrongError."""
    if isinstance(value, str) and value:
        return value
    try:
        return whole_number(value, least=-(2**62))
    except WrongError:
        raise WrongError(f"found {brief(value)}; expected a whole number or a text") from None


def plain_text(value: Any) -> str:
    """A text with something in it that can be written as UTF-8. Raises WrongError."""
    if not isinstance(value, str) or not value.strip():
        raise WrongError(f"found {brief(value)}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WrongError(f"found {brief(value)}; a lone surrogate is no text") from None
    return value


def field(entry: Mapping[str, Any], key: str, parse: Callable[[Any], Any]) -> Any:
    """The value of a key that must be there. Raises WrongError, which names the key."""
    if key not in entry:
        raise WrongError(f"it lacks '{key}'")
    try:
        return parse(entry[key])
    except WrongError as error:
        raise WrongError(f"{key}: {error}") from None


def optional(entry: Mapping[str, Any], key: str, parse: Callable[[Any], Any]) -> Any:
    """The same of a key that may be missing or null: None."""
    return None if entry.get(key) is None else field(entry, key, parse)


def entries(data: Mapping[str, Any], key: str, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, object) of each entry of a list; what is no object goes into `problems`. where: `annotations[3] (id 17)`."""
    rows = data.get(key)
    if not isinstance(rows, list):
        problems.add(
            "", f"{key} is {brief(rows)}; expected a list" if key in data else f"it lacks '{key}'; expected images and annotations"
        )
        return
    for index, entry in enumerate(rows):
        if isinstance(entry, dict):
            yield f"{key}[{index}]" + (f" (id {brief(entry['id'])})" if "id" in entry else ""), entry
        else:
            problems.add(f"{key}[{index}]", f"{brief(entry)}; expected an object")


def read_images(data: Mapping[str, Any], folder: Path, problems: Problems, with_size: bool) -> dict[Id, Listed]:
    """The images of a file by id. with_size: height and width must be stated."""
    images: dict[Id, Listed] = {}
    names: dict[str, Id] = {}
    size = field if with_size else optional
    for where, entry in entries(data, "images", problems):
        image: Id | None = None
        try:
            image = field(entry, "id", identifier)
            assert image is not None
            name = field(entry, "file_name", lambda value: within(value, folder))
            height, width = (size(entry, key, lambda value: whole_number(value, 1)) or 0 for key in ("height", "width"))
            if height * width > MAX_PIXELS:
                raise WrongError(f"{width}x{height} px are more than the limit of {MAX_PIXELS:,} pixels")
            if image in images:
                raise WrongError("an image before it has the same id")
            if name in names:
                raise WrongError(f"the image {brief(names[name])} has the same file_name {brief(name)}")
        except WrongError as error:
            problems.add(where, str(error))
            problems.refused.update(() if image is None else (image,))
            continue
        images[image] = Listed(name, height, width)
        names[name] = image
    return images


def within(value: Any, folder: Path) -> str:
    """A file's path relative to `folder`, and in it. Raises WrongError."""
    return below(plain_text(value), folder)


def below(name: str, folder: Path) -> str:
    """The same of a name that may have bytes which are not UTF-8, as `os.fsdecode` reads them."""
    path = os.path.normpath(name)
    if os.path.isabs(path):
        inside = [os.path.relpath(path, resolve(folder)) for resolve in (os.path.abspath, os.path.realpath)]
        path = next((candidate for candidate in inside if not candidate.startswith("..")), path)
    if "\0" in path or path in (".", "..") or path.startswith(("../", "/")):
        raise WrongError(f"found {brief(name)}; expected the path of a file below {shown(folder)}")
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
        raise WrongError(f"found {brief(name)}; a name in it has {longest:,} bytes, and file systems take {LONGEST_NAME}")
    return path


def image_of(entry: Mapping[str, Any], images: Mapping[Id, Listed], problems: Problems) -> Id | None:
    """The `image_id` of an annotation; None where that image is among the problems. Raises WrongError where no image has it."""
    image = field(entry, "image_id", identifier)
    if image in images:
        return image
    if image in problems.refused:
        return None
    raise WrongError(f"its image_id {brief(image)} belongs to no image")


def check_unique(entry: Mapping[str, Any], seen: set[Id]) -> None:
    """Raises WrongError where an annotation before it has the same id."""
    entry_id = optional(entry, "id", identifier)
    if entry_id in seen:
        raise WrongError("an annotation before it has the same id")
    if entry_id is not None:
        seen.add(entry_id)


def read_captions(file: Path, folder: Path) -> list[tuple[str, list[str]]]:
    """(path, captions) of the images that have captions, in the order of the file. Raises UserError with all problems."""
    data = read_json(file, dict, LARGEST_ANNOTATIONS)
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}: there is no such folder; give the folder of the images")
    problems = Problems(file)
    images = read_images(data, folder, problems, with_size=False)
    captions: dict[Id, list[str]] = {}
    seen: set[Id] = set()
    for where, entry in entries(data, "annotations", problems):
        try:
            check_unique(entry, seen)
            image = image_of(entry, images, problems)
            if image is not None:
                captions.setdefault(image, []).append(field(entry, "caption", plain_text))
        except WrongError as error:
            problems.add(where, str(error))
    problems.refuse()
    captioned = [(listed.name, captions[image]) for image, listed in images.items() if image in captions]
    if not captioned:
        raise UserError(f"{shown(file)}: there is no caption in it")
    return captioned


def read_names(path: Path, folders: Sequence[str]) -> tuple[list[str], list[str]]:
    """(readable names, folders without one) of the folders of classes in `path`: see `labelled.ClassFolderSettings`.

    A folder without one keeps its own name. Raises UserError where `classnames.json` is damaged or lacks a class.
    """
    file = next((parent / "classnames.json" for parent in (path, path.parent) if (parent / "classnames.json").is_file()), None)
    named: dict[str, str] = {}
    if file is not None:
        problems = Problems(file)
        for folder, name in read_json(file).items():
            try:
                named[folder] = plain_text(name)
            except WrongError as error:
                problems.add(f"the class {brief(folder)}", str(error))
        problems.refuse()
    synsets = [folder for folder in folders if folder not in named and is_synset(folder)]
    named |= synset_names(synsets)
    missing = [folder for folder in folders if folder not in named and not is_synset(folder)]
    if file is not None and missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        names = ", ".join(repr(name) for name in missing[:10])
        raise UserError(f"{shown(file)}: there is no name for the class {names}{more} of {shown(path)}")
    return [named.get(folder, folder.replace("_", " ")) for folder in folders], [name for name in synsets if name not in named]


def read_classes(folder: Path) -> tuple[list[str], int | None]:
    """Names and ignore index of `classes.json` in the folder or above it: a list of names, or {classes: [...], ignore_index: n}."""
    file = next((parent / "classes.json" for parent in (folder, folder.parent) if (parent / "classes.json").is_file()), None)
    if file is None:
        raise UserError(f"{shown(folder)}: no classes.json here or one folder up; name the classes in `classes`, in the order of their ids")
    content = read_json(file, object)
    names, ignore = (content.get("classes"), content.get("ignore_index")) if isinstance(content, dict) else (content, None)
    expected = 'a list of names, or {"classes": [names], "ignore_index": 0 to 255}'
    if not isinstance(names, list):
        raise UserError(f"{shown(file)}: found {brief(content)}; expected {expected}")
    problems = Problems(file)
    texts: list[str] = []
    for number, name in enumerate(names):
        try:
            texts.append(plain_text(name))
        except WrongError as error:
            problems.add(f"the class {number}", str(error))
    if ignore is not None and not (type(ignore) is int and 0 <= ignore <= 255):
        problems.add("", f"ignore_index is {brief(ignore)}; expected {expected}")
    problems.refuse()
    return texts, ignore
