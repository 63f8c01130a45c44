"""Multi-view correspondence: whether the nearest cell of another view shows the same point of an object; nothing is trained."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import Positive
from ...errors import UserError
from ...images import to_float
from ...labelled.view_pairs import AnyViewPairs, PosedView, ViewPair, ViewPairs
from ...neighbours import nearest_rows
from ..base import Bench, Evaluation, EvaluationSettings, Framing, Metric, Predict, Result, Sizes
from ..sharing import read_windows, windows_of
from .linear_segmentation import with_maps

PAIRS = 4
"""Pairs that one process reads at a time."""
METRES, PIXELS = (0.01, 0.02, 0.05), (5, 25, 50)
"""Errors at which a match still counts (Probe3D)."""
ANGLES = (0, 30, 60, 90, 120)
"""Edges of the bins of `recall_2cm_by_angle`, in degrees."""
SAMPLED = 512
"""Points of a first view of which the floor is computed."""
METRICS = (
    Metric("recall", "multi-view"),
    *(Metric(f"recall_{round(100 * error)}cm", f"within {round(100 * error)} cm", headline=False) for error in METRES),
    *(Metric(f"recall_{error}px", f"within {error} px", headline=False) for error in PIXELS),
)


class MultiviewCorrespondenceSettings(EvaluationSettings):
    """Recall of the matches of least ambiguity between two views: nearest by cosine, ratio test, errors in space and in px (Probe3D)."""

    view: ClassVar[Framing] = "whole"

    type: Literal["multiview_correspondence"] = "multiview_correspondence"
    data: AnyViewPairs
    """Pairs of views."""
    matches: Positive = 1000
    """How many matches of a pair count, those first whose second nearest cell is the most different."""
    stride: Positive = 4
    """Every how many-th pixel of a row and of a column is matched; maps are upsampled to that grid."""

    def protocol_sizes(self, bench: Bench) -> Sizes:  # noqa: ARG002 - the data alone decide
        """512 px on NAVI; scenes have the student's size."""
        return self.data.protocol_size

    def build(self) -> "MultiviewCorrespondence":
        """Opens the data; raises UserError where files are missing or damaged."""
        return MultiviewCorrespondence(self.data.build(), self.matches, self.stride)


class Matches(NamedTuple):
    """Points that are taken for the same, in the space of their camera."""

    first: Tensor
    """float [M, 3]."""
    second: Tensor
    """float [M, 3]."""


class _Pair(NamedTuple):
    """What is measured on one pair."""

    recalls: dict[str, dict[str, float]]
    """{model: {metric: share of matches}}; empty where a view shows too little of the object."""
    chance: dict[str, float]
    angle: float
    digest: bytes


class MultiviewCorrespondence(Evaluation):
    """Recall of matches between views: the evaluation `multiview_correspondence`."""

    is_shared = True

    def __init__(self, pairs: ViewPairs, matches: int = 1000, stride: int = 4):
        self.pairs, self.matches, self.stride = pairs, matches, stride

    def run(self, predict: Predict, bench: Bench) -> Result:
        """Recalls in % of every model that has a map, means over pairs; the floor is another point of the object, drawn blindly.

        Raises UserError where no model has a map, or no pair shows the object in both views.
        """
        predict = with_maps(predict, bench.device, "multiview_correspondence")
        windows = windows_of(len(self.pairs), PAIRS)

        def measure(numbers: range) -> dict[int, list[_Pair]]:
            chosen = [windows[number] for number in numbers]
            read = read_windows(self.pairs.read, chosen, bench.num_workers, bench.progress, f"matching {len(self.pairs):,} pairs")
            return {number: [self._measure(pair, predict, bench) for pair in pairs] for number, pairs in zip(numbers, read, strict=True)}

        every = [pair for window in bench.share.collect(measure, len(windows)) for pair in window]
        measured = [pair for pair in every if pair.recalls]
        if not measured:
            nothing = "no pair shows the object in both views, so nothing can be matched; look at the files, or lower stride"
            raise UserError(f"{self.pairs.describe()}: {nothing}")
        empty = len(every) - len(measured)
        return Result(
            METRICS,
            {row: _means([pair.recalls[row] for pair in measured]) for row in predict},
            {"pairs": len(measured)},
            hashlib.sha256(b"".join(pair.digest for pair in every)).hexdigest()[:16],
            _means([pair.chance for pair in measured]),
            floor="any point of the object",
            notes=(*self.pairs.notes(), *([f"{empty} pairs show the object in one view at most and were left out"] if empty else [])),
            details={"recall_2cm_by_angle": {row: _by_angle(measured, row) for row in predict}},
        )

    def _measure(self, pair: ViewPair, predict: Predict, bench: Bench) -> _Pair:
        digest = hashlib.sha256(b"".join(part.tobytes() for view in pair for part in (view.image, view.points))).digest()
        grids = [torch.from_numpy(view.points[:: self.stride, :: self.stride].copy()).to(bench.device) for view in pair]
        if min(int((grid[..., 2] > 0).sum()) for grid in grids) < 2:
            return _Pair({}, {}, pair.angle, digest)
        images = to_float(torch.stack([_image(view) for view in pair]).to(bench.device))
        recalls: dict[str, dict[str, float]] = {}
        for name, call in predict.items():
            spatial = call(images).spatial
            assert spatial is not None, "models without a map were sorted out before"
            recalls[name] = shares(*errors(matched(spatial, grids, self.matches), pair))
        points = [grid[grid[..., 2] > 0] for grid in grids]
        return _Pair(recalls, _chance(points[0], points[1], pair), pair.angle, digest)


def matched(maps: Tensor, grids: Sequence[Tensor], count: int) -> Matches:
    """The matches of two maps [2, h, w, D] whose nearest neighbour is the least ambiguous.

    Each known point of the first view gets the point of the second one whose cell is nearest by cosine; those `count` count of which
    1 - d1 / d2 is largest, d1 and d2 being the distances of the nearest and of the second nearest cell.

    Args:
        maps: of both views.
        grids: float [H, W, 3] twice: points in the camera's space, z = 0 where there is none; maps are upsampled to H x W.
        count: matches at most.
    """
    features, points = [], []
    for cells, grid in zip(maps, grids, strict=True):
        size = grid.shape[0], grid.shape[1]
        large = F.interpolate(cells.permute(2, 0, 1)[None], size, mode="bicubic")[0].permute(1, 2, 0)
        known = grid[..., 2] > 0
        features.append(large[known])
        points.append(grid[known])
    nearest = nearest_rows(features[0], features[1], 2, maps.device)
    distances = (1 - nearest.similarities).clamp_min(1e-9)
    certainty = 1 - distances[:, 0] / distances[:, 1]
    best = certainty.topk(min(count, len(certainty))).indices
    return Matches(points[0][best.to(maps.device)], points[1][nearest.indices[best, 0].to(maps.device)])


def errors(matches: Matches, pair: ViewPair) -> tuple[Tensor, Tensor]:
    """(m in space [M], px of the second view [M]) between where the first points really are there and where they were found."""
    moved = _moved(matches.first, pair)
    return (moved - matches.second).norm(dim=-1), _pixels(moved, matches.second, pair)


def shares(metres: Tensor, pixels: Tensor) -> dict[str, float]:
    """By the names of METRICS, in %; `recall` is the mean over the distances in space. Arguments as `errors` returns them."""
    reached = {f"recall_{round(100 * error)}cm": 100 * float((metres < error).double().mean()) for error in METRES}
    mean = sum(reached.values()) / len(reached)
    return {"recall": mean} | reached | {f"recall_{error}px": 100 * float((pixels < error).double().mean()) for error in PIXELS}


def _moved(points: Tensor, pair: ViewPair) -> Tensor:
    move = torch.from_numpy(pair.move).to(points)
    return points @ move[:3, :3].T + move[:3, 3]


def _pixels(one: Tensor, other: Tensor, pair: ViewPair) -> Tensor:
    places = [pair.second.focal_length * points[..., :2] / points[..., 2:].clamp_min(1e-9) for points in (one, other)]
    return (places[0] - places[1]).norm(dim=-1)


def _chance(first: Tensor, second: Tensor, pair: ViewPair) -> dict[str, float]:
    """Of matches to any point of the second view, all alike: known points [N, 3] and [M, 3], of the first at most SAMPLED."""
    step = -(-len(first) // SAMPLED)
    moved = _moved(first[::step], pair)[:, None]
    return shares((moved - second).norm(dim=-1), _pixels(moved, second[None], pair))


def _image(view: PosedView) -> Tensor:
    return torch.from_numpy(view.image.transpose(2, 0, 1).copy())


def _means(pairs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(pair[name] for pair in pairs) / len(pairs) for name in pairs[0]}


def _by_angle(pairs: Sequence[_Pair], row: str) -> dict[str, float]:
    """{`up_to_30`: mean recall at 2 cm of the pairs whose views differ by less, and not by less than the bin before}; no empty bins."""
    bins: dict[str, float] = {}
    for low, high in pairwise(ANGLES):
        values = [pair.recalls[row]["recall_2cm"] for pair in pairs if low <= pair.angle < high]
        if values:
            bins[f"up_to_{high}"] = sum(values) / len(values)
    return bins
