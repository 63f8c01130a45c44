"""Starts a ViT student from other weights: a timm model, a safetensors file, or a model folder; never a pickle."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn

from ..errors import UserError, brief, nearest
from ..files import read_json
from ..libraries import first_line
from ..names import not_found, recognise
from ..tensors import read_tensors
from .base import CLIP_MEAN, CLIP_STD, StartReport

EMBEDDER = "patch_generator.embedder.weight"
TABLE = "patch_generator.pos_embed"
TOKENS = "patch_generator.cls_token.token"


class Source(NamedTuple):
    """Weights as they were found."""

    name: str
    tensors: dict[str, Tensor]
    config: Mapping[str, Any]
    """Of timm: the pretrained configuration with `mean` and `std`; of a model folder: its config.json."""


class Weights(NamedTuple):
    """Weights in the student's own names, before they are fitted to its shapes."""

    tensors: dict[str, Tensor]
    num_summaries: int
    """Of the rows of the prefix tokens, how many at the front are summaries."""
    unused: tuple[str, ...]
    adapted: frozenset[str] = frozenset()
    """Names of tensors that are not the source's own any more."""


def start_from(student: nn.Module, source: str) -> StartReport:
    """Fills the student's parameters, in place, as far as `source` has them.

    source: a timm model name (fetched through the hub unless it is cached), a .safetensors file in timm's or the published RADIO layout,
    or a folder with config.json and model.safetensors. Position tables and patches of another size are resampled; timm's bias of the
    patches and its normalisation of the images are folded into the patches and the position table, exactly where positions are not
    dropped.
    Raises UserError where nothing is there, nothing fits, or the weights cannot be fetched.
    """
    origin = _read(source)
    parameters = dict(student.named_parameters())
    if "patch_embed.proj.weight" in origin.tensors:
        weights = _from_timm(origin, "blocks.0.mlp.w12.weight" in parameters)
    else:
        weights = _from_radio(origin)
    num_summaries = int(student.num_summaries)  # pyright: ignore[reportArgumentType]
    fitted = _fit(weights, parameters, num_summaries)
    taken = {name for name, tensor in fitted.items() if name in parameters and tensor.shape == parameters[name].shape}
    if not any(name.startswith("blocks.") for name in taken):
        width = weights.tensors[TABLE].shape[-1] if TABLE in weights.tensors else "unknown"
        raise UserError(
            f"start_from {source}: its width is {width}, the student's {parameters[TABLE].shape[-1]}; no block fits, set size to match"
        )
    with torch.no_grad():
        for name in taken:
            parameters[name].copy_(fitted[name])
    untouched = {name for name in taken - weights.adapted if fitted[name] is weights.tensors.get(name)}
    return StartReport(
        origin.name,
        matched=tuple(name for name in parameters if name in untouched),
        changed=tuple(name for name in parameters if name in taken - untouched),
        left=tuple(name for name in parameters if name not in taken),
        unused=(*weights.unused, *(name for name in weights.tensors if name not in parameters and not name.endswith(".gamma"))),
    )


def _read(source: str) -> Source:
    origin = recognise(source)
    path = origin.path
    try:
        if origin.kind == "folder":
            return Source(source, read_tensors(path / "model.safetensors"), _config(path / "config.json"))
        if origin.kind == "file" and path.suffix == ".safetensors":
            beside = path.with_name("config.json")
            return Source(source, read_tensors(path), _config(beside) if beside.exists() else {})
    except UserError as error:
        raise UserError(*(f"start_from {problem}" for problem in error.problems)) from None
    if origin.kind == "file":
        way = "a RADIO checkpoint: student: {type: model, path: ...}; else give a .safetensors file, a model folder or a timm model name"
        raise UserError(f"start_from {source}: this file is no .safetensors file, and pickled weights are not read here; for {way}")
    if origin.kind not in ("word", "hub") or origin.text.endswith(".safetensors"):
        raise UserError(f"start_from {source}: {not_found(origin, 'a .safetensors file, a model folder or a timm model name')}")
    name = origin.text.removeprefix("timm/") if timm.is_model(origin.text.removeprefix("timm/").split(".")[0]) else origin.text
    return _from_hub(f"hf-hub:{name}" if "/" in name else name)


def _config(path: Path) -> Mapping[str, Any]:
    config = read_json(path)
    stated = config.get("pretrained_cfg", config)
    if not isinstance(stated, dict):
        raise UserError(f"{path}: pretrained_cfg: found {type(stated).__name__}, it is an object; copy or download the file again")
    for key in ("mean", "std"):
        value = stated.get(key, CLIP_MEAN)
        if not (isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(number, (int, float)) for number in value)):
            raise UserError(f"{path}: {key}: found {brief(value)}, three numbers are expected; copy or download the file again")
    return stated


def _from_hub(name: str) -> Source:
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        raise UserError(f"start_from {name}: timm has no such model; {nearest(name.split('.')[0], timm.list_models('*vit*'))}")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub, the network, the disk: many kinds, all for the user to mend
        way_out = "give a downloaded .safetensors file in its place, or allow the network"
        raise UserError(f"start_from {name}: its weights cannot be fetched ({first_line(error)}); {way_out}") from None
    return Source(name, dict(model.state_dict()), dict(model.pretrained_cfg))  # pyright: ignore[reportArgumentType,reportCallIssue]


def _from_radio(origin: Source) -> Weights:
    """The layout of our folders (`student.*`) and of the published RADIO files, whatever stands before `patch_generator`."""
    prefix = next((name.removesuffix(TABLE) for name in origin.tensors if name.endswith(TABLE)), None)
    if prefix is None:
        raise UserError(f"start_from {origin.name}: neither a timm ViT nor a RADIO ViT (no '{TABLE}' inside); give the weights of a ViT")
    renamed = {n.removeprefix(prefix).replace(".grandma", ".gamma"): t for n, t in origin.tensors.items() if n.startswith(prefix)}
    num_prefix = len(renamed[TOKENS]) if TOKENS in renamed else 0
    stated = origin.config.get("num_summaries")
    others = tuple(name for name in origin.tensors if not name.startswith(prefix))
    return Weights(renamed, stated if isinstance(stated, int) else num_prefix, others)


def _from_timm(origin: Source, swiglu: bool) -> Weights:
    """timm's `VisionTransformer`: a convolution with bias, positions that may cover the prefix, a final norm.

    swiglu: whether the MLPs are; timm calls their layers as those of other MLPs.
    """
    tensors = origin.tensors
    if swiglu:
        tensors = {name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3."): tensor for name, tensor in tensors.items()}
    ours = {name: t for name, t in tensors.items() if name.startswith(("blocks.", "norm."))}
    weight = tensors["patch_embed.proj.weight"].double()
    # (x - m') / s' of timm in terms of (x - m) / s of the student
    mean, std = (torch.tensor(values, dtype=torch.double) for values in (CLIP_MEAN, CLIP_STD))
    its_mean, its_std = (
        torch.tensor(origin.config.get(k, default), dtype=torch.double) for k, default in (("mean", CLIP_MEAN), ("std", CLIP_STD))
    )
    bias = torch.einsum("dcyx,c->d", weight, (mean - its_mean) / its_std)
    bias += tensors.get("patch_embed.proj.bias", torch.zeros(len(weight))).double()
    ours[EMBEDDER] = (weight * (std / its_std)[:, None, None]).flatten(1).float()
    prefix = [tensors[name][0] for name in ("cls_token", "reg_token") if name in tensors]
    tokens = torch.cat(prefix) if prefix else torch.zeros(0, len(weight))
    if "pos_embed" in tensors:
        positions = tensors["pos_embed"][0]
        counts = (0, len(tensors["cls_token"][0]) if "cls_token" in tensors else 0, len(tokens))
        covered = next((n for n in counts if math.isqrt(len(positions) - n) ** 2 == len(positions) - n), None)
        if covered is None:
            raise UserError(
                f"start_from {origin.name}: its position table of {len(positions)} is not square; give a model of square images"
            )
        tokens = torch.cat([tokens[:covered] + positions[:covered], tokens[covered:]])
        ours[TABLE] = (positions[covered:].double() + bias).float()[None]
    if len(tokens):
        ours[TOKENS] = tokens
    used = {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "reg_token", "pos_embed", *ours}
    unused = tuple(name for name in tensors if name not in used)
    return Weights(ours, int("cls_token" in tensors), unused, frozenset({EMBEDDER, TABLE, TOKENS}))


def _fit(weights: Weights, parameters: Mapping[str, Tensor], num_summaries: int) -> dict[str, Tensor]:
    """The weights brought to the student's patch size, table, tokens and use of LayerScale; what needs no change is the same tensor."""
    fitted = dict(weights.tensors)
    if EMBEDDER in fitted and len(fitted[EMBEDDER]) == len(parameters[EMBEDDER]):
        fitted[EMBEDDER] = _fit_patches(fitted[EMBEDDER], parameters[EMBEDDER])
    if TABLE in fitted:
        fitted[TABLE] = _fit_table(fitted[TABLE], parameters[TABLE])
    if TOKENS in fitted and fitted[TOKENS].shape[1] == parameters[TOKENS].shape[1]:
        fitted[TOKENS] = _fit_tokens(fitted[TOKENS], weights.num_summaries, parameters[TOKENS], num_summaries)
    for name in parameters:
        if (
            name.endswith(".gamma")
            and name not in fitted
            and name.replace("ls1.gamma", "norm1.weight").replace("ls2.gamma", "norm2.weight") in fitted
        ):
            fitted[name] = torch.ones_like(parameters[name])
    for name, gamma in weights.tensors.items():
        if name.endswith(".gamma") and name not in parameters:
            _fold_layer_scale(fitted, name, gamma)
    return fitted


def _fold_layer_scale(fitted: dict[str, Tensor], name: str, gamma: Tensor) -> None:
    mlp = "mlp.w3" if name.replace("ls2.gamma", "mlp.w3.weight") in fitted else "mlp.fc2"
    layer = name.replace("ls1.gamma", "attn.proj").replace("ls2.gamma", mlp)
    if f"{layer}.weight" in fitted:
        fitted[f"{layer}.weight"] = fitted[f"{layer}.weight"] * gamma[:, None]
        fitted[f"{layer}.bias"] = fitted[f"{layer}.bias"] * gamma


def _fit_patches(patches: Tensor, target: Tensor) -> Tensor:
    """[D, 3*p*p] -> the student's patch size, so that a resized image gives nearly the same tokens (FlexiViT)."""
    if patches.shape == target.shape:
        return patches
    side, own_side = (math.isqrt(t.shape[1] // 3) for t in (patches, target))
    return resample_patch_embed(patches.reshape(-1, 3, side, side), [own_side, own_side]).flatten(1)


def _fit_table(table: Tensor, target: Tensor) -> Tensor:
    """[1, r*r, D] -> the student's side, bicubic: it passes through the old positions, which bilinear would flatten."""
    side, own_side = math.isqrt(table.shape[1]), math.isqrt(target.shape[1])
    if side == own_side:
        return table
    grid = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, (own_side, own_side), mode="bicubic").flatten(2).transpose(1, 2)


def _fit_tokens(tokens: Tensor, its_summaries: int, target: Tensor, num_summaries: int) -> Tensor:
    """Summaries to summaries, registers to registers; a lone summary starts all of the student's; the rest stays random."""
    if tokens.shape == target.shape and its_summaries in (num_summaries, len(tokens)):
        return tokens
    fitted = target.detach().clone()
    summaries, registers = tokens[:its_summaries], tokens[its_summaries:]
    if its_summaries == 1:
        summaries = summaries.expand(num_summaries, -1)
    n, r = min(len(summaries), num_summaries), min(len(registers), len(target) - num_summaries)
    fitted[:n] = summaries[:n]
    fitted[num_summaries : num_summaries + r] = registers[:r]
    return fitted
