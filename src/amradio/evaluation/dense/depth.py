"""Depth: how much of it a head reads off frozen maps."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...config import Seed, Width
from ...labelled.geometry import AnyDepth
from ..base import Bench, EvaluationSettings, Framing, Metric, Sizes
from .augmentation import ShortSchedule
from .geometry_heads import AnyGeometryHead, DptHeadSettings, depth_of_bins
from .geometry_losses import depth_loss
from .geometry_metrics import depth_scores, scale_and_shift
from .geometry_probe import AnyGeometrySchedule, Data, EpochSchedule, GeometryProbe

LEAST_DEPTH = 0.001
"""m: the nearest bin (DINOv2, Probe3D)."""
Alignment = Literal["none", "scale_shift"]


class DepthSettings(EvaluationSettings):
    """A head of depth in bins on frozen maps, trained on `train` with SigLoss and a gradient loss, scored on `test` (Probe3D)."""

    view: ClassVar[Framing] = "whole"

    type: Literal["depth"] = "depth"
    train: AnyDepth
    """Images with depth for the head."""
    test: AnyDepth
    """Images with depth for the score."""
    head: AnyGeometryHead = DptHeadSettings()
    """dpt: on four blocks of a ViT student. linear: on the last map, for every row that has one."""
    schedule: AnyGeometrySchedule = EpochSchedule()
    """published: 10 passes over the training images. short: for small sets and a quick look."""
    align: Alignment = "none"
    """none: m count. scale_shift: predictions are first scaled and shifted to the truth of each image, as AM-RADIO reports NAVI."""
    bins: Width = 256
    """Depths, evenly spaced, of which a prediction is the mean."""
    seed: Seed = 0
    """Of the head's weights, the order and the flips."""

    def protocol_sizes(self, bench: Bench) -> Sizes:  # noqa: ARG002 - the data alone decide
        """The published schedule is for 512 px (NAVI) and 480 px (NYUv2); other data, and a short look, have the student's size."""
        return None if isinstance(self.schedule, ShortSchedule) else self.train.protocol_size

    def build(self) -> GeometryProbe:
        """Opens both sets; raises UserError where files are missing or damaged."""
        data = Data(self.train.build(), self.test.build())
        target = DepthTarget(max(data.train.max_depth, data.test.max_depth), self.align, self.bins)
        return GeometryProbe(target, data, self.head, self.schedule, self.seed)


class DepthTarget:
    """Depth [N, 1, H, W] in m; what is farther than `max_depth` does not count."""

    name = "depth"
    metrics = (
        Metric("mean_delta", "depth"),
        Metric("delta1", "within 1.25", headline=False),
        Metric("delta2", "within 1.25^2", headline=False),
        Metric("delta3", "within 1.25^3", headline=False),
        Metric("rmse", "RMSE m", "", "lower"),
    )

    def __init__(self, max_depth: float, align: Alignment = "none", bins: int = 256):
        self.max_depth, self.align, self.outputs = max_depth, align, bins

    def decode(self, outputs: Tensor) -> Tensor:
        """Shares of bins [N, bins, h, w] -> m."""
        return depth_of_bins(outputs, LEAST_DEPTH, self.max_depth)[:, None]

    def loss(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """SigLoss and gradient loss."""
        return depth_loss(predicted[:, 0], truth[:, 0])

    def scores(self, predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """The metrics of each image, after the alignment."""
        aligned = scale_and_shift(predicted[:, 0], truth[:, 0]) if self.align == "scale_shift" else predicted[:, 0]
        return depth_scores(aligned, truth[:, 0])

    def prepare(self, label: Tensor) -> Tensor:
        """[H, W] -> [1, H, W]."""
        return torch.where(label <= self.max_depth, label, 0)[None]

    def mirrored(self, label: Tensor) -> Tensor:
        """[H, W], left and right exchanged."""
        return label.flip(1)
