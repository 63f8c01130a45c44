"""Student, heads and teachers behind one signature: RGB images of any size in [0, 1] -> Features."""

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from ..features import Features
from ..model import Model
from ..teachers.base import Teacher, resize

Answer = TypeVar("Answer")
View = Literal["crop", "whole"]
"""crop: the model's own pipeline for recognition (short side, central square; `Teacher.prepare`). whole: all of the image, resized to the
nearest legal size, so that the map covers the image from edge to edge."""
Predict = Mapping[str, Callable[[Tensor], Features]]
"""By name (`student`, `student/<head>`, `teacher/<name>`): float RGB [B, 3, H, W] in [0, 1] of any size -> float32 Features."""


class Joint:
    """A model, one or several outputs of which are asked for; the last batch is remembered, so that it is computed once."""

    def __init__(
        self,
        prepare: Callable[[Tensor], Tensor],
        encode: Callable[[Tensor], Features],
        view: Hashable,
        autocast: torch.dtype | None = None,
    ):
        """prepare: images of any size -> of a legal size; encode: of a legal size -> features.

        view: equal for equal preparations of this model, so that features can be kept under it.
        """
        self._prepare, self._encode = _Last(prepare), _Last(encode)
        self.view, self.autocast = view, autocast

    @torch.inference_mode()
    def prepare(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] of any size -> of a legal size."""
        return self._prepare(images)

    @torch.inference_mode()
    def encode(self, prepared: Tensor, head: Callable[[Features], Features] | None = None) -> Features:
        """Features in float32 of what `prepare` gave; those of `head` where there is one."""
        with torch.autocast(prepared.device.type, self.autocast, enabled=self.autocast is not None):
            found = self._encode(prepared)
            found = head(found) if head is not None else found
        return Features(*(None if kind is None else kind.float() for kind in found))

    def forget(self) -> None:
        """Drops what is remembered of the last batch."""
        self._prepare.last = self._encode.last = None


class Predictor:
    """One output of a model."""

    def __init__(self, joint: Joint, head: Callable[[Features], Features] | None = None):
        """head: what is laid on the model's features; None for these themselves."""
        self.joint, self.head = joint, head

    def __call__(self, images: Tensor) -> Features:
        """Float RGB [B, 3, H, W] in [0, 1] of any size -> float32 Features, made under inference mode."""
        return self.of_prepared(self.joint.prepare(images))

    def of_prepared(self, prepared: Tensor) -> Features:
        """The same of what `joint.prepare` gave."""
        return self.joint.encode(prepared, self.head)

    def fresh(self, prepared: Tensor) -> Features:
        """The same, computed anew: for clocks and counters."""
        self.joint.forget()
        return self.of_prepared(prepared)


def predictors(
    model: Model | None, teachers: Mapping[str, Teacher], image_size: int | None, view: View, autocast: torch.dtype | None = None
) -> Predict:
    """`student`, `student/<head>` for every head, `teacher/<name>`; the student is computed once for all heads of one batch tensor.

    image_size: px of the short side of the student's view, None for the size at which it was trained last (else that of the image).
    It is also the short side of the `whole` view of teachers that take any size. autocast: precision, None for each model's own.
    """
    found: dict[str, Callable[[Tensor], Features]] = {}
    if model is not None:
        image_size = image_size or model.config.image_size
        joint = Joint(_student_view(model, image_size, view), model, (view, image_size), autocast)
        found["student"] = Predictor(joint)
        found |= {f"student/{name}": Predictor(joint, model.network.heads[name]) for name in model.heads}
    for name, teacher in teachers.items():
        seen = (view, image_size if view == "whole" else None)
        found[f"teacher/{name}"] = Predictor(Joint(_teacher_view(teacher, image_size, view), teacher, seen, autocast))
    return found


def scaled(images: Tensor, short_side: int | None) -> tuple[int, int]:
    """(height, width) of [B, 3, H, W] with the short side brought to `short_side` px, aspect kept, rounded; unchanged for None."""
    height, width = images.shape[-2:]
    if short_side is None:
        return height, width
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)


def centre_crop(images: Tensor, image_size: int) -> Tensor:
    """[B, 3, H, W]: short side to `image_size` px (bicubic, antialiased), then the central square."""
    images = resize(images, scaled(images, image_size))
    top, left = (images.shape[-2] - image_size) // 2, (images.shape[-1] - image_size) // 2
    return images[..., top : top + image_size, left : left + image_size]


def _student_view(model: Model, image_size: int | None, view: View) -> Callable[[Tensor], Tensor]:
    def whole(images: Tensor) -> Tensor:
        return resize(images, model.nearest_size(*scaled(images, image_size)))

    def crop(images: Tensor) -> Tensor:
        side = image_size or min(images.shape[-2:])
        height, width = model.nearest_size(side, side)
        return resize(centre_crop(images, max(height, width)), (height, width))

    return crop if view == "crop" else whole


def _teacher_view(teacher: Teacher, image_size: int | None, view: View) -> Callable[[Tensor], Tensor]:
    def whole(images: Tensor) -> Tensor:
        return resize(images, teacher.size_for(*scaled(images, image_size)))

    return teacher.prepare if view == "crop" else whole


class _Last(Generic[Answer]):
    """A function of one tensor that remembers its last answer for as long as the very same tensor comes again, unchanged."""

    def __init__(self, function: Callable[[Tensor], Answer]):
        self.function = function
        self.last: tuple[Tensor, int, Answer] | None = None

    def __call__(self, images: Tensor) -> Answer:
        version = -1 if images.is_inference() else images._version  # tensors of inference mode keep no count of changes
        if self.last is None or self.last[0] is not images or self.last[1] != version:
            self.last = (images, version, self.function(images))
        return self.last[2]
