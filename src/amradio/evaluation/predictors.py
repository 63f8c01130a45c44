"""Student, heads and teachers behind one signature: RGB images of any size in [0, 1] -> Features."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from ..features import Features
from ..images import central_square, centre_crop, resize, scaled
from ..model import Model
from ..teachers.base import Teacher
from .inputs import Counts, Recorded
from .tiling import Tiled, only_side

Answer = TypeVar("Answer")
Framing = Literal["crop", "square", "whole"]
"""crop: the model's own pipeline for recognition (short side, central square; `Teacher.prepare`). square: the central square, resized to
each model's size, as in training: all models see the same. whole: all of the image with its aspect, so that the map covers the image from
edge to edge; models of one square size see it in overlapping squares (`Tiled`)."""
Sizes = int | Mapping[str, int] | None
"""px of the short side of the views: one for all rows, or by the name of the row; None, or a row without one: the size to prefer."""
LONGEST = 4
"""A whole view is at most this many times as long as its short side, as in the published segmentation: beyond, its short side
is smaller."""
Predict = Mapping[str, Callable[[Tensor], Features]]
"""By name (`student`, `student/<head>`, `teacher/<name>`): float RGB [B, 3, H, W] in [0, 1] of any size -> float32 Features."""


class Joint:
    """A model with one or several outputs; the last batch is remembered, so that it is computed once for all of them."""

    def __init__(
        self,
        prepare: Callable[[Tensor], Tensor],
        model: Callable[[Tensor], Features],
        view: Hashable,
        autocast: torch.dtype | None = None,
        tiled: Tiled | None = None,
    ):
        """Keeps the functions; no model runs.

        Args:
            prepare: from images [B, 3, H, W] in [0, 1] of any size to a legal size.
            model: from images of a legal size to features.
            view: a key, equal for equal preparations of this model, under which features are cached.
            autocast: precision, None for that of the weights.
            tiled: cuts images into squares, for models of one square size.
        """
        self.recorded = Recorded(model)
        encode = self.recorded if tiled is None else partial(tiled.encode, model=self.recorded)
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
            features = self._encode(prepared)
            features = head(features) if head is not None else features
        return Features(*(None if kind is None else kind.float() for kind in features))

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


class Predictors(Mapping[str, Predictor]):
    """The rows of an evaluation, as the harness hands them over: read-only, in a fixed order."""

    def __init__(self, build: Callable[[Sizes], Mapping[str, Predictor]], sizes: Sizes, names: Sequence[str] | None = None):
        """Builds the predictors; no model runs.

        Args:
            build: from px of the short side to all rows (see `predictors`).
            sizes: px of the short side of the views.
            names: the rows in their order, None for all that there are; a KeyError for one that is not there.
        """
        self._build, self._sizes, self._names = build, sizes, names
        rows = build(sizes)
        self._rows = {name: rows[name] for name in (rows if names is None else names)}

    def __getitem__(self, name: str) -> Predictor:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, sizes: Sizes) -> "Predictors":
        """The same rows and view at other sizes, px of the short side."""
        return Predictors(self._build, sizes, self._names)

    def only(self, names: Sequence[str]) -> "Predictors":
        """Some of the rows, in the order of `names`."""
        return Predictors(self._build, self._sizes, names)


def predictors(
    model: Model | None, teachers: Mapping[str, Teacher], sizes: Sizes, view: Framing, autocast: torch.dtype | None = None
) -> dict[str, Predictor]:
    """`student`, `student/<head>` for every head, `teacher/<name>`; the student is computed once for all heads of one size and one batch.

    sizes: without one, the student sees the size that its config prefers (else that of the image), and so do teachers that take any size.
    In `crop` views teachers see what their own library makes of the image. autocast: precision, None for each model's own.
    """
    rows: dict[str, Predictor] = {}
    if model is not None:
        joints: dict[int | None, Joint] = {}
        for name in ("student", *(f"student/{head}" for head in model.heads)):
            size = _size(sizes, name, model)
            if size not in joints:
                tiled = _tiled(view, model.nearest_size, model.patch_size)
                prepare = tiled.prepare if tiled else _student_view(model, size, view)
                joints[size] = Joint(prepare, model, (view, size), autocast, tiled)
            head = name.removeprefix("student").removeprefix("/")
            if head and model.network.reads_blocks([head]):  # which the model's own features do not have
                tiled = _tiled(view, model.nearest_size, model.patch_size)
                prepare = tiled.prepare if tiled else _student_view(model, size, view)
                rows[name] = Predictor(Joint(prepare, _only(model, head), (view, size, head), autocast, tiled))
                continue
            rows[name] = Predictor(joints[size], model.network.heads[head] if head else None)
    for name, teacher in teachers.items():
        size = _size(sizes, f"teacher/{name}", model)
        tiled = _tiled(view, teacher.size_for, teacher.patch_size)
        seen = (view, None if view == "crop" else size)
        prepare = tiled.prepare if tiled else _teacher_view(teacher, size, view)
        rows[f"teacher/{name}"] = Predictor(Joint(prepare, teacher, seen, autocast, tiled))
    return rows


def _only(model: Model, head: str) -> Callable[[Tensor], Features]:
    """What one head predicts."""
    return lambda images: model(images, heads=[head])[head]


def inputs_of(predict: Predict) -> dict[str, Counts]:
    """{row: sizes of the images that its model has received so far}; plain functions have none."""
    return {name: dict(call.joint.recorded.sizes) for name, call in predict.items() if isinstance(call, Predictor)}


def _tiled(view: Framing, legal: Callable[[int, int], tuple[int, int]], patch_size: int) -> Tiled | None:
    """Squares for the whole views of a model that takes no other size."""
    side = only_side(legal) if view == "whole" else None
    return Tiled(side, patch_size) if side is not None else None


def _size(sizes: Sizes, row: str, model: Model | None) -> int | None:
    named = sizes.get(row) if isinstance(sizes, Mapping) else sizes
    return named or (model.config.image_size if model is not None else None)


def _bounded(images: Tensor, image_size: int | None) -> tuple[int, int]:
    """As of `scaled`, the long side at most LONGEST times `image_size`; the short side is smaller then."""
    height, width = scaled(images, image_size)
    longest = LONGEST * (image_size or max(height, width))
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _student_view(model: Model, image_size: int | None, view: Framing) -> Callable[[Tensor], Tensor]:
    def whole(images: Tensor) -> Tensor:
        return resize(images, model.nearest_size(*_bounded(images, image_size)))

    def square(images: Tensor) -> Tensor:
        side = image_size or min(images.shape[-2:])
        return resize(central_square(images), model.nearest_size(side, side))

    def crop(images: Tensor) -> Tensor:
        side = image_size or min(images.shape[-2:])
        height, width = model.nearest_size(side, side)
        return resize(centre_crop(images, max(height, width)), (height, width))

    return {"crop": crop, "square": square, "whole": whole}[view]


def _teacher_view(teacher: Teacher, image_size: int | None, view: Framing) -> Callable[[Tensor], Tensor]:
    def whole(images: Tensor) -> Tensor:
        return resize(images, teacher.size_for(*_bounded(images, image_size)))

    def square(images: Tensor) -> Tensor:
        side = image_size or min(images.shape[-2:])
        return resize(central_square(images), teacher.size_for(side, side))

    return {"crop": teacher.prepare, "square": square, "whole": whole}[view]


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
