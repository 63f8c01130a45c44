"""`amradio.load`."""

from pathlib import Path

import torch

from .. import formats
from ..devices import DTYPES
from ..errors import UserError
from ..network import cast_weights
from ..students.base import Student
from .model import Model


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype | str | None = None,
    align_corners: bool | None = None,
    window_size: int | None = None,
    student: Student | None = None,
) -> Model:
    """Loads a model in any format that `formats.FORMATS` reads, recognised by its content. Code in files is never run.

    Args:
        path: a model folder, a file or a run folder; where there is none, a model that comes with the package (`embedded/quickstart`), or
            `owner/name` or `owner/name@revision` on the hub.
        device: where the model goes: `cpu`, `cuda`, `cuda:1`, or a torch.device.
        dtype: of weights and features, `float32`, `bfloat16` or `float16`; None for that of the file.
        align_corners: how the position table of a ViT is stretched; None for what the file states.
        window_size: patches along the side of a window, see `Model.set_windows`; None for global attention.
        student: for a student of type `custom`, an object built like the one that was trained; it takes the weights.

    Raises UserError where there is no model or the hub refuses it, a file is damaged, weights and config do not fit, or the student has no
    such option.
    """
    wanted = _dtype(dtype)
    loaded = formats.read(path, align_corners, student)
    model = Model(loaded.config, loaded.network, loaded.ignored_keys)
    problems: list[str] = []
    if align_corners is not None and "align_corners" not in type(loaded.config.student).model_fields:
        problems.append(f"align_corners: a '{loaded.config.student.type}' student has no position table to stretch; leave it out")
    try:
        model.set_windows(window_size)
    except UserError as error:
        problems.extend(error.problems)
    if problems:
        raise UserError(*(f"{path}: {problem}" for problem in problems))
    if wanted is not None:
        cast_weights(model.network, wanted)
    return model.to(device)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and known not in DTYPES.values():
        raise UserError(f"dtype: found {dtype!r}; there is: {', '.join(DTYPES)}")
    return known
