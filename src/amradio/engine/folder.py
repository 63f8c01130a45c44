"""The folder of a run, whatever is trained: what is in it, who may write into it, and whether it is a run of the same recipe."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Settings, to_yaml, validate
from ..environment import environment
from ..errors import UserError, changed
from ..files import aside_of, disk_errors, read_text, user_path, write_aside
from ..yaml12 import parse_yaml
from .checkpoint import Checkpoints
from .lock import NAME, Lock
from .settings import WITHOUT_EFFECT

FREE_KEYS = (*WITHOUT_EFFECT, "data.num_workers", "out")
"""Keys that may differ when a run is resumed."""
WRITTEN = ("config.yaml", "network.json", "environment.json", "data.json")
"""Files of `start` and of the start of the log."""
FOLDERS = ("calibration", "evaluations", "images")
"""What a run writes before its first checkpoint."""


class Folder:
    """`config.yaml`, `environment.json`, `checkpoints/`, `evaluations/`, `model/` and the logs of one run."""

    recipe_type: type[Settings]
    """The settings that `config.yaml` holds."""
    free_keys: Sequence[str] = FREE_KEYS
    """Keys that may differ when a run is resumed."""

    def __init__(self, path: str | Path, keep: int = 2):
        """path: as the user wrote it. keep: how many checkpoints stay."""
        self.path = user_path(path, "out")
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep)

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.path / "model"

    @property
    def is_run(self) -> bool:
        """Whether there is a run in it."""
        return (self.path / "config.yaml").is_file()

    def lock(self) -> Lock:
        """That of the one process which may write into the folder."""
        return Lock(self.path / NAME, f"out: {self.path}")

    def check(self, recipe: Settings) -> list[str]:
        """What stands against writing this recipe's run here: a folder in use, another recipe, no permission."""
        if self.path.exists() and not self.path.is_dir():
            return [f"out: {self.path} is a file; give another folder"]
        if not self.path.exists():
            parent = next(p for p in self.path.absolute().parents if p.exists())
            if not parent.is_dir():
                return [f"out: {parent} is a file, so there can be no folder {self.path}; give another folder"]
            return [] if os.access(parent, os.W_OK) else [f"out: {parent} cannot be written to; give another folder"]
        if not os.access(self.path, os.W_OK):
            return [f"out: {self.path} cannot be written to; change its permissions, or give another folder"]
        if not {path.name for path in self.path.iterdir()} - {aside_of(self.path / "config.yaml").name, NAME}:  # a kill may leave no more
            return []
        config = self.path / "config.yaml"
        if not config.is_file():
            return [f"out: {self.path} is not empty and not a run folder; nothing in it was touched; give another folder"]
        try:
            stored = self.stored_recipe()
        except UserError as error:
            return [f"out: {problem}; restore config.yaml, or give another out folder" for problem in error.problems]
        changed = changed_keys(stored, recipe.model_dump(mode="json"), self.free_keys)
        if not changed:
            return []
        return [
            "\n    ".join(
                (
                    f"out: {self.path} is a run of another recipe; take these changes back to resume it, or give another out folder:",
                    *changed,
                )
            )
        ]

    def start(self, recipe: Settings, lock: Lock) -> None:
        """Creates the folder, or makes it ready to resume; what a run that never saved a checkpoint left is cleared.

        Raises UserError where another process has the lock.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock.take()
            if not self.checkpoints.steps():
                for name in ("metrics.jsonl", "train.log"):
                    (self.path / name).unlink(missing_ok=True)
                for name in FOLDERS:
                    shutil.rmtree(self.path / name, ignore_errors=True)
                self.write_first()
            self.write_recipe(recipe)

    def write_recipe(self, recipe: Settings) -> None:
        """Writes config.yaml and environment.json."""
        self.write("config.yaml", to_yaml(recipe))
        self.write("environment.json", json.dumps(environment(), indent=1) + "\n")

    def write_first(self) -> None:
        """Writes what a new run needs before its config.yaml, which makes the folder a run; nothing here."""

    def discard(self, lock: Lock) -> None:
        """Takes away what a run that saved no checkpoint wrote, so that another recipe can begin here.

        Raises UserError where there is a checkpoint, which is never taken away, or where another process has the lock.
        """
        if self.checkpoints.steps():
            raise UserError(f"out: {self.path} holds a checkpoint; resume that run, or give another folder")
        with disk_errors(self.path):
            lock.take()
            for name in (*WRITTEN, "metrics.jsonl", "train.log"):
                (self.path / name).unlink(missing_ok=True)
            for name in (*FOLDERS, "checkpoints"):
                shutil.rmtree(self.path / name, ignore_errors=True)

    def write(self, name: str, text: str) -> None:
        """Writes a text file below the folder, aside and then renamed."""
        path = self.path / name
        with disk_errors(self.path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, text.encode())

    def stored_recipe(self) -> dict[str, Any]:
        """The recipe in `config.yaml` as a mapping; keys that were not there when it was written have their defaults.

        Raises UserError where the file cannot be read.
        """
        config = self.path / "config.yaml"
        content = parse_yaml(read_text(config), str(config))
        if not isinstance(content, dict):
            raise UserError(f"{config}: a recipe is a mapping; found {'nothing' if content is None else type(content).__name__}")
        try:
            return validate(self.recipe_type, content).model_dump(mode="json")
        except UserError:
            return content  # a key that is gone since: it is named among the changed ones


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    """`key: was A, is now B` for every leaf in which two dumped recipes differ, less the keys in `ignore`."""
    a, b = leaves(old), leaves(new)
    return [f"{key}: {change}" for key in a | b if key not in ignore and (change := changed(a, b, key))]


def leaves(tree: Any, key: str = "") -> dict[str, Any]:
    """{`a.b.0`: value} of everything in a tree of mappings and lists that is neither, and of those that are empty."""
    if isinstance(tree, Mapping) and tree:
        pairs = [(str(k), v) for k, v in tree.items()]
    elif isinstance(tree, (list, tuple)) and tree:
        pairs = [(str(k), v) for k, v in enumerate(tree)]
    else:
        return {key: tree}
    flat: dict[str, Any] = {}
    for k, v in pairs:
        flat |= leaves(v, f"{key}.{k}" if key else k)
    return flat
