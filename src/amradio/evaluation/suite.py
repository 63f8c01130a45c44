"""Several evaluations of the same models, from one YAML file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
import torch

from ..config import Autocast, Device, Pixels, ReadingProcesses, Settings, defaults, validate
from ..devices import autocast_dtype, find_device
from ..distillation.metrics import UNCALIBRATED, AgreementProtocol
from ..engine.distributed import Processes
from ..errors import UserError, shown
from ..files import user_path
from ..memory import memory_errors
from ..model import Model
from ..teachers import AnyTeacher
from ..teachers.base import Teacher
from ..words import read_words
from . import AnyEvaluation
from .base import Bench, Evaluation, Result, below_floor, measure
from .inputs import plain as describe_inputs
from .progress import Phase, Progress, silent, unannounced
from .sharing import Share
from .stored import check_names


class Suite(Settings):
    """What is measured, and on what."""

    evaluations: Annotated[dict[str, AnyEvaluation], pydantic.Field(min_length=1), pydantic.AfterValidator(check_names)]
    """The evaluations by names of your choice, which head their columns."""
    teachers: dict[str, AnyTeacher] = pydantic.Field(default_factory=dict)
    """Teachers beside those of the run folder, by the name of their head; needed where PATH is a model folder."""
    image_size: Pixels | None = None
    """px of the views where an evaluation names none; null for the protocol's own size where it has one, else the student's."""
    device: Device = "auto"
    precision: Autocast = "float32"
    side_by_side: bool = False
    """On a CPU, encode each window of images by several models at once, each with a share of torch's threads: quicker for small models of
    similar cost, slower where one model costs most of the time."""
    num_workers: ReadingProcesses = 0

    @classmethod
    def load(cls, *words: str) -> Self:
        """Reads a suite from words, each a YAML file or `key=value`, merged left to right; raises UserError with every problem at once."""
        return validate(cls, read_words(words, defaults(cls), "evaluation"))

    def bench(
        self,
        model: Model | None,
        teachers: Mapping[str, Teacher],
        progress: Progress = silent,
        agreement: AgreementProtocol = UNCALIBRATED,
        processes: Processes | None = None,
    ) -> Bench:
        """The models on the suite's device. Raises UserError where there is no such device.

        Args:
            model: the student with its heads, None where only teachers are measured.
            teachers: by the names of their heads; they are moved. Those that know the images of a run alone are left out.
            progress: shows how far a loop is.
            agreement: of the run that made the model.
            processes: those of `torchrun`, which share the images out; None for this one alone.
        """
        device = find_device(self.device, "device")
        moved = {name: teacher.to(device) for name, teacher in teachers.items() if not teacher.needs_keys}
        bench = Bench(
            model.to(device) if model is not None else None,
            moved,
            image_size=self.image_size,
            autocast=self.autocast,
            num_workers=self.num_workers,
            progress=progress,
            agreement=agreement,
        )
        bench.side_by_side = self.side_by_side
        bench.share = Share(processes)
        return bench

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast dtype of all models, None for float32."""
        return autocast_dtype(self.precision, find_device(self.device, "device"))

    def beside(self, path: str) -> Self:
        """The same for the model in `path`, for evaluations of what lies beside the model (a detector)."""
        return self.model_copy(update={"evaluations": {name: settings.beside(path) for name, settings in self.evaluations.items()}})

    def load_teachers(self) -> dict[str, Teacher]:
        """The suite's own teachers on the CPU; raises UserError with what all of them lack."""
        teachers: dict[str, Teacher] = {}
        problems: list[str] = []
        for name, settings in self.teachers.items():
            try:
                teachers[name] = settings.at(self.autocast).build().freeze()
            except UserError as error:
                problems += [f"teachers.{name}: {problem}" for problem in error.problems]
        if problems:
            raise UserError(*problems)
        return teachers


def check_written(suite: Suite, json_file: Path | None) -> None:
    """Raises UserError where two evaluations write one file, or one writes the file of the results.

    json_file: that of the results, None where there is none.
    """
    users: dict[str, str] = {} if json_file is None else {os.path.realpath(json_file): "--json"}
    problems: list[str] = []
    for name, settings in suite.evaluations.items():
        for key, path in settings.written().items():
            where = f"evaluations.{name}.{key}"
            user = users.setdefault(os.path.realpath(user_path(path, where)), where)
            if user != where:
                problems.append(f"{where}: {shown(path)} is the file of {user} as well; give another name")
    if problems:
        raise UserError(*problems)


def prepare(suite: Suite, bench: Bench) -> dict[str, Evaluation]:
    """Every evaluation, ready to run; raises UserError with all that any of them lacks: data, rows, text encoders, mask decoders."""
    problems: dict[str, list[str]] = {}
    built: dict[str, Evaluation] = {}
    for name, settings in suite.evaluations.items():
        try:
            built[name] = settings.build()
            built[name].check(settings.rows(bench), bench)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(name)
    if problems:
        raise UserError(*(f"evaluations.{names[0]}{_and_others(names)}: {problem}" for problem, names in problems.items()))
    return built


def _and_others(names: Sequence[str]) -> str:
    """` (and c, d and 7 more)` of the names behind the first one."""
    others = ", ".join(names[1:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f" (and {others})" if others else ""


def run_suite(suite: Suite, bench: Bench, phase: Phase = unannounced, results: dict[str, Result] | None = None) -> dict[str, Result]:
    """Runs every evaluation; what is missing of any of them is found out before the first one starts. Deterministic on a CPU.

    The processes of `bench.share` share the images out, return the same results and raise the same errors.

    Args:
        suite: what is measured.
        bench: on what.
        phase: opened around each evaluation with a line that names it.
        results: takes each result when it is there, so that those before an error are not lost; None for a new one.
    """
    kept: dict[str, Result] = {} if results is None else results
    return bench.share.all_do(lambda: _run_suite(suite, bench, phase, kept))


def _run_suite(suite: Suite, bench: Bench, phase: Phase, results: dict[str, Result]) -> dict[str, Result]:
    with phase("opening the data of the evaluations"):
        prepared = prepare(suite, bench)
    for number, (name, evaluation) in enumerate(prepared.items(), 1):
        torch.manual_seed(0)
        try:
            with phase(f"evaluation {number} of {len(prepared)}: {name}"), memory_errors():
                results[name] = measure(suite.evaluations[name], evaluation, bench)
        except UserError as error:
            problems = [f"evaluations.{name}: {problem}" for problem in error.problems]
            raise UserError(*problems, on_all_processes=error.on_all_processes) from None
    return results


def plain(result: Result) -> dict[str, Any]:
    """A result as JSON takes it; `below_floor` names the rows of each metric that are not better than its floor."""
    content = {**asdict(result), "metrics": [metric._asdict() for metric in result.metrics], "notes": list(result.notes)}
    inputs = {row: describe_inputs(sizes) for row, sizes in result.inputs.items()}
    return content | {
        "inputs": inputs,
        "below_floor": {metric.name: rows for metric in result.metrics if (rows := below_floor(result, metric))},
    }
