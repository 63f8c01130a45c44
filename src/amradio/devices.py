"""Devices of this machine and the precisions that they compute."""

import os

import torch

from .errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types of floating-point numbers by their names in settings."""


def find_device(name: str, key: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N`, `mps` -> a device of this machine; raises UserError where there is no such.

    key: the setting that has the name, for messages. Under `torchrun`, `cuda` is the GPU of this process's number on its machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{key}: '{name}' is not a device; write auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"{key}: cuda was asked for, but this machine has no CUDA GPU that torch can use; write {key}=cpu")
        count = torch.cuda.device_count()
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= count:
            raise UserError(f"{key}: cuda:{index} was asked for, but this machine has {count} GPUs; write cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", index)
    if device.type not in ("cpu", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"{key}: '{name}' is not on this machine; write {key}=cpu")
    return device


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype for a precision of EngineSettings, None for float32."""
    if precision == "float32" or (precision == "auto" and not computes_bfloat16(device)):
        return None
    return torch.bfloat16


def in_hardware(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device multiplies matrices of `dtype` in hardware; what it emulates is several times slower than float32."""
    if dtype is torch.bfloat16:
        return computes_bfloat16(device)
    return dtype is not torch.float16 or device.type != "cpu"


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
