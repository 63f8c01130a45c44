"""NAVI: photographs of scanned objects, with depth, normals and points in space of the object that is seen, and the pose of the camera."""

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from ..data.names import to_key
from ..errors import UserError, brief, shown
from ..files import LARGEST_ANNOTATIONS, read_json
from .annotations import Problems, WrongError, field, finite_number, plain_text, raise_all, within
from .classification import spread
from .paired_files import LabelledFile, check_files, check_same_size, image_size, label_size, listed, read_depth, read_image

SIDE = 512
"""px of the square that is read, as in Probe3D."""
DISPARITY = 655_350.0
"""Depth in mm is this over the value of the PNG (65535 times the factor 10 of the data set); 0 is no object."""
MM = 0.001
MOST_PIXELS, FARTHEST = 1e6, 1e9
"""Bounds of sizes and focal lengths in px, and of places in mm: beyond them the numbers are no photograph's."""
NaviSplit = Literal["train", "test"]


class NaviImage(NamedTuple):
    """One photograph."""

    files: LabelledFile
    """Photograph and depth; the key is OBJECT/SCENE/FILE."""
    scene: str
    """OBJECT/SCENE: poses of one scene are of one object."""
    focal_length: float
    """px of the original photograph."""
    size: tuple[int, int]
    """(height, width) px of the original photograph."""
    pose: np.ndarray
    """float64 [4, 4]: from the object to the camera (x right, y down, z forward), m."""


class NaviView(NamedTuple):
    """The square around the object, S x S px."""

    image: np.ndarray
    """uint8 [S, S, 3] RGB."""
    points: np.ndarray
    """float32 [S, S, 3]: where the pixel's surface is in the camera's space, m; 0 where there is no object."""
    normals: np.ndarray
    """float32 [S, S, 3], of length 1, towards the camera; 0 at the outline and where there is no object."""
    focal_length: float
    """px of this square: lengths in it are measured at S px a side, as in Probe3D."""

    @property
    def depth(self) -> np.ndarray:
        """float32 [S, S] in m, 0 where there is no object."""
        return self.points[..., 2]


class Navi:
    """Photographs in a fixed order; it is sent to workers."""

    def __init__(self, root: Path, split: NaviSplit, every: int = 1, limit: int | None = None):
        """Args:
            root: the folder that holds one folder an object.
            split: train for the multi-view scenes, test for the wild sets; objects that lack one of them are passed over.
            every: every how many-th photograph is taken.
            limit: photographs at most.

        Raises UserError with all that is missing or damaged.
        """
        self.root, self.split = root, split
        self.all_images, self.passed = _list(root, split)
        kept = self.all_images[::every]
        self.images = [kept[number] for number in spread(len(kept), limit)]
        raise_all([partial(_check_files, image) for image in self.images], shown(root))

    def __len__(self) -> int:
        return len(self.images)

    def describe(self, kind: str) -> str:
        """`575 photographs of 35 objects with depth in /path (test)`."""
        objects = {image.scene.split("/")[0] for image in self.images}
        return f"{len(self):,} photographs of {len(objects)} objects with {kind} in {shown(self.root)} ({self.split})"

    def notes(self) -> tuple[str, ...]:
        """Which objects were passed over."""
        named = ", ".join(self.passed[:5]) + (f" and {len(self.passed) - 5} more" if len(self.passed) > 5 else "")
        return (f"{shown(self.root)}: passed over, as they lack a multi-view scene or a wild set: {named}",) if self.passed else ()

    def view(self, number: int) -> NaviView:
        """The square around the object of a photograph. Raises UserError where a file cannot be read."""
        return read_view(self.images[number])


def read_view(entry: NaviImage) -> NaviView:
    """The square around the object. Raises UserError where a file cannot be read, or depth and photograph differ in size."""
    image, disparity = read_image(entry.files.image), read_depth(entry.files.label)
    check_same_size(entry.files, image.shape[1::-1], disparity.shape[::-1])
    height, width = disparity.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = slice(top, top + short), slice(left, left + short)
    disparity = _nearest(disparity[square])
    depth = np.divide(DISPARITY * MM, disparity, out=np.zeros(disparity.shape), where=disparity > 0)
    focal_length = entry.focal_length * SIDE / min(entry.size)
    at = (np.arange(SIDE) + 0.5 - SIDE / 2) / focal_length
    points = np.stack((depth * at[None, :], depth * at[:, None], depth), -1)
    around = _box(depth > 0)
    small = Image.fromarray(image[square]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    cut = small.crop((around[1].start, around[0].start, around[1].stop, around[0].stop)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    normals = normals_of(points)
    enlarged = SIDE / (around[0].stop - around[0].start)
    return NaviView(
        np.asarray(cut), _nearest(points[around]).astype(np.float32), _nearest(normals[around]).astype(np.float32), focal_length * enlarged
    )


def normals_of(points: np.ndarray) -> np.ndarray:
    """Points in space [H, W, 3] of the pixels -> normals towards the camera [H, W, 3] of length 1.

    The mean of the cross products of neighbouring differences, of which there are four; 0 where the pixel or a neighbour is not known.
    """
    normals = np.zeros_like(points)
    centre = points[1:-1, 1:-1]
    around = [points[1:-1, :-2] - centre, points[:-2, 1:-1] - centre, points[1:-1, 2:] - centre, points[2:, 1:-1] - centre]
    total = np.sum([np.cross(around[(side + 1) % 4], around[side]) for side in range(4)], axis=0)
    known = points[..., 2] > 0
    inner = known[1:-1, 1:-1] & known[1:-1, :-2] & known[:-2, 1:-1] & known[1:-1, 2:] & known[2:, 1:-1]
    length = np.linalg.norm(total, axis=-1)
    inner &= length > 0
    normals[1:-1, 1:-1][inner] = total[inner] / length[inner][:, None]
    return normals


def _nearest(values: np.ndarray) -> np.ndarray:
    """[H, W, ...] -> [SIDE, SIDE, ...], the nearest pixel."""
    rows, columns = (((np.arange(SIDE) + 0.5) * length / SIDE).astype(int) for length in values.shape[:2])
    return values[rows[:, None], columns[None, :]]


def _box(known: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the least square around what is true in [S, S], moved into the picture; all where nothing is."""
    if not known.any():
        return slice(0, known.shape[0]), slice(0, known.shape[1])
    ends = [(np.flatnonzero(known.any(axis))[[0, -1]] + (0, 1)) for axis in (1, 0)]
    side = max(int(stop - start) for start, stop in ends)
    starts = [
        min(max(int(start) - (side - int(stop - start)) // 2, 0), size - side)
        for (start, stop), size in zip(ends, known.shape, strict=True)
    ]
    rows, columns = (slice(start, start + side) for start in starts)
    return rows, columns


def _check_files(entry: NaviImage) -> None:
    check_files(entry.files.key, {"photograph": entry.files.image, "depth": entry.files.label})
    check_same_size(entry.files, image_size(entry.files.image), label_size(entry.files.label))


def _list(root: Path, split: NaviSplit) -> tuple[list[NaviImage], list[str]]:
    """All photographs of a split, by object, scene and file, and the objects that were passed over. Raises UserError."""
    images: list[NaviImage] = []
    passed: list[str] = []
    problems: list[str] = []
    for folder in (path for path in listed(root) if os.path.isdir(path)):
        try:
            scenes = [path for path in listed(folder) if os.path.lexists(path / "annotations.json")]
        except UserError as error:
            problems += error.problems
            continue
        views, wild = [path for path in scenes if path.name.startswith("multiview")], [path for path in scenes if path.name == "wild_set"]
        if scenes and not (views and wild):
            passed.append(to_key(folder.name))
            continue
        for scene in views if split == "train" else wild:
            try:
                images += _read_scene(scene, f"{folder.name}/{scene.name}")
            except UserError as error:
                problems += error.problems
    if problems:
        raise UserError(*problems)
    if not images:
        raise UserError(f"{shown(root)}: no OBJECT/wild_set and OBJECT/multiview-* in it; give the folder that NAVI is unpacked into")
    return images, passed


def _read_scene(folder: Path, scene: str) -> list[NaviImage]:
    """The photographs of one annotations.json in the order of their names. Raises UserError with all problems."""
    file = folder / "annotations.json"
    problems = Problems(file)
    images: dict[str, NaviImage] = {}
    for number, entry in enumerate(read_json(file, list, LARGEST_ANNOTATIONS)):
        try:
            if not isinstance(entry, dict):
                raise WrongError(f"{brief(entry)}; expected an object")
            name = field(entry, "filename", lambda value: within(plain_text(value), folder / "images"))
            if name in images:
                raise WrongError(f"an entry before it has the same filename {brief(name)}")
            camera = field(entry, "camera", _mapping)
            files = LabelledFile(to_key(f"{scene}/{name}"), folder / "images" / name, folder / "depth" / f"{Path(name).stem}.png")
            height, width = field(entry, "image_size", lambda value: _numbers(value, 2, 1, MOST_PIXELS))
            focal_length = field(camera, "focal_length", lambda value: _numbers([value], 1, 1, MOST_PIXELS)[0])
            pose = pose_of(field(camera, "q", _quaternion), field(camera, "t", lambda value: _numbers(value, 3, -FARTHEST, FARTHEST)))
            images[name] = NaviImage(files, to_key(scene), focal_length, (round(height), round(width)), pose)
        except WrongError as error:
            problems.add(f"entry {number}", str(error))
    problems.refuse()
    if not images:
        raise UserError(f"{shown(file)}: there is no photograph in it; copy or download it again")
    return [images[name] for name in sorted(images)]


def pose_of(quaternion: list[float], translation: list[float]) -> np.ndarray:
    """float64 [4, 4] from a quaternion w, x, y, z of any length and a translation in mm: rotates, then moves by m."""
    w, x, y, z = np.array(quaternion) / math.hypot(*quaternion)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = np.array(translation) * MM
    return pose


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise WrongError(f"found {brief(value)}; expected an object")
    return value


def _numbers(value: Any, count: int, least: float, most: float) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        raise WrongError(f"found {brief(value)}; expected {count} numbers")
    numbers = [finite_number(item) for item in value]
    wrong = next((number for number in numbers if not least <= number <= most), None)
    if wrong is not None:
        raise WrongError(f"found {brief(wrong)}; expected numbers from {least:,.0f} to {most:,.0f}")
    return numbers


def _quaternion(value: Any) -> list[float]:
    numbers = _numbers(value, 4, -FARTHEST, FARTHEST)
    if math.hypot(*numbers) < 1e-6:
        raise WrongError(f"found {brief(value)}; expected a rotation, a quaternion that is not 0")
    return numbers
