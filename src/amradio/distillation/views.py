"""Views: what each model sees of a batch of images, and which region of the images it is.

The one place where the sizes at which models see images are decided. Training, calibration, held-out agreement and the contact sheet
of the first batch all use the same views.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from ..images import resize, to_float

SizeRule = Callable[[int, int], tuple[int, int]]
"""(height, width) px -> the nearest legal input size of a model."""


class Partition(NamedTuple):
    """A group of teachers that see the same images at the same student size."""

    name: str
    """`0.1`: number of the stage and of the partition."""
    teachers: tuple[str, ...]
    size: tuple[int, int]
    """(height, width) px at which the student sees the images."""
    weight: float = 1.0
    """Of the partition's loss in the step."""
    map_weight: float = 1.0
    """Of the losses of its maps beside those of other partitions (`loss.token_exponent`)."""
    teacher_sizes: Mapping[str, tuple[int, int]] = MappingProxyType({})
    """(height, width) px at which single teachers see the images, by name; the others take their legal size nearest to `size`."""


class Region(NamedTuple):
    """A rectangle of an image, in fractions of its height and width."""

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0

    def intersection(self, other: "Region") -> "Region":
        """What both cover."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.height, other.top + other.height)
        right = min(self.left + self.width, other.left + other.width)
        assert bottom > top, f"{self} and {other} have nothing in common"
        assert right > left, f"{self} and {other} have nothing in common"
        return Region(top, left, bottom - top, right - left)


WHOLE = Region()


class View(NamedTuple):
    """What one model sees of a batch, and where that is in the batch's images."""

    images: Tensor
    """float32 [B, 3, h, w] in [0, 1]."""
    region: Region = WHOLE
    """The part of the batch's images that it shows: the map back for features of this view."""


class Views(NamedTuple):
    """The views of one batch."""

    student: View
    teachers: Mapping[str, View]
    """By name, of every teacher of the partition."""


class ViewMaker:
    """Makes the views of a batch. Models of one input size share one tensor."""

    def __init__(self, size_rules: Mapping[str, SizeRule]):
        """size_rules: of each teacher by name (`Teacher.size_for`)."""
        self._size_rules = dict(size_rules)

    def teacher_size(self, name: str, partition: Partition) -> tuple[int, int]:
        """(height, width) px at which a teacher sees the partition's images: that of the partition for this teacher, or its legal size
        nearest to the student's, however large the batch's images are."""
        return partition.teacher_sizes.get(name) or self._size_rules[name](*partition.size)

    def largest_size(self, partition: Partition) -> tuple[int, int]:
        """(height, width) px: the largest of each at which a model of the partition sees the images."""
        sizes = [partition.size, *(self.teacher_size(name, partition) for name in partition.teachers)]
        return max(height for height, _ in sizes), max(width for _, width in sizes)

    def of(self, images: Tensor, partition: Partition) -> Views:
        """images: uint8 [B, 3, H, W] on the device, or float in [0, 1]."""
        floats = to_float(images)
        resized: dict[tuple[int, int], Tensor] = {}

        def view(size: tuple[int, int]) -> View:
            if size not in resized:
                resized[size] = resize(floats, size)
            return View(resized[size])

        student = view(partition.size)
        return Views(student, {name: view(self.teacher_size(name, partition)) for name in partition.teachers})
