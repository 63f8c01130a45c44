"""The run folder: what is in it, who may write into it, and how it is read."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from .config import Settings, to_yaml, validate
from .engine.checkpoint import Checkpoints
from .engine.lock import NAME, Lock
from .engine.log import read_records
from .engine.settings import WITHOUT_EFFECT
from .environment import environment
from .errors import UserError
from .files import aside_of, disk_errors, read_bytes, read_json, read_text, user_path, write_aside
from .network import RENAMED_MEASURES, NetworkConfig
from .recipe import Recipe, changed_keys
from .yaml12 import parse_yaml

FREE_KEYS = (*WITHOUT_EFFECT, "data.num_workers", "out")
"""Keys that may differ when a run is resumed."""


WRITTEN = ("config.yaml", "network.json", "environment.json")
"""Files of `begin`."""
FOLDERS = ("calibration", "evaluations", "images")
"""What a run writes before its first checkpoint."""


class NetworkRecord(Settings):
    """What a run trains, as it was settled when the run began: `network.json`, so that it resumes without the model it continues from."""

    network: NetworkConfig
    new_summaries: list[int]
    """Summaries that are trained whatever part of the student is."""


class Series(NamedTuple):
    """One number over the steps of a run."""

    steps: list[int]
    """Ascending; only those at which it was measured."""
    values: list[float]
    """One for each step."""

    @property
    def last(self) -> float:
        """The value at the last step."""
        return self.values[-1]


class RunFolder:
    """`config.yaml`, `network.json`, `environment.json`, `checkpoints/`, `calibration/`, `evaluations/`, `images/`, `model/` of one run.

    Written by a run; the methods that read raise UserError where a file is damaged, and return nothing where there is none.
    """

    def __init__(self, path: str | Path, keep: int = 2):
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

    def num_steps(self) -> int | None:
        """Optimizer steps of the run's recipe; None where there is no run, or its config.yaml cannot be read."""
        try:
            return validate(Recipe, _stored(self.path / "config.yaml")).num_steps if self.is_run else None
        except UserError:
            return None

    def lock(self) -> Lock:
        """That of the one process which may write into the folder."""
        return Lock(self.path / NAME, f"out: {self.path}")

    def check(self, recipe: Recipe) -> list[str]:
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
            stored = _stored(config)
        except UserError as error:
            return [f"out: {problem}; restore config.yaml, or give another out folder" for problem in error.problems]
        changed = changed_keys(stored, recipe.model_dump(mode="json"), FREE_KEYS)
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

    def recipe(self) -> Recipe:
        """The recipe of the run, from its config.yaml. Raises UserError where there is none, or it cannot be read."""
        config = self.path / "config.yaml"
        if not config.is_file():
            raise UserError(
                f"{self.path}: there is no config.yaml, so this is not a run folder; give a folder that `amradio distill` wrote"
            )
        return validate(Recipe, parse_yaml(read_text(config), str(config)), f"{config}: ")

    def config(self) -> dict[str, Any]:
        """All keys of the run as a mapping, defaults included; of a run of another version as it is written. Raises as `recipe` does."""
        config = self.path / "config.yaml"
        return _stored(config) if config.is_file() else self.recipe().model_dump(mode="json")

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl in order, each with its `step`; a damaged or unfinished line is left out."""
        return read_records(self.path)

    def metrics(self) -> dict[str, Series]:
        """The numbers of metrics.jsonl as columns, by name: `loss`, `clip/summary/standardized_cosine`, `val/...`, `eval/...`.

        Where a step is there twice, as a kill before a resume can leave it, the later line counts. Names of former versions are read as
        the present ones.
        """
        columns: dict[str, dict[int, float]] = {}
        for record in self.records():
            for name, value in record.items():
                if name != "step" and isinstance(value, int | float):
                    columns.setdefault(_present_name(name), {})[record["step"]] = value
        return {name: Series(sorted(values), [values[step] for step in sorted(values)]) for name, values in columns.items()}

    def evaluations(self) -> dict[int, dict[str, dict[str, Any]]]:
        """{step: {name: result}}, steps ascending; `held_out` is {head: {measure: value}}, all others are `Result` as JSON."""
        by_step: dict[int, dict[str, dict[str, Any]]] = {}
        for file in sorted((self.path / "evaluations").glob("step_*/*.json")):
            if match := re.fullmatch(r"step_(\d+)", file.parent.name, re.ASCII):
                content = read_json(file)
                several = content.get("results") if file.stem != "held_out" else None  # of `amradio evaluate --json`
                by_step.setdefault(int(match[1]), {}).update(several if isinstance(several, dict) else {file.stem: content})
        return dict(sorted(by_step.items()))

    def environment(self) -> dict[str, Any]:
        """environment.json: versions, machine, command, time of the last start; empty where there is none."""
        file = self.path / "environment.json"
        return read_json(file) if file.is_file() else {}

    def warnings(self) -> list[str]:
        """The warnings of train.log, each once, in order."""
        file = self.path / "train.log"
        lines = read_bytes(file).decode("utf-8", "replace").split("\n") if file.is_file() else []
        return list(dict.fromkeys(line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")))

    def pictures(self) -> list[Path]:
        """The PNG files of images/, by name."""
        return sorted((self.path / "images").glob("*.png"))

    def network_record(self) -> NetworkRecord | None:
        """What the run that can be resumed here trains; None where there is none. Raises UserError where its `network.json` is damaged."""
        file = self.path / "network.json"
        if not self.checkpoints.steps() or not file.is_file():
            return None
        try:
            return validate(NetworkRecord, read_json(file), f"{file}: ")
        except UserError as error:
            advice = "restore this file from a copy of the run, or give another out folder and start again"
            raise UserError(*(f"{problem.removesuffix('; copy or download it again')}; {advice}" for problem in error.problems)) from None

    def begin(self, recipe: Recipe, record: NetworkRecord, lock: Lock) -> None:
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
                self.write("network.json", record.model_dump_json(indent=1) + "\n")
            self.write("config.yaml", to_yaml(recipe))
            self.write("environment.json", json.dumps(environment(), indent=1) + "\n")

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


def _present_name(name: str) -> str:
    for former, present in RENAMED_MEASURES.items():
        name = name.replace(former, present)
    return name


def _stored(config: Path) -> Any:
    """The recipe that a run folder keeps, as a mapping; keys that were not there when it was written have their defaults."""
    recipe = parse_yaml(read_text(config), str(config))
    if not isinstance(recipe, dict):
        raise UserError(f"{config}: a recipe is a mapping; found {'nothing' if recipe is None else type(recipe).__name__}")
    try:
        return validate(Recipe, recipe).model_dump(mode="json")
    except UserError:
        return recipe  # a key that is gone since: it is named among the changed ones
