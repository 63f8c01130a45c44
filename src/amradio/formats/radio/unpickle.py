"""Checkpoint files of torch.save, read without running anything that is in them."""

import argparse
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ...libraries import NO_PICKLE, first_line
from ...tensors import check_archive, check_weights

ALLOWED = (argparse.Namespace,)
"""Classes that a checkpoint may hold beyond those that torch allows (tensors, dtypes, plain containers); none runs anything."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80\x02"
"""How files of torch.save begin, and those of torch before 1.6."""
PICKLES = 4
"""Before the weights in a file of torch before 1.6: a mark, a version, the machine, the list of tensors."""
MOST_OPERATIONS = 2_000_000
"""Of the pickles together: a checkpoint of 10,000 tensors has less than a million."""


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

    Raises UserError where it is damaged, unpacks to more than it is, or wants anything beyond `ALLOWED` to be called.
    """
    check_weights(path)
    archive = zipfile.is_zipfile(path)
    if archive:
        check_archive(path)
    else:
        _check_pickles(path)
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # the reader of a damaged file raises whatever its parts do
        reason = first_line(error)
        if NO_PICKLE in reason:
            raise UserError(f"{path}: {reason}") from None
        raise UserError(f"{path}: not a whole checkpoint of torch ({reason.split('. This is')[0]}); copy it again") from None


def _check_pickles(path: Path) -> None:
    """Raises UserError where the pickles of a file of torch before 1.6 (or of one that pretends to be) are damaged or very long."""
    left = MOST_OPERATIONS
    try:
        with path.open("rb") as file:
            for _ in range(PICKLES):
                for _ in pickletools.genops(file):
                    left -= 1
                    if not left:
                        raise UserError(f"{path}: it lists more than {MOST_OPERATIONS:,} values before its weights; nothing of it was used")
    except (ValueError, OSError, IndexError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise UserError(f"{path}: not a whole checkpoint of torch ({first_line(error)}); copy it again") from None
