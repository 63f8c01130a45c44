"""Starts a backbone of timm from weights: timm's own through the hub, or a file; never a pickle."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..libraries import first_line
from ..names import not_found, recognise
from ..tensors import read_tensors
from .base import StartReport

HUB = "hub"
OURS = "student.trunk."
"""What stands before timm's names in a model folder of ours."""


def start_trunk(trunk: nn.Module, model: str, source: str, options: Mapping[str, Any]) -> StartReport:
    """Fills a backbone of timm in place; windows and position tables of another size are fitted by timm.

    trunk: built by timm from `model` with `options`, without a classifier. source: `hub`, a .safetensors file or a folder with
    model.safetensors. Raises UserError where it cannot be fetched or read, or nothing in it fits.
    """
    if source == HUB:
        return _fill(trunk, _from_hub(model, options), f"timm's {model}")
    origin = recognise(source)
    wanted = f"'{HUB}', a .safetensors file or a folder with model.safetensors (timm's name of the weights stands in student.model)"
    if origin.kind == "file" and origin.path.suffix != ".safetensors":
        raise UserError(f"student.start_from: {source}: this file is no .safetensors file, and pickled weights are not read; give {wanted}")
    if origin.kind not in ("file", "folder"):
        raise UserError(f"student.start_from: {source}: {not_found(origin, wanted)}")
    try:
        tensors = read_tensors(origin.path / "model.safetensors" if origin.kind == "folder" else origin.path)
    except UserError as error:
        raise UserError(*(f"student.start_from: {problem}" for problem in error.problems)) from None
    if any(name.startswith(OURS) for name in tensors):
        tensors = {name.removeprefix(OURS): tensor for name, tensor in tensors.items() if name.startswith(OURS)}
    return _fill(trunk, _fitted(model, tensors, options, source), source, tensors)


def _from_hub(model: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        return dict(timm.create_model(model, pretrained=True, **options).state_dict())
    except Exception as error:  # the hub, the network, the disk: many kinds, all for the user to mend
        way_out = "give a downloaded .safetensors file in its place, or allow the network"
        raise UserError(f"student.start_from: timm's weights of {model} cannot be fetched ({first_line(error)}); {way_out}") from None


def _fitted(model: str, tensors: Mapping[str, Tensor], options: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """What timm makes of the tensors of a file: names of older versions are translated, tables of another size resampled."""
    overlay = {"state_dict": dict(tensors), "custom_load": False}
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            random = timm.create_model(model, num_classes=0, **options).state_dict()
            torch.manual_seed(0)
            loaded = timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **options).state_dict()
    except Exception as error:  # as above: a shape that timm cannot fit, a name that its filter misses
        raise UserError(f"student.start_from: {source} does not fit timm's {model}: {first_line(error)}") from None
    # what timm found no weights for it leaves at random, without a word: it is then as in the other model of the same seed
    return {name: tensor for name, tensor in loaded.items() if name in tensors or not torch.equal(tensor, random[name])}


def _fill(trunk: nn.Module, weights: Mapping[str, Tensor], source: str, file: Mapping[str, Tensor] | None = None) -> StartReport:
    """Copies what fits. file: the tensors as they were read, where `weights` may be translated or resampled."""
    parameters = trunk.state_dict()
    taken = [name for name in parameters if name in weights and weights[name].shape == parameters[name].shape]
    if not taken:
        raise UserError(f"student.start_from: nothing in {source} has a name and shape of this backbone; give the weights of student.model")
    with torch.no_grad():
        for name in taken:
            parameters[name].copy_(weights[name])
    file = weights if file is None else file
    same = {name for name in taken if name in file and file[name].shape == parameters[name].shape}
    return StartReport(
        source,
        matched=tuple(name for name in taken if name in same),
        changed=tuple(name for name in taken if name not in same),
        left=tuple(name for name in parameters if name not in taken),
        unused=tuple(name for name in file if name not in parameters),
    )
