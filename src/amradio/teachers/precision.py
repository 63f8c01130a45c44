"""Half-precision weights with norms in float32: norms in half precision collapse the features of some teachers."""

import torch
from torch import Tensor, nn

from ..devices import DTYPES
from .settings import Precision

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_POSITIONS = ("rope", "rotary")
"""Angles of rotary positions are meaningless in 8 bits of mantissa; these modules cast their own outputs."""
_POSITION_BUFFER = "position_ids"
"""Coordinates, of which SAM 3 has fractions; they go into rotary positions only."""


def cast(model: nn.Module, precision: Precision) -> torch.dtype:
    """Casts parameters and buffers of `model` in place, all but those of norms and rotary positions, and returns the dtype.

    Norms get float32 inputs and hand their outputs on in the dtype of the rest, by hooks.
    """
    dtype = torch.float32 if precision == "auto" else DTYPES[precision]  # a run decides on `auto` before (`TeacherSettings.at`)
    if dtype is not torch.float32:
        _cast(model, dtype)
    return dtype


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    name = type(module).__name__.lower()
    if _is_norm(module):
        module.float()
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
        module.register_forward_hook(lambda _, __, output: output.to(dtype))
        return
    if any(word in name for word in _POSITIONS) and not any(isinstance(part, nn.Linear) for part in module.modules()):
        return  # attention with rotary positions has such a name, too, and is cast
    for parameter in module.parameters(recurse=False):
        parameter.data = _cast_float(parameter.data, dtype)
    for key, buffer in module.named_buffers(recurse=False):
        if key != _POSITION_BUFFER:
            module._buffers[key] = _cast_float(buffer, dtype)
    for child in module.children():
        _cast(child, dtype)


def _is_norm(module: nn.Module) -> bool:
    """By type; or by name, where the module mixes no channels (some libraries write their own norms)."""
    if isinstance(module, _NORMS):
        return True
    mixes = any(parameter.dim() > 1 for parameter in module.parameters())
    return "norm" in type(module).__name__.lower() and not mixes and any(True for _ in module.parameters())


def _cast_float(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
