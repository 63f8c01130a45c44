"""The run folder: what is in it, who may write into it, and how it is read."""

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from .config import Settings, validate
from .engine.folder import Folder
from .engine.lock import Lock
from .engine.log import read_records
from .errors import UserError, together
from .evaluation.stored import read_results
from .files import read_bytes, read_json, read_text
from .network import RENAMED_MEASURES, NetworkConfig
from .recipe import Recipe
from .yaml12 import parse_yaml


class NetworkRecord(Settings):
    """What a run trains, as it was settled when the run began: `network.json`, so that it resumes without the model it continues from."""

    network: NetworkConfig
    new_summaries: list[int]
    """Summaries that are trained whatever part of the student is."""


class _Recorded(Settings):
    """What is read of a file that a run wrote; keys of another version are left alone."""

    model_config = pydantic.ConfigDict(extra="ignore")


class _Environment(_Recorded):
    libraries: dict[str, str] = pydantic.Field(default_factory=dict)


class _Fingerprint(_Recorded):
    source: str
    fingerprint: str


class _Data(_Recorded):
    data: dict[str, _Fingerprint]


class _Calibrated(_Recorded):
    source: str
    sizes: list[list[int]]


class _Manifest(_Recorded):
    batches: int
    target_spaces: dict[str, str] = pydantic.Field(default_factory=dict)
    teachers: dict[str, _Calibrated]


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


class RunFolder(Folder):
    """The folder of a distillation, which also has `network.json`, `calibration/` and `images/`.

    Written by a run; the methods that read raise UserError where a file is damaged, and return nothing where there is none.
    """

    recipe_type = Recipe

    def __init__(self, path: str | Path, keep: int = 2):
        """path: as the user wrote it. keep: how many checkpoints stay."""
        super().__init__(path, keep)
        self._record: NetworkRecord | None = None

    def num_steps(self) -> int | None:
        """Optimizer steps of the run's recipe; None where there is no run, or its config.yaml cannot be read."""
        try:
            return validate(Recipe, self.stored_recipe()).num_steps if self.is_run else None
        except UserError:
            return None

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
        return self.stored_recipe() if config.is_file() else self.recipe().model_dump(mode="json")

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
        """{step: {name: result}}, steps ascending; `held_out` is {head: {measure: value}}, all others are `Result` as JSON.

        Raises UserError with all files that are damaged or of another shape.
        """
        files = sorted((self.path / "evaluations").glob("step_*/*.json"))
        of_steps = [(int(match[1]), file) for file in files if (match := re.fullmatch(r"step_(\d{1,18})", file.parent.name, re.ASCII))]
        by_step: dict[int, dict[str, dict[str, Any]]] = {}
        for (step, _), results in zip(of_steps, together(*(partial(read_results, file) for _, file in of_steps)), strict=True):
            by_step.setdefault(step, {}).update(results)
        return dict(sorted(by_step.items()))

    def environment(self) -> dict[str, Any]:
        """environment.json: versions, machine, command, time of the last start; empty where there is none."""
        return self._read("environment.json", _Environment)

    def data(self) -> dict[str, dict[str, str]]:
        """data.json: {key of the recipe: {"source": in words, "fingerprint": of its names}}; empty where there is none."""
        content = self._read("data.json")
        validate(_Data, {"data": content}, f"{self.path / 'data.json'}: ")
        return content

    def calibrations(self) -> dict[str, dict[str, Any]]:
        """{stage: manifest of its statistics}: batches, target spaces, teachers with their sizes; empty where none were measured."""
        files = sorted((self.path / "calibration").glob("stage_*/manifest.json"))
        return {file.parent.name: self._read(str(file.relative_to(self.path)), _Manifest) for file in files}

    def _read(self, name: str, shape: type[Settings] | None = None) -> dict[str, Any]:
        file = self.path / name
        content = read_json(file) if file.is_file() else {}
        if shape is not None and file.is_file():
            validate(shape, content, f"{file}: ")
        return content

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
        """Makes the folder ready to begin or to resume (`start`). record: what a new run trains."""
        self._record = record
        self.start(recipe, lock)

    def write_first(self) -> None:
        """Writes `network.json`."""
        assert self._record is not None, "begin was called"
        self.write("network.json", self._record.model_dump_json(indent=1) + "\n")


def _present_name(name: str) -> str:
    for former, present in RENAMED_MEASURES.items():
        name = name.replace(former, present)
    return name
