"""Checkpoints: written aside, then renamed, so that the last one is always whole."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..tensors import write_tensors

PREFIX = "step_"


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_000001000/` ..., and `last`, a link to the newest."""

    def __init__(self, folder: Path, keep: int):
        """keep: how many of the newest stay."""
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], optimizer: dict[str, Any], state: dict[str, Any]) -> Path:
        """Writes one checkpoint: `tensors` as NAME.safetensors, the optimizer's state as a pickle without code, `state` as JSON.

        Raises UserError where the disk is full or the folder cannot be written; earlier checkpoints stay as they are.
        """
        final = self.folder / f"{PREFIX}{step:09d}"
        aside = self.folder / f".{final.name}.part"
        with disk_errors(self.folder), _gone_on_failure(aside):
            for stale in self.folder.glob(f".{PREFIX}*.part"):  # of a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            aside.mkdir(parents=True)
            for name, values in tensors.items():
                write_tensors(values, aside / f"{name}.safetensors")
            torch.save(optimizer, aside / "optimizer.pt")
            (aside / "state.json").write_text(json.dumps({"step": step} | state, indent=1))
            for file in aside.iterdir():
                to_disk(file)
            if final.exists():  # the same step once more, after a resume
                shutil.rmtree(final)
            aside.rename(final)
            self._point_last_to(final)
            to_disk(self.folder)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.folder / f"{PREFIX}{old:09d}", ignore_errors=True)
        return final

    def _point_last_to(self, final: Path) -> None:
        link = self.folder / ".last.part"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        link.replace(self.folder / "last")

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, ascending."""
        found = self.folder.glob(f"{PREFIX}*/state.json")
        return sorted(int(file.parent.name.removeprefix(PREFIX)) for file in found)

    def load(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]] | None:
        """The newest checkpoint as (tensors, optimizer, state), None where there is none. Never unpickles code."""
        steps = self.steps()
        if not steps:
            return None
        folder = self.folder / f"{PREFIX}{steps[-1]:09d}"
        try:
            tensors = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
            optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            return tensors, optimizer, json.loads((folder / "state.json").read_text())
        except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{folder}: this checkpoint cannot be read ({reason}); delete the folder to go on from the one before"
            ) from None


@contextmanager
def _gone_on_failure(folder: Path) -> Iterator[None]:
    """Removes a half-written folder when what is inside fails: on a full disk its space is needed."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def to_disk(path: Path) -> None:
    """Waits until a file or folder lies on the disk; raises OSError where the disk refuses."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{folder}: cannot write ({reason}); free some space or fix the permissions, then run the same command again"
        ) from None
    except RuntimeError as error:  # torch.save reports a short write this way
        if "write" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise UserError(f"{folder}: cannot write ({error}); free some space, then run the same command again") from None
