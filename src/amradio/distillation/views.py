"""Views: what each model sees of a batch of images, and which region of the images it is.

The one place where the sizes and shifts at which models see images are decided. Training, calibration, held-out agreement and the contact
sheet of the first batch all use the same views.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import size_text
from ..features import Features
from ..images import resize, to_float
from ..teachers.base import Teacher
from .mosaic import Tiling
from .random_numbers import uniform
from .random_windows import Windowing

SHIFTS = 1000
"""The first of a sample's random numbers (`random_numbers.uniform`) that are for shifts: two a model, the student first."""


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
    shift: int = 0
    """Patches of the student by which views are shifted at most; 0 for none."""
    mosaic: tuple[str, ...] = ()
    """Teachers that see several images in one canvas, as many as fit."""
    windowing: Windowing | None = None
    """The student's windowed mode in this step; None for global attention."""
    packed: "tuple[Partition, ...]" = ()
    """The partition at each size of its images, by its number in `Batch.sizes`; empty where all images have one size."""


class Region(NamedTuple):
    """The rectangle of each image of a batch that a view shows, in fractions of the image's height and width."""

    top: float | Tensor = 0.0
    """One number for all images, or float64 [B]."""
    left: float | Tensor = 0.0
    height: float = 1.0
    width: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole of every image."""
        return not isinstance(self.top, Tensor) and not isinstance(self.left, Tensor) and self == WHOLE


WHOLE = Region()


class View(NamedTuple):
    """What one model sees of a batch, and where that is in the batch's images."""

    images: Tensor
    """float32 [B, 3, h, w] in [0, 1]; with a tiling the canvases, fewer than B."""
    region: Region = WHOLE
    """The part of the batch's images that it shows: the map back for features of this view."""
    tiling: Tiling | None = None
    """How the images are laid out in canvases; None for each by itself."""

    def features_of_images(self, features: Features, count: int) -> Features:
        """The features of the batch's images from those of `images`: maps are cut out of canvases, of which those of several images have
        no summary of one.

        count: images of the batch.
        """
        if self.tiling is None:
            return features
        summary = features.summary if self.tiling.num_images == 1 else None
        return Features(summary, None if features.spatial is None else self.tiling.cut(features.spatial, count))


class Views(NamedTuple):
    """The views of one batch."""

    student: View
    teachers: Mapping[str, View]
    """By name, of every teacher of the partition."""


class Frame(NamedTuple):
    """How a model's view is cut: a window of `size` anywhere, by whole patches, in the image at `canvas` px."""

    size: tuple[int, int]
    """(height, width) px."""
    patch_size: int
    margin: tuple[int, int] = (0, 0)
    """Patches by which the window can move up or down and to either side of the middle."""
    tiling: Tiling | None = None
    """Of several windows in one image for the model; None for one each."""

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) px at which the whole image is as large in scale as the window."""
        height, width = (side + 2 * margin * self.patch_size for side, margin in zip(self.size, self.margin, strict=True))
        return height, width

    def __str__(self) -> str:
        """`432 ±32` (px), `1024 (4 of 432)`, `1024 (512x1024 and a margin)`."""
        shift = max(self.margin) * self.patch_size
        window = f"{size_text(self.size)} ±{shift}" if shift else size_text(self.size)
        if self.tiling is None:
            return window
        content = f"{self.tiling.num_images} of {window}" if self.tiling.num_images > 1 else f"{window} and a margin"
        return f"{size_text(self.tiling.canvas)} ({content})"


class ViewMaker:
    """Makes the views of a batch. Models of one input size share one tensor."""

    def __init__(self, teachers: Mapping[str, Teacher], patch_size: int):
        """teachers: by name, for their legal sizes, patches and mean colors. patch_size: px, of the student."""
        self._size_rules: dict[str, Callable[[int, int], tuple[int, int]]] = {name: teacher.size_for for name, teacher in teachers.items()}
        self._patch_sizes = {name: teacher.patch_size for name, teacher in teachers.items()}
        self._fixed = {name for name, teacher in teachers.items() if teacher.input_size is not None}
        self._colors = {name: teacher.mean for name, teacher in teachers.items()}
        self.patch_size = patch_size

    def teacher_size(self, name: str, partition: Partition) -> tuple[int, int]:
        """(height, width) px at which a teacher sees the partition's images: that of the partition for this teacher, or its legal size
        nearest to the student's, however large the batch's images are."""
        return partition.teacher_sizes.get(name) or self._size_rules[name](*partition.size)

    def student_frame(self, partition: Partition) -> Frame:
        """How the student's view is cut."""
        return Frame(partition.size, self.patch_size, (partition.shift, partition.shift))

    def teacher_frame(self, name: str, partition: Partition) -> Frame:
        """How a teacher's view is cut: it moves as far over the image as the student's, in whole patches of its own.

        A teacher of one size sees an image of another aspect at the top left of its canvas, beside a margin.
        """
        size, patch = self.teacher_size(name, partition), self._patch_sizes[name]
        tiling = Tiling.of(partition.size, size, patch) if name in partition.mosaic else None
        if tiling is None and name in self._fixed:
            tiling = Tiling.of_one(partition.size, size, patch)
        size = tiling.size if tiling else size
        vertical, horizontal = (
            round(partition.shift * (side / patch) / (student_side / self.patch_size))
            for side, student_side in zip(size, partition.size, strict=True)
        )
        return Frame(size, patch, (vertical, horizontal), tiling)

    def largest_size(self, partition: Partition) -> tuple[int, int]:
        """(height, width) px: the largest of each at which a model of the partition needs the images."""
        frames = [self.student_frame(partition), *(self.teacher_frame(name, partition) for name in partition.teachers)]
        return max(frame.canvas[0] for frame in frames), max(frame.canvas[1] for frame in frames)

    def of(self, images: Tensor, partition: Partition, draws: Tensor | None = None) -> Views:
        """The views of all models.

        images: uint8 [B, 3, H, W] on the device, or float in [0, 1]. draws: float32 [B, 8], random numbers of the images, from which shifts
        are drawn; None where the partition has none.
        """
        floats = to_float(images)
        resized: dict[tuple[int, int], Tensor] = {}

        def view(frame: Frame, number: int) -> View:
            if frame.canvas not in resized:
                resized[frame.canvas] = resize(floats, frame.canvas)
            if not any(frame.margin):
                return View(resized[frame.canvas])
            assert draws is not None, "shifts are drawn from the random numbers of the images"
            return _window(resized[frame.canvas], frame, uniform(draws, range(SHIFTS + 2 * number, SHIFTS + 2 * number + 2)))

        student = view(self.student_frame(partition), 0)
        teachers: dict[str, View] = {}
        for number, name in enumerate(partition.teachers, 1):
            frame = self.teacher_frame(name, partition)
            seen = view(frame, number)
            if frame.tiling is not None:
                seen = seen._replace(images=frame.tiling.compose(seen.images, self._colors[name]), tiling=frame.tiling)
            teachers[name] = seen
        return Views(student, teachers)


def _window(images: Tensor, frame: Frame, draws: Tensor) -> View:
    """The part of each image [B, 3, *canvas] that the frame shows, moved by whole patches. draws: [2, B] in [0, 1), down and right."""
    edges: list[Tensor] = []
    for axis, (side, margin) in enumerate(zip(frame.size, frame.margin, strict=True)):
        first = (draws[axis] * (2 * margin + 1)).long() * frame.patch_size
        places = first[:, None] + torch.arange(side, device=images.device)
        images = images.take_along_dim(places[:, None, :, None] if axis == 0 else places[:, None, None, :], 2 + axis)
        edges.append(first.double() / frame.canvas[axis])
    height, width = (side / whole for side, whole in zip(frame.size, frame.canvas, strict=True))
    return View(images, Region(edges[0], edges[1], height, width))
