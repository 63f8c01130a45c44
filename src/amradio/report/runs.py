"""A run as reports see it: everything that its folder records, read once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluation.stored import HELD_OUT
from ..recipes import kind_of
from ..run_folder import RunFolder, Series


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    """As tables and charts show it: the folder's name, or more of its path where another run has the same."""
    folder: RunFolder
    config: Mapping[str, Any]
    metrics: Mapping[str, Series]
    evaluations: Mapping[int, Mapping[str, Mapping[str, Any]]]
    """{step: {name: result}}, see `RunFolder.evaluations`."""

    @property
    def step(self) -> int:
        """The last step of which anything was recorded; 0 where nothing was."""
        return max([0, *self.evaluations, *(series.steps[-1] for series in self.metrics.values())])

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, as its recipe has them; 0 where it counts epochs (detectors, vision-language models)."""
        stages = self.config.get("stages")
        steps = [stage.get("steps") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
        return sum(count for count in steps if isinstance(count, int))

    @property
    def about(self) -> str:
        """What is trained from what, in words."""
        kind = kind_of(self.config)
        if kind == "detection":
            backbone = self._type("backbone")
            return f"a {self._type('detector')} detector on {self.config.get('model', '?')}, backbone {backbone}"
        if kind == "vlm":
            return f"a vision-language model of {self.config.get('model', '?')} and {self.config.get('language_model', '?')}"
        return f"{'an' if self.student[:1] in 'aeiou' else 'a'} {self.student} student of {', '.join(self.teachers)}"

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if not self.num_steps:
            return f"{self.step:,} steps"
        return f"{self.step:,} of {self.num_steps:,} steps" + ("" if self.step >= self.num_steps else ", not finished")

    @property
    def student(self) -> str:
        """Its type in the recipe; ? where a recipe of another version has none."""
        return self._type("student")

    @property
    def teachers(self) -> list[str]:
        """Their names in the recipe."""
        teachers = self.config.get("teachers")
        return [str(name) for name in teachers] if isinstance(teachers, dict) else []

    def _type(self, key: str) -> str:
        value = self.config.get(key)
        return str(value.get("type", "?") if isinstance(value, dict) else value or "?")

    def latest(self) -> dict[str, tuple[int, Mapping[str, Any]]]:
        """{name: (step, result)} of the newest result of each evaluation of the suite; `held_out` is not among them."""
        return {name: (step, result) for step, results in self.evaluations.items() for name, result in results.items() if name != HELD_OUT}

    def held_out(self) -> tuple[int, Mapping[str, Mapping[str, float]]]:
        """(step, {head/kind: {measure: value}}) of the newest agreement on held-out images; (0, {}) where there is none."""
        steps = [step for step, results in self.evaluations.items() if HELD_OUT in results]
        return (steps[-1], self.evaluations[steps[-1]][HELD_OUT]) if steps else (0, {})


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in some folders, in order. Raises UserError with all that are no run folders or have a damaged file."""
    problems: list[str] = []
    folders: list[tuple[RunFolder, dict[str, Any]]] = []
    for path in paths:
        try:
            folder = RunFolder(path)
            folders.append((folder, folder.config()))
        except UserError as error:
            problems += error.problems
    twice = {folder.path for folder, _ in folders if sum(folder.path.resolve() == other.path.resolve() for other, _ in folders) > 1}
    problems += [f"{path}: this run is given twice; give each run once" for path in sorted(twice)]
    if problems:
        raise UserError(*dict.fromkeys(problems))
    names = _names([folder.path for folder, _ in folders])
    runs = []
    for name, (folder, config) in zip(names, folders, strict=True):
        try:
            runs.append(Run(name, folder, config, folder.metrics(), folder.evaluations()))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return runs


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(path_parts[-count:]) for path_parts in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
