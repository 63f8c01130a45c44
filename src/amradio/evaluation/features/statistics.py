"""What features look like: how many directions they use, how large they are, which channels are dead."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...config import Positive
from ...features import KINDS, Features
from ...labelled.base import ImageSet
from ...labelled.classification import AnyImages, spread
from ..base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result
from ..reading import Broken, encode, no_image, num_windows, read_image_windows

ROWS = 8192
"""Vectors at most of which singular values are found."""
MEASURES = (
    Metric("rank_me", "RankMe", ""),
    Metric("norm", "norm", "", None, headline=False),
    Metric("norm_p99", "norm p99", "", None, headline=False),
    Metric("mean", "mean", "", None, headline=False),
    Metric("std", "std", "", None, headline=False),
)


class StatisticsSettings(EvaluationSettings):
    """RankMe, norms, and mean and standard deviation of the channels, of summaries and of cells of the map."""

    type: Literal["statistics"] = "statistics"
    data: AnyImages
    """Any images."""
    cells_per_image: Positive = 16
    """Cells of each map that are looked at, evenly spaced."""

    def build(self) -> "FeatureStatistics":
        """Opens the data; raises UserError where they are missing."""
        return FeatureStatistics(self.data.build(), self.cells_per_image)


def rank_me(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, eq. 1) of [N, D]: exp of the entropy of the singular values; between 1 and min(N, D)."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(1e-30) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def describe_features(features: Tensor) -> tuple[dict[str, float], dict[str, Any]]:
    """(numbers, mean and std of every channel) of [N, D].

    `mean` and `std` are root mean squares over channels; `norm` is the median length of a vector, `norm_p99` that of the longest per cent.
    """
    features = features.double()
    norms, mean, std = features.norm(dim=1), features.mean(0), features.std(0, correction=0)
    step = -(-len(features) // ROWS)
    numbers = {
        "rank_me": rank_me(features[::step]),
        "norm": float(norms.median()),
        "norm_p99": float(norms.sort().values[int(0.99 * (len(norms) - 1))]),
        "mean": float(mean.square().mean().sqrt()),
        "std": float(std.square().mean().sqrt()),
    }
    return numbers, {"channel_mean": mean.tolist(), "channel_std": std.tolist()}


class _Window(NamedTuple):
    """What is made of WINDOW images."""

    taken: list[dict[str, dict[str, Tensor]]]
    """{model: {kind: [n, D] on the CPU}} of some images at a time."""
    reasons: dict[str, str]
    """{key: reason} of the images that cannot be read."""


class FeatureStatistics(Evaluation):
    """Mean, deviation, norms and effective rank of the features of each model: the evaluation `statistics`."""

    is_shared = True

    def __init__(self, images: ImageSet, cells: int):
        self.images, self.cells = images, cells

    def run(self, predict: Predict, bench: Bench) -> Result:
        """The numbers of every model and kind; every channel's mean and std are in the details."""
        broken = Broken()
        collected = self._collect(predict, bench, broken)
        rows: dict[str, dict[str, float]] = {}
        details: dict[str, Any] = {}
        for name, kinds in collected.items():
            for kind, features in kinds.items():
                numbers, details[f"{name}/{kind}"] = describe_features(features)
                rows.setdefault(name, {}).update({f"{kind}_{key}": value for key, value in numbers.items()})
        return Result(
            metrics=[metric.prefixed(kind) for kind in KINDS for metric in MEASURES],
            rows=rows,
            counts={"images": len(self.images), "broken": len(broken.reasons)},
            fingerprint=self.images.fingerprint(),
            notes=broken.note(),
            details=details,
        )

    def _collect(self, predict: Predict, bench: Bench, broken: Broken) -> Mapping[str, Mapping[str, Tensor]]:
        """{model: {kind: [N, D] on the CPU}}; several processes share the images out."""
        broken.tell(self.images.notes())
        every = bench.share.collect(lambda numbers: self._encoded(predict, bench, numbers), num_windows(self.images))
        broken.reasons |= {key: reason for window in every for key, reason in window.reasons.items()}
        parts: dict[str, dict[str, list[Tensor]]] = {name: {} for name in predict}
        for taken in (taken for window in every for taken in window.taken):
            for name, kinds in taken.items():
                for kind, features in kinds.items():
                    parts[name].setdefault(kind, []).append(features)
        if not any(window.taken for window in every):
            raise no_image(self.images, broken)
        return {name: {kind: torch.cat(part) for kind, part in kinds.items()} for name, kinds in parts.items()}

    def _encoded(self, predict: Predict, bench: Bench, numbers: Sequence[int]) -> "dict[int, _Window]":
        """The windows of these numbers."""
        done: dict[int, _Window] = {}
        for window in read_image_windows(self.images, numbers, bench.num_workers, bench.progress):
            made = done[window.number] = _Window([], window.reasons)
            for batch in window.batches:
                taken = encode(predict, [image for _, image in batch], bench.device, self._take, bench.side_by_side)
                made.taken.append(
                    {name: {kind: features.flatten(0, -2).cpu() for kind, features in kinds.items()} for name, kinds in taken.items()}
                )
        return done

    def _take(self, features: Features) -> dict[str, Tensor]:
        """summary [B, 1, D], spatial [B, cells, D]."""
        cells = {} if features.summary is None else {"summary": features.summary[:, None]}
        if features.spatial is not None:
            cells["spatial"] = spread_cells(features.spatial, self.cells)
        return cells


def spread_cells(spatial: Tensor, count: int) -> Tensor:
    """[B, count, D] of a map [B, H, W, D]: cells evenly spaced in row-major order; all of them, where there are fewer."""
    cells = spatial.flatten(1, 2)
    return cells[:, spread(cells.shape[1], count)]
