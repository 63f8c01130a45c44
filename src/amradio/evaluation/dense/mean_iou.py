"""Mean IoU over classes, from one matrix of counts."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...labelled.segmentation import IGNORE, LabelledMaps

PRIOR_IMAGES = 1000
"""Of how many training images, evenly spread, the floors are made."""
PRIOR_SIDE = 256
"""px of the long side of the map of priors, at most."""


class Confusion:
    """Counts of pixels by class; `counts` int64 [K, K], rows are the truth, columns the prediction."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Adds pixels: two integer tensors of one shape, the truth IGNORE where a pixel does not count."""
        counted = truth != IGNORE
        places = truth[counted].long() * self.num_classes + predicted[counted].long()
        self.counts += torch.bincount(places, minlength=self.num_classes**2).view_as(self.counts)

    def ious(self) -> Tensor:
        """Intersection over union by class, float64 [K] in [0, 1]; NaN for a class that is neither in the truth nor predicted."""
        counts = self.counts.double()
        hit = counts.diagonal()
        return hit / (counts.sum(0) + counts.sum(1) - hit)

    def scores(self) -> dict[str, float]:
        """In %: `mean_iou` over the classes that occur, `accuracy` over pixels, `class_accuracy` over the classes of the truth."""
        counts = self.counts.double()
        hit = counts.diagonal()
        scores = {
            "mean_iou": self.ious().nanmean(),
            "accuracy": hit.sum() / counts.sum(),
            "class_accuracy": (hit / counts.sum(1)).nanmean(),
        }
        return {name: 100 * value.item() for name, value in scores.items()}


def classes_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, K, h, w] upsampled bilinearly to `size`; the best class a pixel, int64 [B, *size]."""
    return upsample(logits, size).argmax(1)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, K, h, w] -> [B, K, *size], bilinear, corners not aligned."""
    return logits if tuple(logits.shape[-2:]) == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)


class Priors:
    """Predictions that ignore the image: the most frequent class, overall and at each position."""

    def __init__(self, maps: LabelledMaps):
        """Reads the labels of at most PRIOR_IMAGES images."""
        numbers = range(0, len(maps), max(1, len(maps) // PRIOR_IMAGES))
        first = maps.label(0).shape
        scale = min(1.0, PRIOR_SIDE / max(first))
        grid = max(1, round(first[0] * scale)), max(1, round(first[1] * scale))
        counts = torch.zeros(len(maps.names), *grid, dtype=torch.int32)
        for number in numbers:
            label = _resized(torch.from_numpy(maps.label(number)), grid)
            counted = label != IGNORE
            rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
            counts[label[counted].long(), rows[counted], columns[counted]] += 1
        self.num_classes = len(maps.names)
        self.by_place = counts.argmax(0).to(torch.uint8)
        self.overall = int(counts.sum((1, 2)).argmax())

    def confusions(self) -> dict[str, Confusion]:
        """Empty counts by the name of the answer, for `update`."""
        return {name: Confusion(self.num_classes) for name in ("position prior", "majority class")}

    def update(self, confusions: Mapping[str, Confusion], label: Tensor) -> None:
        """Adds what the two answers are to a label uint8 [H, W] on the CPU."""
        confusions["position prior"].update(_resized(self.by_place, tuple(label.shape)), label)
        confusions["majority class"].update(torch.full_like(label, self.overall), label)


def _resized(label: Tensor, size: tuple[int, ...]) -> Tensor:
    """uint8 [h, w] -> [*size], the nearest pixel."""
    return F.interpolate(label[None, None], size, mode="nearest-exact")[0, 0]
