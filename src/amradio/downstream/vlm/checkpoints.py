"""Whether a checkpoint of the trainer is whole: the library writes its files one after another, so a list of their checksums comes last."""

import hashlib
import json
import shutil
from pathlib import Path

from ...errors import UserError
from ...files import write_aside
from ...formats.base import peek

PREFIX = "checkpoint-"
CHECKSUMS = "sha256.json"
"""{name of a file: its SHA-256}; a checkpoint without it was not written to its end."""


def seal(folder: Path) -> None:
    """Marks a checkpoint as whole. Raises OSError where the disk refuses."""
    checksums = {str(file.relative_to(folder)): _sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    write_aside(folder / CHECKSUMS, (json.dumps(checksums, indent=1) + "\n").encode())


def step_of(folder: Path) -> int:
    """The step of a checkpoint by the name of its folder."""
    return int(folder.name.removeprefix(PREFIX))


def remove_unfinished(stage_folder: Path) -> list[str]:
    """Removes the checkpoints that were not written to their end and returns their names."""
    folders = [folder for folder in _folders(stage_folder) if not (folder / CHECKSUMS).is_file()]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in folders]


def newest(stage_folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage, None where there is none.

    Raises UserError, which names the file and what to do, where one of its files has changed since it was written.
    """
    *earlier, last = [None, *(folder for folder in _folders(stage_folder) if (folder / CHECKSUMS).is_file())]
    if last is None:
        return None
    checksums = peek(last / CHECKSUMS) or {}
    changed = next((name for name, stated in checksums.items() if _now(last / name) != stated), None if checksums else CHECKSUMS)
    if changed is not None:
        reason = "it has changed since it was written (its checksum differs)" if (last / changed).is_file() else "there is no such file"
        resume = "start this stage again" if earlier[-1] is None else f"resume from {earlier[-1].name}"
        raise UserError(f"{last / changed}: this checkpoint cannot be read: {reason}; delete the folder {last} to {resume}")
    return last


def _folders(stage_folder: Path) -> list[Path]:
    """Of all checkpoints, by their steps."""
    return sorted((folder for folder in stage_folder.glob(f"{PREFIX}*") if folder.name.removeprefix(PREFIX).isdecimal()), key=step_of)


def _now(file: Path) -> str:
    return _sha256(file) if file.is_file() else ""


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
