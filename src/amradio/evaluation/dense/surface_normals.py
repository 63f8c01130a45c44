"""Surface normals: how much of them a head reads off frozen maps."""

from typing import ClassVar, Literal

from torch import Tensor

from ...config import Seed
from ...labelled.geometry import AnyNormals
from ..base import Bench, EvaluationSettings, Framing, Metric, Sizes
from .augmentation import ShortSchedule
from .geometry_heads import AnyGeometryHead, DptHeadSettings
from .geometry_losses import angular_loss
from .geometry_metrics import normal_scores
from .geometry_probe import AnyGeometrySchedule, Data, EpochSchedule, GeometryProbe


class NormalsSettings(EvaluationSettings):
    """A head of surface normals on frozen maps, trained on `train` with an uncertainty-aware angular loss, scored on `test` (Probe3D)."""

    view: ClassVar[Framing] = "whole"

    type: Literal["normals"] = "normals"
    train: AnyNormals
    """Images with normals for the head."""
    test: AnyNormals
    """Images with normals for the score."""
    head: AnyGeometryHead = DptHeadSettings()
    """dpt: on four blocks of a ViT student. linear: on the last map, for every row that has one."""
    schedule: AnyGeometrySchedule = EpochSchedule()
    """published: 10 passes over the training images. short: for small sets and a quick look."""
    seed: Seed = 0
    """Of the head's weights, the order and the flips."""

    def protocol_sizes(self, bench: Bench) -> Sizes:  # noqa: ARG002 - the data alone decide
        """The published schedule is for 512 px (NAVI); other data, and a short look, have the student's size."""
        return None if isinstance(self.schedule, ShortSchedule) else self.train.protocol_size

    def build(self) -> GeometryProbe:
        """Opens both sets; raises UserError where files are missing or damaged."""
        return GeometryProbe(NormalsTarget(), Data(self.train.build(), self.test.build()), self.head, self.schedule, self.seed)


class NormalsTarget:
    """Normals [N, 3, H, W] of length 1; a head also predicts how sure they are."""

    name = "normals"
    outputs = 4
    metrics = (
        Metric("mean_recall", "normals"),
        Metric("within_11", "within 11.25 deg", headline=False),
        Metric("within_22", "within 22.5 deg", headline=False),
        Metric("within_30", "within 30 deg", headline=False),
        Metric("rmse", "RMSE deg", "", "lower"),
    )

    def decode(self, outputs: Tensor) -> Tensor:
        """[N, 4, h, w] as they are: three of the vector, one of its concentration."""
        return outputs

    def loss(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """The uncertainty-aware angular loss."""
        return angular_loss(predicted, truth)

    def scores(self, predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """The metrics of each image."""
        return normal_scores(predicted[:, :3], truth)

    def prepare(self, label: Tensor) -> Tensor:
        """[H, W, 3] -> [3, H, W]."""
        return label.permute(2, 0, 1)

    def mirrored(self, label: Tensor) -> Tensor:
        """[H, W, 3], left and right exchanged, in the picture and in the vectors."""
        return label.flip(1) * label.new_tensor([-1, 1, 1])
