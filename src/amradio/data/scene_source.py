"""Generated scenes as a source of images."""

from typing import Literal

import numpy as np

from ..config import Positive, SceneSize, Seed
from .scenes import Scenes
from .source import ImageId, Source, SourceSettings


class ScenesSettings(SourceSettings):
    """Pictures that are drawn when they are asked for; nothing is read from the disk."""

    type: Literal["scenes"] = "scenes"
    length: Positive = 100_000
    """How many different scenes there are."""
    seed: Seed = 0
    """The world; another seed shares no scene with this one, so validation takes another."""
    image_size: SceneSize = 64
    """Pixels of a side as drawn, before the crop."""

    def build(self) -> "SceneSource":
        """Never fails."""
        return SceneSource(Scenes(self.length, self.seed, self.image_size))


class SceneSource(Source):
    """`Scenes` behind the interface of a source."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def describe(self) -> str:
        """`1,000 generated scenes of 64 px (seed 0)`."""
        return f"{len(self.scenes):,} generated scenes of {self.scenes.image_size} px (seed {self.scenes.seed})"

    def count(self, limit: int | None = None) -> int:
        """How many scenes there are, at most `limit`."""
        return len(self.scenes) if limit is None else min(limit, len(self.scenes))

    def key(self, image_id: ImageId) -> str:
        """`scene-<seed>-<index>`."""
        assert isinstance(image_id, int)
        return self.scenes.key(image_id)

    def read(self, image_id: ImageId) -> np.ndarray:
        """uint8 [image_size, image_size, 3] RGB."""
        assert isinstance(image_id, int)
        return self.scenes.image(image_id)
