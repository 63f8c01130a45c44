"""Pairs of views of one object whose surface and poses are known: NAVI and generated scenes."""

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import pydantic

from ..config import Positive, SceneSize, Seed, Settings, UserPath, one_of
from ..data.scenes import Scenes, draw_scene
from ..errors import UserError, shown
from .classification import spread
from .navi import SIDE, Navi, NaviSplit, read_view
from .paired_files import existing


class PosedView(NamedTuple):
    """A picture of an object, and where in space its surface is."""

    image: np.ndarray
    """uint8 [S, S, 3] RGB."""
    points: np.ndarray
    """float32 [S, S, 3]: the pixel's surface in the camera's space (x right, y down, z forward), m; 0 where there is no object."""
    focal_length: float
    """px of this picture."""
    pose: np.ndarray
    """float64 [4, 4]: from the object to the camera."""


class ViewPair(NamedTuple):
    """Two views of one object."""

    first: PosedView
    second: PosedView

    @property
    def move(self) -> np.ndarray:
        """float64 [4, 4]: from the space of the first camera to that of the second one."""
        return self.second.pose @ np.linalg.inv(self.first.pose)

    @property
    def angle(self) -> float:
        """Degrees between the two directions of the camera."""
        return float(angles(self.first.pose[None], self.second.pose[None])[0])


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Degrees of the rotations between poses [N, 4, 4]."""
    traces = (first[:, :3, :3] * second[:, :3, :3]).sum((1, 2))
    return np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))


class ViewPairs:
    """Pairs in a fixed order; sent to workers."""

    def __len__(self) -> int:
        raise NotImplementedError

    def describe(self) -> str:
        """`575 pairs of photographs in /path`."""
        raise NotImplementedError

    def read(self, number: int) -> ViewPair:
        """Both views. Raises UserError where a file cannot be read."""
        raise NotImplementedError

    def notes(self) -> tuple[str, ...]:
        """What was passed over when the pairs were listed, one sentence a place; mostly empty."""
        return ()


class NaviPairs(ViewPairs):
    """Each photograph with another one of its scene, drawn among those that are turned by at most `max_angle` degrees."""

    def __init__(self, navi: Navi, max_angle: float, seed: int):
        """Raises UserError where no photograph has another one."""
        self.navi = navi
        self.pairs: list[tuple[int, int]] = []
        numbers_by_scene: dict[str, list[int]] = {}
        for number, image in enumerate(navi.all_images):
            numbers_by_scene.setdefault(image.scene, []).append(number)
        positions = {image.files.key: number for number, image in enumerate(navi.all_images)}
        poses = np.stack([image.pose for image in navi.all_images])
        for image in navi.images:
            number, others = positions[image.files.key], np.array(numbers_by_scene[image.scene])
            turned = angles(np.broadcast_to(image.pose, (len(others), 4, 4)), poses[others])
            able = others[(turned > 1e-3) & (turned <= max_angle) & (others != number)]
            if len(able):
                draws = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, number))))
                self.pairs.append((number, int(draws.choice(able))))
        if not self.pairs:
            raise UserError(
                f"{shown(navi.root)}: no photograph has another one of its scene that is turned by at most {max_angle:g} degrees; "
                "raise max_angle, or give all of NAVI"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def describe(self) -> str:
        """`575 pairs of photographs in /path (test)`."""
        return f"{len(self):,} pairs of photographs in {shown(self.navi.root)} ({self.navi.split})"

    def read(self, number: int) -> ViewPair:
        """The squares around the object, 512 px a side."""
        return ViewPair(*(self._view(index) for index in self.pairs[number]))

    def _view(self, number: int) -> PosedView:
        view = read_view(self.navi.all_images[number])
        return PosedView(view.image, view.points, view.focal_length, self.navi.all_images[number].pose)

    def notes(self) -> tuple[str, ...]:
        """Objects that were passed over, and how many photographs have no other one."""
        alone = len(self.navi) - len(self.pairs)
        return (*self.navi.notes(), *([f"{alone} photographs have no other one of their scene within the angle"] if alone else []))


class SceneViewPairs(ViewPairs):
    """Generated scenes, seen twice: two cuts at two scales, with grain drawn anew. The world is flat: only objects count, 1 m away.

    A scene is 1 m wide.
    """

    scales = (1.5, 2.0)
    """Sides of the two pictures that are cut, in sides of a view."""

    def __init__(self, scenes: Scenes, limit: int | None = None):
        self.scenes, self.kept = scenes, spread(len(scenes), limit)

    def __len__(self) -> int:
        return len(self.kept)

    def describe(self) -> str:
        """`64 pairs of cuts of 64 px from generated scenes (seed 1)`."""
        return f"{len(self):,} pairs of cuts of {self.scenes.image_size} px from generated scenes (seed {self.scenes.seed})"

    def read(self, number: int) -> ViewPair:
        """Both cuts."""
        index = self.kept[number]
        draws = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.scenes.seed, index, 2))))
        return ViewPair(*(self._cut(index, round(scale * self.scenes.image_size), draws) for scale in self.scales))

    def _cut(self, index: int, side: int, draws: np.random.Generator) -> PosedView:
        size = self.scenes.image_size
        scene = draw_scene(self.scenes.seed, index, side)
        top, left = (int(start) for start in draws.integers(0, side - size + 1, 2))
        window = slice(top, top + size), slice(left, left + size)
        line = (np.arange(size) + 0.5 - size / 2) / side
        points = np.stack((*np.broadcast_arrays(line[None, :], line[:, None]), np.ones((size, size))), -1)
        points[scene.semantic[window] == 0] = 0
        pose = np.eye(4)
        pose[:3, 3] = -((left + size / 2) / side - 0.5), -((top + size / 2) / side - 0.5), 1
        return PosedView(scene.image[window], points.astype(np.float32), float(side), pose)


class ViewPairSettings(Settings):
    """What is common to all sets; each adds `type`, its own keys and `build`."""

    limit: Positive | None = None
    """Pairs at most, spread evenly over the set; null for all."""

    @property
    def protocol_size(self) -> int | None:
        """px of a side at which the published numbers are measured; None for the size that the student prefers."""
        return None

    def build(self) -> ViewPairs:
        """Opens the set; raises UserError where files are missing or damaged."""
        raise NotImplementedError


class NaviPairSettings(ViewPairSettings):
    """NAVI (v1 or v1.5) in pairs; which photograph goes with which is drawn here, not as in Probe3D."""

    type: Literal["navi"] = "navi"
    path: UserPath
    """The folder that holds one folder an object."""
    split: NaviSplit = "test"
    """test: wild sets, as in Probe3D; train: multi-view scenes."""
    every: Positive = 4
    """Every how many-th photograph is a first one; Probe3D takes every fourth. Second ones are drawn from all."""
    max_angle: Annotated[float, pydantic.Field(gt=0, le=180)] = 120.0
    """Degrees between the two views at most."""
    seed: Seed = 8
    """Of the second photographs."""

    @property
    def protocol_size(self) -> int:
        """px of a side: 512."""
        return SIDE

    def build(self) -> NaviPairs:
        """Lists the pairs; raises UserError where annotations or files are missing or damaged."""
        return NaviPairs(Navi(existing(self.path), self.split, self.every, self.limit), self.max_angle, self.seed)


class ScenePairSettings(ViewPairSettings):
    """Generated scenes, each seen twice at two scales; objects are flat, so this tells nothing of views from another side."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 64
    """How many pairs."""
    seed: Seed = 1
    """The world."""
    image_size: SceneSize = 64
    """px of a side of a view."""

    def build(self) -> SceneViewPairs:
        """Never fails."""
        return SceneViewPairs(Scenes(self.length, self.seed, self.image_size), self.limit)


VIEW_PAIRS: tuple[type[ViewPairSettings], ...] = (NaviPairSettings, ScenePairSettings)
"""Every set; a new one is one class and one entry here."""

if TYPE_CHECKING:
    AnyViewPairs = ViewPairSettings
else:
    AnyViewPairs = one_of(VIEW_PAIRS)
