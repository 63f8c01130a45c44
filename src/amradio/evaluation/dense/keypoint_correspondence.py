"""Semantic correspondence: whether the nearest cell of another object's photograph shows the same part; nothing is trained."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from ...images import to_float
from ...labelled.spair import KeypointPair, SpairPairs, SpairSettings
from ..base import Bench, Evaluation, EvaluationSettings, Framing, Metric, Predict, Result, Sizes
from ..sharing import read_windows, windows_of
from .linear_segmentation import with_maps

PAIRS = 4
"""Pairs that one process reads at a time."""
SIZE = 512
"""px of the short side (EUPE's protocol for patches of 16 px)."""


class KeypointCorrespondenceSettings(EvaluationSettings):
    """PCK on SPair-71k: key points whose nearest cell by cosine is within a tenth of the object's box of the annotated place."""

    view: ClassVar[Framing] = "whole"

    type: Literal["keypoint_correspondence"] = "keypoint_correspondence"
    data: SpairSettings
    """Pairs of photographs with key points."""
    alpha: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.1
    """Share of the longer side of the box by which a prediction may be off."""

    def protocol_sizes(self, bench: Bench) -> Sizes:  # noqa: ARG002 - one for all
        """512 px."""
        return SIZE

    def build(self) -> "KeypointCorrespondence":
        """Opens the data; raises UserError where files are missing or damaged."""
        return KeypointCorrespondence(self.data.build(), self.alpha)


class _Pair(NamedTuple):
    """What is measured on one pair."""

    category: str
    right: dict[str, list[bool]]
    """{model: which key points are found}."""
    trivial: list[bool]
    digest: bytes


class KeypointCorrespondence(Evaluation):
    """Share of key points that are found on another object: the evaluation `keypoint_correspondence`."""

    is_shared = True

    def __init__(self, pairs: SpairPairs, alpha: float = 0.1):
        self.pairs, self.alpha = pairs, alpha

    def run(self, predict: Predict, bench: Bench) -> Result:
        """`pck` (mean over categories) and `pck_points` (over all key points), in %, of every model that has a map; by category in details.

        The floor is the same place in the other photograph. Raises UserError where no model has a map.
        """
        predict = with_maps(predict, bench.device, "keypoint_correspondence")
        windows = windows_of(len(self.pairs), PAIRS)

        def measure(numbers: range) -> dict[int, list[_Pair]]:
            chosen = [windows[number] for number in numbers]
            title = f"key points of {len(self.pairs):,} pairs"
            read = read_windows(self.pairs.read, chosen, bench.num_workers, bench.progress, title)
            return {number: [self._measure(*pair, predict, bench) for pair in pairs] for number, pairs in zip(numbers, read, strict=True)}

        every = [pair for window in bench.share.collect(measure, len(windows)) for pair in window]
        categories = {row: _by_category(every, [pair.right[row] for pair in every]) for row in predict}
        trivial = _by_category(every, [pair.trivial for pair in every])
        return Result(
            (Metric("pck", f"PCK@{self.alpha:g}"), Metric("pck_points", "PCK of all points", headline=False)),
            {row: _scores(categories[row], [right for pair in every for right in pair.right[row]]) for row in predict},
            {"pairs": len(every), "points": sum(len(pair.trivial) for pair in every), "categories": len(trivial)},
            hashlib.sha256(b"".join(pair.digest for pair in every)).hexdigest()[:16],
            _scores(trivial, [right for pair in every for right in pair.trivial]),
            floor="the same place in the other photograph",
            details={"pck_by_category": categories},
        )

    def _measure(self, pair: KeypointPair, first: np.ndarray, second: np.ndarray, predict: Predict, bench: Bench) -> _Pair:
        content = (first, second, pair.first_points, pair.second_points)
        digest = hashlib.sha256(b"".join(part.tobytes() for part in content)).digest()
        images = [to_float(torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(bench.device)) for image in (first, second)]
        points = torch.from_numpy(pair.first_points)
        sizes = [torch.tensor([image.shape[1], image.shape[0]]) for image in (first, second)]
        right: dict[str, list[bool]] = {}
        for name, call in predict.items():
            maps = [call(image).spatial for image in images]
            assert maps[0] is not None, "models without a map were sorted out before"
            assert maps[1] is not None, "models without a map were sorted out before"
            right[name] = self._right(nearest_places(maps[0][0], maps[1][0], points / sizes[0]) * sizes[1], pair)
        return _Pair(pair.category, right, self._right(points / sizes[0] * sizes[1], pair), digest)

    def _right(self, places: Tensor, pair: KeypointPair) -> list[bool]:
        """places: [N, 2], px of the second photograph."""
        off = (places - torch.from_numpy(pair.second_points)).norm(dim=1)
        return (off <= self.alpha * pair.reach).tolist()


def nearest_places(first: Tensor, second: Tensor, points: Tensor) -> Tensor:
    """The middles of the cells of `second` that are nearest by cosine to the features of `first` at some points.

    Args:
        first: map [h, w, D]; features between cells are bilinear.
        second: map [H, W, D].
        points: [N, 2], x and y in [0, 1] of the first photograph's width and height.

    Returns:
        float64 [N, 2] on the CPU, in [0, 1] of the second photograph's width and height.
    """
    places = (2 * points - 1).to(first)[None, None]
    wanted = F.grid_sample(first.permute(2, 0, 1)[None], places, "bilinear", "border", align_corners=False)[0, :, 0].T
    height, width = second.shape[:2]
    best = (F.normalize(wanted, dim=1) @ F.normalize(second.flatten(0, 1), dim=1).T).argmax(1).cpu()
    return torch.stack(((best % width + 0.5) / width, (best // width + 0.5) / height), 1).double()


def _by_category(pairs: Sequence[_Pair], right: Sequence[list[bool]]) -> dict[str, float]:
    """{category: % of its key points}."""
    points: dict[str, list[bool]] = {}
    for pair, values in zip(pairs, right, strict=True):
        points.setdefault(pair.category, []).extend(values)
    return {category: _percent(values) for category, values in points.items()}


def _scores(categories: dict[str, float], right: Sequence[bool]) -> dict[str, float]:
    return {"pck": sum(categories.values()) / len(categories), "pck_points": _percent(right)}


def _percent(right: Sequence[bool]) -> float:
    return 100 * sum(right) / len(right)
