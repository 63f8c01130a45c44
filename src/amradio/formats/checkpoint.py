"""Checkpoint files of torch.save, read without running anything that is in them."""

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError

ALLOWED = (argparse.Namespace,)
"""Classes that a checkpoint may hold beyond those that torch allows (tensors, dtypes, plain containers); none runs anything."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80\x02"
"""How files of torch.save begin, and those of torch before 1.6."""


def looks_like_checkpoint(path: Path) -> bool:
    """Whether the file begins as torch.save's do; a cut one does too."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return start == ZIP or start[:2] == PICKLE


def read_checkpoint(path: Path) -> Any:
    """What the file holds; tensors are on the CPU and read from the file when they are used, so it must not be written to meanwhile.

    Raises UserError where it is damaged, or wants anything beyond `ALLOWED` to be called.
    """
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the reader of a damaged file raises whatever its parts do
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"(?:global|function|class) ([\w.]+\.\w+)", str(error))
        if "weights_only" in str(error).lower() or "Weights only" in str(error):
            what = f"it asks for '{wanted[1]}'" if wanted else "it asks for more than tensors and plain values"
            raise UserError(f"{path}: {what} on being read, which a checkpoint of weights never needs; nothing was run") from None
        raise UserError(f"{path}: not a whole checkpoint of torch ({_first_line(error)}); copy it again") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". This is")[0] if lines else type(error).__name__
