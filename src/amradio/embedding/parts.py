"""Features of some images as tensors by name, and the folder in which a job keeps them until all are there."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError, changed, shown
from ..files import aside, disk_errors, read_json, write_aside
from ..tensors import write_tensors
from .batches import Embedding

Columns = dict[str, Tensor]
"""`summary` [N, D]; `spatial` [N, D] (pooled) or [cells of all N images, D] with `spatial.grid` int32 [N, 2] (full); of a head with its
name in front: `clip.summary`."""


class Part(NamedTuple):
    """What is known of the images of one part without its tensors."""

    keys: list[str]
    broken: dict[str, str]


def columns(embedding: Embedding, spatial: str, dtype: torch.dtype) -> list[Columns]:
    """The rows of each image of a batch, on the CPU. Raises UserError where a number is not finite in `dtype`."""
    stored: Columns = {}
    grids: dict[str, Tensor] = {}
    for name, features in embedding.features.items():
        prefix = "" if name == "backbone" else f"{name}."
        if features.summary is not None:
            stored[f"{prefix}summary"] = _stored(f"{prefix}summary", features.summary[:, None], embedding, dtype)
        if features.spatial is not None and spatial != "none":
            cells = features.spatial.flatten(1, 2)
            rows = cells if spatial == "full" else cells.mean(1, keepdim=True)
            stored[f"{prefix}spatial"] = _stored(f"{prefix}spatial", rows, embedding, dtype)
            if spatial == "full":
                grids[f"{prefix}spatial.grid"] = torch.tensor([features.spatial.shape[1:3]], dtype=torch.int32)
    return [{name: value[row] for name, value in stored.items()} | grids for row in range(len(embedding.keys))]


def _stored(name: str, value: Tensor, embedding: Embedding, dtype: torch.dtype) -> Tensor:
    """[B, rows of an image, D]."""
    stored = value.to(dtype)
    bad = (~torch.isfinite(stored)).flatten(1).any(1)
    if bool(bad.any()):
        key = embedding.keys[int(bad.nonzero()[0])]
        if bool(torch.isfinite(value).all()):
            largest = float(value.abs().max())
            raise UserError(f"{key}: {name} holds {largest:.4g}, which is beyond {str(dtype).removeprefix('torch.')}; write dtype float32")
        raise UserError(f"{key}: {name} is not a finite number; check this image, or compute with precision float32")
    return stored.cpu()


class Parts:
    """The folder `OUT.parts`: manifest.json, and part_000000.safetensors ..., each written aside and then renamed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Makes the folder, or takes it up; raises UserError where it holds another job's parts, or is not of `embed` at all."""
        old = self._json("manifest.json")
        if old is None and self.folder.exists():
            foreign = sorted(set(os.listdir(self.folder)) - {".manifest.json.part"}) if self.folder.is_dir() else [self.folder.name]
            if foreign:
                raise UserError(
                    f"{self.folder}: the parts of a job are kept here, but there is no manifest.json, and {shown(foreign[0])}; "
                    "nothing was touched: move or delete it, or give another out"
                )
        if old is not None:
            changes = [f"{key}: {change}" for key in {**old, **manifest} if (change := changed(old, manifest, key))]
            if changes:
                problem = f"{self.folder}: these are the parts of another job; take these changes back to resume it, or delete the folder:"
                raise UserError("\n    ".join((problem, *changes)))
            return
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_aside(self.folder / "manifest.json", json.dumps(manifest, indent=1).encode())

    def note_joined(self, rows: int, broken: Mapping[str, str]) -> None:
        """Notes what the whole file holds, right before it gets its name."""
        with disk_errors(self.folder):
            write_aside(self.folder / "joined.json", json.dumps({"rows": rows, "broken": broken}).encode())

    def joined(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `note_joined` noted, where these are the parts of the job `manifest`."""
        record = self._json("joined.json") if self._json("manifest.json") == manifest else None
        if record is not None and not (isinstance(record.get("rows"), int) and isinstance(record.get("broken"), dict)):
            raise UserError(f"{self.folder / 'joined.json'}: damaged; the file is complete: delete the folder {self.folder}")
        return record

    def _json(self, name: str) -> dict[str, Any] | None:
        file = self.folder / name
        try:
            return read_json(file) if file.exists() else None
        except UserError as error:
            problem = "; ".join(problem.removesuffix("; copy or download it again") for problem in error.problems)
            raise UserError(f"{problem}; delete the folder {self.folder} to start again") from None

    def path(self, number: int) -> Path:
        """Of one part."""
        return self.folder / f"part_{number:06d}.safetensors"

    def write(self, number: int, part: Part, rows: Mapping[int, Columns]) -> None:
        """rows: of each image by its number; they are put in this order."""
        names = dict.fromkeys(name for row in rows.values() for name in row)
        tensors = {name: torch.cat([rows[image][name] for image in sorted(rows)]) for name in names}
        with disk_errors(self.folder), aside(self.path(number)) as unfinished:
            about = {"keys": json.dumps(part.keys), "broken": json.dumps(part.broken), "sha256": _digest(sorted(tensors.items()))}
            write_tensors(tensors, unfinished, about)

    def read(self, number: int, verify: bool = False) -> Part | None:
        """What a part holds; None where it is not there, or damaged (then it is taken away, to be made again).

        verify: compare the tensors with the checksum that was written with them, where there is one.
        """
        path = self.path(number)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                part = Part(json.loads(metadata["keys"]), json.loads(metadata["broken"]))
                if verify and metadata.get("sha256") not in (None, _digest((name, file.get_tensor(name)) for name in sorted(file.keys()))):
                    raise ValueError("the checksum differs")
            if not isinstance(part.keys, list) or not isinstance(part.broken, dict):
                raise TypeError("keys and broken")
            return part
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
            path.unlink()
            return None

    def tensors(self, number: int) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of one part, one at a time."""
        with safe_open(self.path(number), "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)

    def shapes(self, number: int) -> dict[str, list[int]]:
        """The shapes of a part's tensors."""
        with safe_open(self.path(number), "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    def tensor(self, number: int, name: str) -> Tensor:
        """One tensor of one part."""
        with safe_open(self.path(number), "pt") as file:
            return file.get_tensor(name)

    def remove(self) -> None:
        """Deletes the folder; by name it is gone at once."""
        gone = self.folder.with_name(f".{self.folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names and numbers."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
