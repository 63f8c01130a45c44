"""Checkpoints: written aside, then renamed, so that the last one is always whole; checksums show what changed on the disk since."""

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..files import disk_errors, gone_on_failure, read_json, to_disk, write_aside
from ..tensors import write_tensors

PREFIX = "step_"
STATE = "state.json"
CHECKSUMS = "sha256"
"""Key of state.json: SHA-256 of every file by name, and under `state.json` that of its other keys."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read."""

    tensors: dict[str, dict[str, Tensor]]
    """By the name of the safetensors file."""
    other: dict[str, Any]
    """Of optimizer.pt."""
    state: dict[str, Any]
    """Of state.json, without `step` and checksums."""
    step: int
    folder: Path
    before: int | None
    """The step of the checkpoint before it; None where there is none."""

    def refusal(self, file: str, reason: str) -> UserError:
        """The error that a file of this checkpoint cannot be used."""
        return _refusal(self.folder / file, reason, self.before)


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_000001000/` ..., and `last`, a link to the newest. Anything else in it is left alone."""

    def __init__(self, folder: Path, keep: int):
        """keep: how many of the newest stay."""
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], other: dict[str, Any], state: Mapping[str, Any]) -> Path:
        """Writes one checkpoint: `tensors` as NAME.safetensors, `other` (the optimizer) as a pickle without code, `state` as JSON.

        Raises UserError where the disk is full or the folder cannot be written; earlier checkpoints stay as they are.
        """
        final = self.path(step)
        aside = self.folder / f".{final.name}.part"
        with disk_errors(self.folder), gone_on_failure(aside):
            for stale in self.folder.glob(f".{PREFIX}*.part"):  # of a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            aside.mkdir(parents=True)
            for name, values in tensors.items():
                write_tensors(values, aside / f"{name}.safetensors")
            torch.save(other, aside / "optimizer.pt")
            checksums = {file.name: _sha256(file) for file in sorted(aside.iterdir())}
            (aside / STATE).write_text(_signed(step, state, checksums), encoding="utf-8")
            for file in aside.iterdir():
                to_disk(file)
            if final.exists():  # the same step once more, after a resume
                shutil.rmtree(final)
            aside.rename(final)
            self._point_last_to(final)
            to_disk(self.folder)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.path(old), ignore_errors=True)
        return final

    def note(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes the `state` of a checkpoint that is there anew; its other files stay."""
        file = self.path(step) / STATE
        checksums = read_json(file).get(CHECKSUMS) or {}
        with disk_errors(self.folder):
            write_aside(file, _signed(step, state, checksums).encode())

    def _point_last_to(self, final: Path) -> None:
        link, last = self.folder / ".last.part", self.folder / "last"
        if last.is_dir() and not last.is_symlink():  # the run folder was copied by a program that follows links
            if not (last / STATE).is_file():
                return  # a folder of the user's
            shutil.rmtree(last)
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        link.replace(last)

    def path(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.folder / f"{PREFIX}{step:09d}"

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, ascending; copies under other names (`step_000000060.bak`) are not among them."""
        matches = [re.fullmatch(rf"{PREFIX}(\d{{9,}})", file.parent.name, re.ASCII) for file in self.folder.glob(f"{PREFIX}*/{STATE}")]
        return sorted(step for match in matches if match and match[0] == self.path(step := int(match[1])).name)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint, None where there is none. Never unpickles code.

        Raises UserError, which names the file and what to do, where it is damaged: cut, changed since it was written, or another's.
        """
        *earlier, step = [None, *self.steps()]
        if step is None:
            return None
        folder, before = self.path(step), earlier[-1]
        state = _read(folder / STATE, read_json, before)
        checksums = state.pop(CHECKSUMS, None)
        if checksums is None:  # written before there were any
            names = [file.name for file in sorted(folder.glob("[!.]*.safetensors"))]
        else:
            names = _verified(folder, state, checksums, before)
        if state.pop("step", None) != step:
            raise _refusal(folder / STATE, f"it is not of step {step}", before)
        tensors = {name.removesuffix(".safetensors"): _read(folder / name, load_file, before) for name in names if name != "optimizer.pt"}
        return Checkpoint(tensors, _read(folder / "optimizer.pt", _read_pickle, before), state, step, folder, before)


def _signed(step: int, state: Mapping[str, Any], checksums: Mapping[str, str]) -> str:
    content = {"step": step, **state}
    files = {name: value for name, value in checksums.items() if name != STATE}
    return json.dumps(content | {CHECKSUMS: files | {STATE: _digest(content)}}, indent=1) + "\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _verified(folder: Path, state: Mapping[str, Any], checksums: Any, before: int | None) -> list[str]:
    """The names of a checkpoint's files beside state.json, all of which are as they were written; raises UserError where one is not."""
    if not isinstance(checksums, dict) or checksums.get(STATE) != _digest(state):
        raise _refusal(folder / STATE, "it has changed since it was written (its checksum differs)", before)
    names = [name for name in checksums if name != STATE and Path(name).name == name]
    for name in names:
        if _read(folder / name, _sha256, before) != checksums[name]:
            raise _refusal(folder / name, "it has changed since it was written (its checksum differs)", before)
    return names


def _read_pickle(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to read the file with weights_only=False, which may run code in it
        if "weights_only" in str(error):
            raise ValueError("not a file of tensors and plain values, which is all that a checkpoint has; nothing in it was run") from None
        raise
    if not isinstance(state, dict):
        raise TypeError(f"it is a {type(state).__name__} and not a mapping")
    return state


def _read(file: Path, reader: Any, before: int | None) -> Any:
    """What `reader` reads; raises the UserError of a damaged checkpoint where it cannot."""
    try:
        return reader(file)
    except UserError as error:
        reason = "; ".join(problem.removeprefix(f"{file}: ") for problem in error.problems)
    except FileNotFoundError:
        reason = "there is no such file"
    except Exception as error:  # the readers of damaged files raise whatever their parts do
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    raise _refusal(file, reason, before)


def _refusal(file: Path, reason: str, before: int | None) -> UserError:
    resume = "start again from step 0" if before is None else f"resume from step {before}"
    return UserError(f"{file}: this checkpoint cannot be read: {reason}; delete the folder {file.parent} to {resume}")
