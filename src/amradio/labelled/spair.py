"""SPair-71k: pairs of photographs of two objects of one category, with the key points that both show."""

from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..config import Positive, Settings, UserPath
from ..data.names import to_key
from ..errors import UserError, brief, shown
from ..files import read_json
from .annotations import Problems, WrongError, field, finite_number, plain_text, raise_all, whole_number, within
from .classification import spread
from .paired_files import check_files, existing, image_size, listed, read_image

SPLITS = {"train": "trn", "val": "val", "test": "test"}


BEYOND = 0.1
"""Of an image's width and height, by which a key point may be off its edge."""
Size = tuple[int, int]


class KeypointPair(NamedTuple):
    """Two photographs, as annotated."""

    key: str
    category: str
    first: Path
    second: Path
    first_points: np.ndarray
    """float64 [N, 2], x and y in px of the first photograph."""
    second_points: np.ndarray
    """The same points on the other object, in px of the second one."""
    reach: float
    """px: the longer side of the box around the second object."""
    sizes: tuple[Size | None, Size | None]
    """(width, height) px of both photographs as annotated; None where it is not stated."""


class SpairPairs:
    """The pairs of a split, by category and name; sent to workers."""

    def __init__(self, root: Path, split: str, pairs_per_category: int | None):
        """pairs_per_category: at most so many, spread evenly; None for all. Raises UserError with all that is missing or wrong."""
        self.root, self.split = root, split
        folder = existing(str(root), "JPEGImages", f"PairAnnotation/{SPLITS[split]}") / "PairAnnotation" / SPLITS[split]
        files = [path for path in listed(folder) if path.suffix == ".json"]
        if not files:
            raise UserError(f"{shown(folder)}: there is no annotation (*.json) in it; give the folder SPair-71k of the archive")
        by_category: dict[str, list[KeypointPair]] = {}

        def add(file: Path) -> None:
            pair = _read_pair(file, root / "JPEGImages")
            by_category.setdefault(pair.category, []).append(pair)

        raise_all((partial(add, file) for file in files), shown(folder))
        chosen = [(pairs, spread(len(pairs), pairs_per_category)) for _, pairs in sorted(by_category.items())]
        self.pairs = [pairs[number] for pairs, numbers in chosen for number in numbers]
        raise_all((partial(_check_images, pair) for pair in self.pairs), shown(root))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def categories(self) -> list[str]:
        """Their names, in order."""
        return sorted({pair.category for pair in self.pairs})

    def describe(self) -> str:
        """`1,800 pairs of 18 categories in /path (test)`."""
        return f"{len(self):,} pairs of {len(self.categories)} categories in {shown(self.root)} ({self.split})"

    def read(self, number: int) -> tuple[KeypointPair, np.ndarray, np.ndarray]:
        """The annotation and both photographs, uint8 [H, W, 3]. Raises UserError where one cannot be read."""
        pair = self.pairs[number]
        return pair, read_image(pair.first), read_image(pair.second)


class SpairSettings(Settings):
    """SPair-71k in the layout of its archive: JPEGImages/CATEGORY and PairAnnotation/SPLIT."""

    type: Literal["spair"] = "spair"
    path: UserPath
    """The folder SPair-71k."""
    split: Literal["train", "val", "test"] = "test"
    """Which pairs."""
    pairs_per_category: Positive | None = 100
    """Pairs of each category at most, spread evenly (EUPE: 100); null for all."""

    def build(self) -> SpairPairs:
        """Reads the annotations; raises UserError where they or photographs are missing or damaged."""
        return SpairPairs(existing(self.path), self.split, self.pairs_per_category)


def _read_pair(file: Path, images: Path) -> KeypointPair:
    """One annotation. Raises UserError with all problems."""
    content = read_json(file)
    problems = Problems(file)

    def parsed(key: str, parse: Any) -> Any:
        try:
            return field(content, key, parse)
        except WrongError as error:
            problems.add("", str(error))
            return None

    category = parsed("category", lambda value: within(plain_text(value), images))
    names = [parsed(key, lambda value: within(plain_text(value), images)) for key in ("src_imname", "trg_imname")]
    first, second = (parsed(key, _points) for key in ("src_kps", "trg_kps"))
    box = parsed("trg_bndbox", _box)
    sizes = [parsed(key, _size) if key in content else None for key in ("src_imsize", "trg_imsize")]
    if first is not None and second is not None and len(first) != len(second):
        problems.add("", f"src_kps has {len(first)} points and trg_kps {len(second)}; expected as many")
    problems.refuse()
    assert first is not None, "refused above"
    assert second is not None, "refused above"
    folder = images / category
    return KeypointPair(to_key(file.stem), category, folder / names[0], folder / names[1], first, second, box, (sizes[0], sizes[1]))


def _points(value: Any) -> np.ndarray:
    if not isinstance(value, list) or not value or not all(isinstance(point, list) and len(point) == 2 for point in value):
        raise WrongError("expected a list of points [x, y], at least one")
    return np.array([[finite_number(number) for number in point] for point in value])


def _size(value: Any) -> Size:
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise WrongError(f"found {brief(value)}; expected the size [width, height, channels]")
    return whole_number(value[0], 1), whole_number(value[1], 1)


def _box(value: Any) -> float:
    """The longer side."""
    if not isinstance(value, list) or len(value) != 4:
        raise WrongError("expected a box [x, y, x, y]")
    left, top, right, bottom = (finite_number(number) for number in value)
    if right <= left or bottom <= top:
        raise WrongError(f"found {value}; expected a box [x, y, x, y] whose second corner is right of and below the first")
    return max(right - left, bottom - top)


def _check_images(pair: KeypointPair) -> None:
    """Raises UserError where a photograph is missing, or is not the one that was annotated, as its size or the points tell."""
    for path, points, stated in ((pair.first, pair.first_points, pair.sizes[0]), (pair.second, pair.second_points, pair.sizes[1])):
        check_files(pair.key, {"photograph": path})
        size = image_size(path)
        if stated is not None and stated != size:
            raise UserError(
                f"{pair.key}: its photograph {shown(path)} is {size[0]}x{size[1]} px and was annotated at {stated[0]}x{stated[1]} px; "
                "take the photographs of the archive as they are"
            )
        share = points / size
        outside = (share < -BEYOND) | (share > 1 + BEYOND)
        if outside.any():
            x, y = points[outside.any(1)][0]
            raise UserError(
                f"{pair.key}: the key point {x:g}, {y:g} is not on its photograph {shown(path)} of {size[0]}x{size[1]} px; "
                "take photographs and annotations of one archive"
            )
    if pair.reach > (1 + 2 * BEYOND) * max(size):
        raise UserError(
            f"{pair.key}: the box around the second object is {pair.reach:g} px long and its photograph {max(size)} px; "
            "take photographs and annotations of one archive"
        )
