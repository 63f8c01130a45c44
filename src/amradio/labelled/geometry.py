"""Images with depth or surface normals: plain folders, NYUv2, NAVI and generated scenes, all behind one interface."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..config import Positive, SceneSize, Seed, Settings, UserPath, one_of
from ..data.names import PassedOver, to_key
from ..data.scene_geometry import BACKGROUND, scene_depth, scene_normals
from ..data.scenes import Scenes
from ..errors import UserError, brief, shown
from ..files import read_json, read_lines
from .annotations import Problems, WrongError, below, finite_number
from .classification import spread
from .navi import SIDE, Navi, NaviSplit
from .paired_files import (
    LabelledFile,
    LabelledFiles,
    PairedFiles,
    check_same_size,
    existing,
    read_colours,
    read_depth,
    read_image,
    same_names,
)

MAX_DEPTH = 10.0
"""m, where depth.json does not say: rooms (NYUv2)."""
DEPTH_KEYS = ("scale", "max_depth")
NORMAL_LENGTHS = (0.5, 1.5)
"""Between these a stored vector is a normal: pictures that were made smaller have shorter ones, black and white are of length 1.73."""
MOST_METRES = 1e6
"""Bound of scale and max_depth."""
EIGEN_CROP, NYU_SIZE = (slice(45, 471), slice(41, 601)), (480, 640)
"""Rows and columns that count in the published numbers on NYUv2, and the size that they are of."""


class GeometryMaps:
    """Images in a fixed order, each with a number or a vector a pixel; 0 where it is not known."""

    max_depth: float = MAX_DEPTH
    """m; depth beyond it does not count."""

    def __len__(self) -> int:
        raise NotImplementedError

    def describe(self) -> str:
        """`654 images with depth in /path`."""
        raise NotImplementedError

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] RGB, and depth float32 [H, W] in m or normals float32 [H, W, 3] of length 1. Raises UserError."""
        raise NotImplementedError

    def notes(self) -> tuple[str, ...]:
        """What was passed over when the images were listed, one sentence a place; mostly empty."""
        return ()


class DepthFiles(PairedFiles, GeometryMaps):
    """Files of images and of depth: pictures of one channel, 16 bits, whose values times `scale` are m."""

    def __init__(self, where: str, pairs: LabelledFiles, scale: float, max_depth: float, limit: int | None = None):
        """scale: m of one unit. Raises UserError where files are missing, cannot be read or differ in size."""
        super().__init__(where, pairs, limit)
        self.scale, self.max_depth = scale, max_depth
        self.check()

    def describe(self) -> str:
        """`654 images with depth in /path`."""
        return f"{len(self):,} images with depth in {self.where}"

    def check_values(self, number: int) -> None:
        """Raises UserError where a depth map cannot be read."""
        read_depth(self.pairs[number].label)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] RGB and its depth float32 [H, W] in m, 0 where it is not known or beyond `max_depth`."""
        pair = self.pairs[number]
        image, depth = read_image(pair.image), read_depth(pair.label).astype(np.float32) * np.float32(self.scale)
        check_same_size(pair, image.shape[1::-1], depth.shape[::-1])
        return image, np.where(depth <= self.max_depth, depth, 0)


class NyuFiles(DepthFiles):
    """DepthFiles of which only Eigen's crop counts."""

    def check_size(self, pair: LabelledFile, image: tuple[int, int], label: tuple[int, int]) -> None:
        """Raises UserError where they differ, or are not of the size that the crop is for."""
        super().check_size(pair, image, label)
        if label != NYU_SIZE[::-1]:
            size, wanted = (f"{width}x{height} px" for width, height in (label, NYU_SIZE[::-1]))
            raise UserError(f"{shown(pair.label)}: {size}; Eigen's crop is for {wanted}; set crop: false")

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The whole image and its depth, which is unknown outside of the crop."""
        image, depth = super().read(number)
        cropped = np.zeros_like(depth)
        cropped[EIGEN_CROP] = depth[EIGEN_CROP]
        return image, cropped


class NormalFiles(PairedFiles, GeometryMaps):
    """Files of images and of normals: RGB pictures, n = rgb / 127.5 - 1; not known where its length is far from 1 (grey, black, white)."""

    def __init__(self, where: str, pairs: LabelledFiles, limit: int | None = None):
        super().__init__(where, pairs, limit)
        self.check()

    def describe(self) -> str:
        """`654 images with normals in /path`."""
        return f"{len(self):,} images with normals in {self.where}"

    def check_values(self, number: int) -> None:
        """Raises UserError where a picture of normals cannot be read."""
        read_colours(self.pairs[number].label)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] RGB and its normals float32 [H, W, 3] of length 1, 0 where they are not known."""
        pair = self.pairs[number]
        image, stored = read_image(pair.image), read_colours(pair.label)
        check_same_size(pair, image.shape[1::-1], stored.shape[1::-1])
        normals = stored.astype(np.float32) / np.float32(127.5) - 1
        length = np.linalg.norm(normals, axis=-1, keepdims=True)
        is_known = (length > NORMAL_LENGTHS[0]) & (length < NORMAL_LENGTHS[1])
        return image, np.where(is_known, normals / np.maximum(length, NORMAL_LENGTHS[0]), 0)


class SceneGeometry(GeometryMaps):
    """Generated scenes with depth (the order in which objects are painted) or normals (their bevels)."""

    max_depth = BACKGROUND + 1.0

    def __init__(self, scenes: Scenes, kind: Literal["depth", "normals"], limit: int | None = None):
        self.scenes, self.kind, self.kept = scenes, kind, spread(len(scenes), limit)

    def __len__(self) -> int:
        return len(self.kept)

    def describe(self) -> str:
        """`512 generated scenes of 64 px with depth (seed 1)`."""
        return f"{len(self):,} generated scenes of {self.scenes.image_size} px with {self.kind} (seed {self.scenes.seed})"

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The scene uint8 [H, W, 3] RGB and its depth [H, W] or its normals [H, W, 3]; all are known."""
        index = self.kept[number]
        draw = scene_depth if self.kind == "depth" else scene_normals
        return self.scenes.image(index), draw(self.scenes.seed, index, self.scenes.image_size)


class NaviGeometry(GeometryMaps):
    """Photographs of NAVI with the depth or the normals of their object."""

    def __init__(self, navi: Navi, kind: Literal["depth", "normals"], is_relative: bool = False):
        """is_relative: depth runs from 0.01 (the nearest pixel) to 1 (the farthest one) in each image, as Probe3D's `reldepth`."""
        self.navi, self.kind, self.is_relative = navi, kind, is_relative
        self.max_depth = 1.0 if is_relative else MAX_DEPTH

    def __len__(self) -> int:
        return len(self.navi)

    def describe(self) -> str:
        """`575 photographs of 35 objects with depth in /path (test)`."""
        return self.navi.describe(self.kind)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The square around the object uint8 [S, S, 3] and its depth [S, S] or its normals [S, S, 3]."""
        view = self.navi.view(number)
        if self.kind == "normals":
            return view.image, view.normals
        return view.image, _relative(view.depth) if self.is_relative else view.depth

    def notes(self) -> tuple[str, ...]:
        """Objects that were passed over."""
        return self.navi.notes()


def _relative(depth: np.ndarray) -> np.ndarray:
    """m -> 0.01 to 1, of the nearest and the farthest pixel of an image; 0 stays 0. A range below 1 cm is taken for 1 cm."""
    known = depth > 0
    if not known.any():
        return depth
    nearest, farthest = depth[known].min(), depth[known].max()
    return np.where(known, 0.99 * (depth - nearest) / max(0.01, farthest - nearest) + 0.01, 0).astype(np.float32)


class GeometrySettings(Settings):
    """What is common to all readers; each adds `type`, its own keys and `build`."""

    limit: Positive | None = None
    """Images at most, spread evenly over the set; null for all."""

    @property
    def protocol_size(self) -> int | None:
        """px of the short side at which the published numbers are measured; None for the size that the student prefers."""
        return None

    def build(self) -> GeometryMaps:
        """Opens the set; raises UserError where files are missing, damaged or of another size than their image."""
        raise NotImplementedError


class ImagesDepthSettings(GeometrySettings):
    """A folder with `images` and `depth` (16-bit PNG of the same name, 0 where it is not known).

    `depth.json` there or one folder up has the scale, {"scale": 0.001, "max_depth": 10}: m of one unit, and m beyond which nothing counts.
    """

    type: Literal["images_depth"] = "images_depth"
    path: UserPath
    """The folder that holds `images` and `depth`."""

    def build(self) -> DepthFiles:
        """Lists the files; raises UserError where folders, depth.json or files are missing or wrong."""
        folder = existing(self.path, "images", "depth")
        scale, max_depth = read_scale(folder)
        return DepthFiles(shown(folder), same_names(folder / "images", folder / "depth"), scale, max_depth, self.limit)


class NyuDepthSettings(GeometrySettings):
    """NYUv2 as PNG files with a list, the layout of BTS and DINOv2: on each line an image, its depth (16 bits, mm) and a focal length."""

    type: Literal["nyu"] = "nyu"
    path: UserPath
    """The folder in which the paths of the list lie."""
    split: Literal["train", "test"] = "test"
    """Which list: nyudepthv2_SPLIT_files_with_gt.txt or nyu_SPLIT.txt, in the folder or one above."""
    crop: bool = True
    """Whether, in the split test, only Eigen's crop of 640x480 px counts, as in the published numbers."""

    @property
    def protocol_size(self) -> int:
        """px of the short side: 480."""
        return NYU_SIZE[0]

    def build(self) -> DepthFiles:
        """Reads the list; raises UserError where it or a file that it names is missing or damaged."""
        folder = existing(self.path)
        places = [parent / name.format(self.split) for name in NYU_LISTS for parent in (folder, folder.parent)]
        file = next((path for path in places if os.path.lexists(path)), None)
        if file is None:
            names = " nor ".join(name.format(self.split) for name in NYU_LISTS)
            raise UserError(f"{shown(folder)}: there is neither {names}, here or one folder up; put the list of the split there")
        kind = NyuFiles if self.crop and self.split == "test" else DepthFiles
        return kind(f"{shown(folder)} ({self.split})", _listed_pairs(file, folder), 0.001, MAX_DEPTH, self.limit)


NYU_LISTS = ("nyudepthv2_{}_files_with_gt.txt", "nyu_{}.txt")


class NaviSettings(GeometrySettings):
    """NAVI (v1 or v1.5) as Probe3D takes it: trained on multi-view scenes, tested on wild sets, cropped to the square around the object."""

    type: Literal["navi"] = "navi"
    path: UserPath
    """The folder that holds one folder an object."""
    split: NaviSplit = "test"
    """train: all multi-view scenes; test: all wild sets."""
    every: Positive = 4
    """Every how many-th image is taken; Probe3D takes every fourth."""

    @property
    def protocol_size(self) -> int:
        """px of a side: 512."""
        return SIDE

    def open(self) -> Navi:
        """Reads the annotations; raises UserError where they or files are missing or damaged."""
        return Navi(existing(self.path), self.split, self.every, self.limit)


class NaviDepthSettings(NaviSettings):
    """NAVI's depth; see the paper's protocol in `split` and `every`."""

    relative: bool = True
    """Whether depth is that of each object, from 0.01 to 1; else in m from the camera."""

    def build(self) -> NaviGeometry:
        """Lists the photographs; raises UserError where annotations or files are missing or damaged."""
        return NaviGeometry(self.open(), "depth", self.relative)


class NaviNormalsSettings(NaviSettings):
    """NAVI's normals, computed from its depth."""

    def build(self) -> NaviGeometry:
        """Lists the photographs; raises UserError where annotations or files are missing or damaged."""
        return NaviGeometry(self.open(), "normals")


class ImagesNormalsSettings(GeometrySettings):
    """A folder with `images` and `normals` (RGB PNG of the same name, n = rgb / 127.5 - 1, grey (128) or black where it is not known)."""

    type: Literal["images_normals"] = "images_normals"
    path: UserPath
    """The folder that holds `images` and `normals`."""

    def build(self) -> NormalFiles:
        """Lists the files; raises UserError where folders or files are missing or damaged."""
        folder = existing(self.path, "images", "normals")
        return NormalFiles(shown(folder), same_names(folder / "images", folder / "normals"), self.limit)


class SceneGeometrySettings(GeometrySettings):
    """Generated scenes, drawn when they are read."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 512
    """How many."""
    seed: Seed = 1
    """The world; training scenes of the student are of world 0 unless the recipe names another, and the probe's should be of a third."""
    image_size: SceneSize = 64
    """px of a side."""


class SceneDepthSettings(SceneGeometrySettings):
    """Generated scenes: the foremost object is 1 m away, each one behind it 0.5 m further, the background 4 m."""

    def build(self) -> SceneGeometry:
        """Never fails."""
        return SceneGeometry(Scenes(self.length, self.seed, self.image_size), "depth", self.limit)


class SceneNormalsSettings(SceneGeometrySettings):
    """Generated scenes: objects fall off at their outline as they are shaded; all else faces the viewer."""

    def build(self) -> SceneGeometry:
        """Never fails."""
        return SceneGeometry(Scenes(self.length, self.seed, self.image_size), "normals", self.limit)


DEPTHS: tuple[type[GeometrySettings], ...] = (ImagesDepthSettings, NyuDepthSettings, NaviDepthSettings, SceneDepthSettings)
NORMALS: tuple[type[GeometrySettings], ...] = (ImagesNormalsSettings, NaviNormalsSettings, SceneNormalsSettings)
"""Every reader; a new one is one class and one entry here."""

if TYPE_CHECKING:
    AnyDepth = AnyNormals = GeometrySettings
else:
    AnyDepth, AnyNormals = one_of(DEPTHS), one_of(NORMALS)


def read_scale(folder: Path) -> tuple[float, float]:
    """(m of one unit, m beyond which nothing counts) of depth.json in a folder or above it. Raises UserError with all problems."""
    file = next((parent / "depth.json" for parent in (folder, folder.parent) if os.path.lexists(parent / "depth.json")), None)
    if file is None:
        raise UserError(f'{shown(folder)}: no depth.json here or one folder up; write {{"scale": 0.001}} there if a unit is 1 mm')
    content: Mapping[str, Any] = read_json(file)
    problems = Problems(file)
    for name in sorted(content.keys() - set(DEPTH_KEYS)):
        problems.add(brief(name), f"there is no such key; there is: {', '.join(DEPTH_KEYS)}")
    values = {"max_depth": MAX_DEPTH}
    for name in DEPTH_KEYS:
        try:
            if name in content:
                values[name] = _above_zero(content[name])
        except WrongError as error:
            problems.add(name, str(error))
    if "scale" not in content:
        problems.add("", "it lacks 'scale', the m of one unit: 0.001 where a unit is 1 mm")
    problems.refuse()
    return values["scale"], values["max_depth"]


def _above_zero(value: Any) -> float:
    number = finite_number(value)
    if not 0 < number <= MOST_METRES:
        raise WrongError(f"found {brief(value)}; expected a number above 0, at most {MOST_METRES:,.0f}")
    return number


def _listed_pairs(file: Path, folder: Path) -> LabelledFiles:
    """The pairs that a list names: image, depth and (unused) focal length a line, relative to `folder`. Raises UserError."""
    problems = Problems(file)
    passed = PassedOver()
    pairs: dict[str, LabelledFile] = {}
    for number, line in enumerate(read_lines(file, file_names=True), 1):
        words = line.split()
        try:
            if words and len(words) < 2:
                raise WrongError(f"found {brief(line)}; expected the paths of an image and of its depth")
            names = [below(word if Path(word).is_relative_to(folder.absolute()) else word.lstrip("/"), folder) for word in words[:2]]
        except WrongError as error:
            problems.add(f"line {number}", str(error))
            continue
        if names and names[0] in pairs:
            passed.add("a line that names an image again", names[0])
        elif names:
            pairs[names[0]] = LabelledFile(to_key(names[0]), folder / names[0], folder / names[1])
    problems.refuse()
    if not pairs:
        raise UserError(f"{shown(file)}: it names no image; put the list of the split there")
    return LabelledFiles(list(pairs.values()), passed)
