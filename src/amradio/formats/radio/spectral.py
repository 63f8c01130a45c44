"""Spectral reparametrisation of published checkpoints: the weights as they act, the parametrisation gone."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError

ORIGINAL = ".parametrizations.weight.original"
LEAST_SCALE = 0.05


def realise(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The state dict with `P.parametrizations.weight.*` replaced by `P.weight`.

    W' = scale W / (u^T W v), with u and v as stored; scale is softplus(s) + 0.05 in version 2 and s in version 1. A fused layer (q, k, v)
    is scaled in as many equal parts as it has scales. A parametrisation without a scale (DAMP, which only adds noise in training) leaves
    W as it is. Raises UserError where a part is missing.
    """
    weights = {key: tensor for key, tensor in state.items() if ".parametrizations." not in key}
    for key in state:
        if key.endswith(ORIGINAL):
            layer = key.removesuffix(ORIGINAL)
            start = f"{layer}.parametrizations.weight."
            inner = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
            weights[f"{layer}.weight"] = _acting(inner, f"{where}: {start}")
    if len(weights) == len(state):
        return dict(state)
    layers = {key.split(".parametrizations.")[0] for key in state if ".parametrizations." in key}
    lost = sorted(layer for layer in layers if f"{layer}.weight" not in weights)
    if lost:
        raise UserError(*(f"{where}: {layer}{ORIGINAL} is missing; the checkpoint is not whole" for layer in lost[:10]))
    return weights


def _acting(inner: Mapping[str, Tensor], where: str) -> Tensor:
    """inner: `original` and `N.scale`, `N._u`, `N._v`, `N._sn_version`, or the four below `N.parts.M`."""
    weight = inner["original"]
    scales = sorted((key for key in inner if re.fullmatch(r"\d+\.(parts\.\d+\.)?scale", key)), key=_number)
    if not scales:
        return weight
    missing = [
        f"{where}{key.removesuffix('scale')}{name}"
        for key in scales
        for name in ("_u", "_v")
        if key.removesuffix("scale") + name not in inner
    ]
    if missing or weight.shape[0] % len(scales):
        raise UserError(*(f"{key} is missing; the checkpoint is not whole" for key in missing or [f"{where}N.parts"]))
    chunks = weight.double().chunk(len(scales))
    parts: list[Any] = [_scaled(chunk, inner, key.removesuffix("scale")) for chunk, key in zip(chunks, scales, strict=True)]
    return torch.cat(parts).to(weight.dtype)


def _number(key: str) -> list[int]:
    return [int(part) for part in key.split(".") if part.isdigit()]


def _scaled(chunk: Tensor, inner: Mapping[str, Tensor], start: str) -> Tensor:
    version = int(inner.get(f"{start}_sn_version", torch.tensor(1)))
    scale = inner[f"{start}scale"].double()
    if version >= 2:
        scale = F.softplus(scale) + LEAST_SCALE
    sigma = inner[f"{start}_u"].double() @ chunk @ inner[f"{start}_v"].double()
    return chunk * (scale / sigma)
