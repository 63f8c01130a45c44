"""A model as NVIDIA publishes it, between the files it lies in and our network."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from ...students.base import CLIP_MEAN, CLIP_STD

OWN_MEAN, OWN_STD = (torch.tensor(values, dtype=torch.float64) for values in (CLIP_MEAN, CLIP_STD))
"""How our students normalise RGB in [0, 1]."""


WHOLE, MAPPING, LIST = (int, type(None)), (dict, type(None)), (list, tuple, type(None))
EXPECTED = {"model": (str,), "model_kwargs": MAPPING, "cpe_max_size": WHOLE, "teachers": LIST, "input_size": LIST}
OF_TEACHER = {"token_slot": WHOLE, "fd_upsample_factor": WHOLE}
OF_MODEL = {"embed_dim": WHOLE, "depth": WHOLE, "num_heads": WHOLE}
"""Setting -> the types that it may have, of those that are read."""


class Published(NamedTuple):
    """Weights under our names, and the settings of the training that come with them."""

    settings: Mapping[str, Any]
    """The training's command line: `args` of the checkpoint or of config.json."""
    weights: dict[str, Tensor]
    """By the names of our network (`student.*`, `heads.NAME.summary.*`, `heads.NAME.spatial.*`, `rotation.*`,
    `block_normalizer.*`)."""
    conditioner: Mapping[str, Tensor]
    """`norm_mean` and `norm_std` of RGB in [0, 1], 3 numbers each."""
    prefixes: Mapping[str, str]
    """Start of our name -> start of the file's name, for every group of weights there is."""
    ignored_keys: tuple[str, ...] = ()
    """Names in the file of what does nothing and was left out."""

    def name_in_file(self, key: str) -> str:
        """The name in the file of the weight that is `key` here."""
        start = next((start for start in sorted(self.prefixes, key=len, reverse=True) if key.startswith(start)), "")
        return self.prefixes.get(start, "") + key[len(start) :]

    def below(self, start: str) -> dict[str, Tensor]:
        """The weights whose name begins with `start`, without it."""
        return {key.removeprefix(start): tensor for key, tensor in self.weights.items() if key.startswith(start)}


def to_our_names(state: Mapping[str, Tensor], groups: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file under our names, and the groups that occur. groups: start of our name -> start of the file's name.

    A name that belongs to no group stays as it is, and is reported as unknown when the network is filled.
    """
    weights: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    by_length = sorted(groups.items(), key=lambda pair: len(pair[1]), reverse=True)
    for key, tensor in state.items():
        ours, theirs = next(((ours, theirs) for ours, theirs in by_length if key.startswith(theirs)), ("", ""))
        weights[ours + key.removeprefix(theirs).replace(".grandma", ".gamma")] = tensor
        used[ours] = theirs
    return weights, used


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raises UserError that names every setting of a type that no published file has."""
    teachers = settings.get("teachers")
    groups = [("", settings, EXPECTED), ("model_kwargs.", settings.get("model_kwargs"), OF_MODEL)]
    groups += [(f"teachers.{n}.", teacher, OF_TEACHER) for n, teacher in enumerate(teachers if isinstance(teachers, (list, tuple)) else [])]
    wrong = [
        f"{where}: args.{start}{key}: {group[key]!r} is no value of a RADIO model"
        for start, group, expected in groups
        if isinstance(group, Mapping)
        for key, types in expected.items()
        if key in group and not isinstance(group[key], types)
    ]
    sizes = settings.get("input_size")
    if isinstance(sizes, (list, tuple)) and not all(isinstance(size, int) for size in sizes):
        wrong.append(f"{where}: args.input_size: {sizes!r} is no value of a RADIO model")
    if wrong:
        raise UserError(*wrong)


def square_root(number: int, what: str) -> int:
    """The side of a square of `number`; raises UserError where it is none."""
    side = math.isqrt(number)
    if side * side != number:
        raise UserError(f"{what}: {number} is not a square number; the file is not a RADIO ViT")
    return side


def same_conditioner(published: Published, where: str) -> bool:
    """Whether images are normalised as ours are. Half files hold rounded numbers: they count as the ones that were rounded."""
    missing = [key for key in ("norm_mean", "norm_std") if key not in published.conditioner]
    if missing:
        raise UserError(*(f"{where}: input_conditioner.{key} is missing; the file is not whole" for key in missing))
    mean, std = (published.conditioner[key].double().flatten() for key in ("norm_mean", "norm_std"))
    if mean.shape != OWN_MEAN.shape or std.shape != OWN_STD.shape:
        raise UserError(f"{where}: input_conditioner: {mean.numel()} means and {std.numel()} deviations; an RGB image has 3 of each")
    tolerance = 2 * torch.finfo(published.conditioner["norm_mean"].dtype).eps
    return torch.allclose(mean, OWN_MEAN, tolerance, 0) and torch.allclose(std, OWN_STD, tolerance, 0)
