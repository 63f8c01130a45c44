"""Images in files with a label file each: found, paired by name, and checked for missing files and for other sizes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ..data.decode import decode, decode_channels, decode_ids, picture_size
from ..data.guard import UnreadableError, read_file
from ..data.names import EXTENSIONS, PassedOver, extension, is_hidden, to_key
from ..data.walk import walk
from ..errors import UserError, shown
from ..files import unusable, user_path
from .annotations import raise_all
from .classification import spread

LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Of files of ids."""

DEPTH_ADVICE = "depth is a PNG or TIFF of one channel, 16 bits"

VALUES_CHECKED = 200
"""Of how many label files `check` reads the values; those of the others are checked when their turn comes."""

Content = TypeVar("Content")


class LabelledFile(NamedTuple):
    """An image file and its label file."""

    key: str
    image: Path
    label: Path


class LabelledFiles(NamedTuple):
    """Images with labels, and what was passed over where they were looked for."""

    files: Sequence[LabelledFile]
    passed: PassedOver


class PairedFiles:
    """Images of files in a fixed order, each with a label file. A kind of label derives from it; it is sent to workers."""

    def __init__(self, where: str, pairs: LabelledFiles, limit: int | None = None):
        """Args:
            where: the folder, for messages.
            pairs: the files.
            limit: images at most, spread evenly; None for all.

        Raises UserError where there is no image.
        """
        self.where, self.passed = where, pairs.passed
        self.pairs = [pairs.files[number] for number in spread(len(pairs.files), limit)]
        if not self.pairs:
            raise UserError(f"{where}: there is no image in it; looked for {', '.join(EXTENSIONS)}", *self.notes())

    def __len__(self) -> int:
        return len(self.pairs)

    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of file that was passed over."""
        return self.passed.note(self.where)

    def check(self) -> None:
        """Looks for missing files and for labels of another size than their image (all), and for wrong values (some, evenly spread).

        Raises UserError with all problems, at most PROBLEMS_SHOWN.
        """
        step = max(1, len(self.pairs) // VALUES_CHECKED)
        checks: Iterable[Callable[[], None]] = (
            lambda number=number, pair=pair: self._check_pair(number, pair, number % step == 0) for number, pair in enumerate(self.pairs)
        )
        raise_all(checks, self.where)

    def check_values(self, number: int) -> None:
        """Raises UserError where the values of a label cannot be used."""
        raise NotImplementedError

    def _check_pair(self, number: int, pair: LabelledFile, values_as_well: bool) -> None:
        check_files(pair.key, {"image": pair.image, "label": pair.label})
        if values_as_well:
            self.check_values(number)
        self.check_size(pair, image_size(pair.image), label_size(pair.label))

    def check_size(self, pair: LabelledFile, image: tuple[int, int], label: tuple[int, int]) -> None:
        """Raises UserError where (width, height) px of an image and of its label cannot be used together."""
        check_same_size(pair, image, label)


def existing(path: str, *below: str) -> Path:
    """The folder `path` if it and all folders `below` are there; else UserError that names what is missing."""
    folder = user_path(path)
    advice = f"give the folder that holds {' and '.join(below)}" if below else "give a folder that is there"
    if problem := unusable(folder, "folder"):
        raise UserError(f"{shown(folder)}: it {problem}; {advice}")
    problems = [f"{name} {problem}" for name in below if (problem := unusable(folder / name, "folder"))]
    if problems:
        raise UserError(f"{shown(folder)}: {', '.join(problems)}; {advice}")
    return folder


def check_files(key: str, files: Mapping[str, Path]) -> None:
    """Raises UserError, for the first, where one of the files of an image is none. key: of the image. files: by what they are."""
    for what, path in files.items():
        if problem := unusable(path):
            raise UserError(f"{key}: its {what} {shown(path)} {problem}; put the file there, or take the image out")


def listed(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden entries. Raises UserError where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be read ({error.strerror}); make it readable, or give another folder") from None


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] RGB, upright; raises UserError."""
    return _readable(path, "image", "replace it or take it out", lambda: decode(read_file(path)))


def read_ids(path: Path) -> np.ndarray:
    """The values of a picture of one channel, integers [H, W]; raises UserError."""
    return _readable(path, "label", "labels are PNG, TIFF, BMP or GIF files of ids", lambda: decode_ids(read_file(path)))


def read_depth(path: Path) -> np.ndarray:
    """The values of a picture of one channel, integers [H, W] of at least 0, which stand for depth; raises UserError."""
    depth = _readable(path, "depth", DEPTH_ADVICE, lambda: decode_ids(read_file(path)))
    if depth.min() < 0:
        raise UserError(f"{shown(path)}: found a depth of {int(depth.min())}; depth is a number above 0, or 0 where it is not known")
    return depth


def read_colours(path: Path) -> np.ndarray:
    """The values of an RGB picture, uint8 [H, W, 3], which stand for something else than colours; raises UserError."""
    return _readable(path, "label", "labels of this kind are RGB pictures of 8 bits", lambda: decode_channels(read_file(path)))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) px of an image as shown, from the header; raises UserError."""
    return _readable(path, "image", "replace it or take it out", lambda: picture_size(path))


def label_size(path: Path) -> tuple[int, int]:
    """(width, height) px of a label as stored: its values are read without turning it."""
    return _readable(path, "label", "replace it, or take it and its image out", lambda: picture_size(path, upright=False))


def _readable(path: Path, what: str, advice: str, read: Callable[[], Content]) -> Content:
    try:
        return read()
    except (UnreadableError, OSError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise UserError(f"{shown(path)}: the {what} cannot be read ({reason}); {advice}") from None


def check_same_size(pair: LabelledFile, image: tuple[int, ...], label: tuple[int, ...]) -> None:
    """Raises UserError where (width, height) px of an image and of its label differ."""
    if tuple(image) != tuple(label):
        raise UserError(
            f"{shown(pair.label)}: the label is {label[0]}x{label[1]} px and its image {image[0]}x{image[1]} px; "
            "both must be of one size: resize one of them (a label without interpolation)"
        )


def same_names(images: Path, labels: Path) -> LabelledFiles:
    """An image and the label of its path without the extension, for all images; a label without an image counts as a missing image.

    Of two images, or two labels, that differ in their extension alone the first counts, and the other is passed over.
    """
    passed = PassedOver()
    by_name = _by_stem(images, passed, EXTENSIONS)
    labelled = _by_stem(labels, passed, LABEL_EXTENSIONS)
    names = sorted(by_name.keys() | labelled.keys())
    pairs = [
        LabelledFile(to_key(name), by_name.get(name, images / f"{name}.jpg"), labelled.get(name, labels / f"{name}.png")) for name in names
    ]
    return LabelledFiles(pairs, passed)


def _by_stem(folder: Path, passed: PassedOver, endings: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for name in sorted(walk(folder, passed, lambda name: extension(name) in endings)):
        stem = name[: -len(extension(name))]
        if stem in files:
            passed.add("a file whose name differs only in its extension", name)
        else:
            files[stem] = folder / name
    return files
