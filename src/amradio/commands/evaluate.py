"""`amradio evaluate`: student, heads and teachers side by side."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import validate
from ..console import PHASES, print_text
from ..devices import find_device
from ..distillation.metrics import UNCALIBRATED, AgreementProtocol
from ..downstream.vlm.recognition import is_vlm
from ..engine.distributed import Processes, failures_of_peers
from ..environment import environment
from ..errors import UserError, shown
from ..evaluation.base import Result
from ..evaluation.benchmarks import load_suite
from ..evaluation.progress import silent
from ..evaluation.published import SuiteName, comparison
from ..evaluation.sharing import Share
from ..evaluation.suite import Suite, check_written, plain, run_suite
from ..files import disk_errors, user_path, write_aside
from ..formats.base import peek
from ..libraries import need
from ..model import Model, load
from ..recipe import Recipe
from ..recipes import kind_of
from ..run_folder import RunFolder
from ..students.base import Student
from ..teachers.base import Teacher
from ..training import load_teachers
from ..training.calibration import read_statistics
from ..words import names_file
from ..yaml12 import parse_yaml
from .results import print_published, print_results

if TYPE_CHECKING:  # transformers' LLaVA takes seconds to import
    from ..downstream.vlm.assembly import Vlm

STDOUT = "-"
"""As the file of the results."""
SCENES = "scenes"
"""The built-in evaluations, on generated scenes."""


def evaluate(
    path: str | Path,
    *words: str,
    json_file: str | Path | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    student: Student | None = None,
    benchmarks: "Benchmarks | None" = None,
) -> dict[str, Result]:
    """Evaluates the student in `path`, its heads and its teachers, prints one table, and returns the results by evaluation.

    Under `torchrun` the processes share the images out, and all must call it; the first one prints and writes.

    Args:
        path: a run folder, whose teachers are loaded as its config.yaml says, a model folder, or a vision-language model.
        words: evaluation files and `key=value`, merged left to right; without a word the built-in evaluations on generated scenes.
        json_file: a file for machine-readable results, or `-` for stdout, where all else is printed to stderr; None for no file.
        teachers: further teachers as objects, by the names of their heads.
        student: for a student of type `custom`, an object built like the one that was trained; it takes the weights.
        benchmarks: a suite of published benchmarks, which the words change; None for the evaluations of the words alone.

    Raises UserError with all that is missing, before anything is measured.
    """
    suite = (_suite(words) if benchmarks is None else load_suite(benchmarks.name, benchmarks.data, words)).beside(str(path))
    file = None if json_file in (None, STDOUT) else user_path(json_file, "--json")

    def load_models() -> _Loaded:
        if file is not None:
            check_json(file)
        check_written(suite, file)
        return _load_vlm(user_path(path), suite) if is_vlm(user_path(path)) else _load(path, suite, teachers or {}, student)

    stdout = sys.stdout
    tables = sys.stderr if json_file == STDOUT else stdout
    with (
        contextlib.redirect_stdout(tables),
        failures_of_peers(),
        closing(Processes(find_device(suite.device, "device"))) as processes,
    ):
        loaded = Share(processes).all_do(load_models)
        about = {"path": str(path), "teachers": {name: teacher.source for name, teacher in loaded.teachers.items()}}
        results: dict[str, Result] = {}

        def write() -> None:
            if file is not None:
                write_json(results, file, about)
            elif json_file == STDOUT:
                print(json_text(results, about), end="", file=stdout)

        try:
            evaluate_models(loaded.model, loaded.teachers, suite, loaded.agreement, processes, loaded.vlm, results=results)
        except (UserError, KeyboardInterrupt):
            if results and processes.is_first:
                write()
            if file is not None and results and processes.is_first:
                print_text(f"{shown(file)}: the results of {', '.join(results)}, which were measured before")
            raise
        if benchmarks is not None and processes.is_first:
            print_published(comparison(benchmarks.name, results))
        processes.first_does(write)
    return results


class Benchmarks(NamedTuple):
    """A suite of published benchmarks on this machine."""

    name: SuiteName
    data: Path | None
    """The YAML file with the folders of the data (`BenchmarkPaths`)."""


def chosen_suite(name: SuiteName | None, data: str | None) -> Benchmarks | None:
    """What `--suite NAME --data FILE` stand for. Raises UserError where a file is given without a suite."""
    if name is None and data is not None:
        raise UserError("--data: it names the folders of a suite, and no suite is given; add --suite paper, or name the data in the words")
    return None if name is None else Benchmarks(name, None if data is None else user_path(data, "--data"))


class _Loaded(NamedTuple):
    """What is measured."""

    model: Model | None
    teachers: dict[str, Teacher]
    agreement: AgreementProtocol = UNCALIBRATED
    vlm: "Vlm | None" = None


def _load(path: str | Path, suite: Suite, teachers: Mapping[str, Teacher], student: Student | None) -> _Loaded:
    with PHASES.phase(f"reading {path}"):
        model = load(path, student=student)
    with PHASES.phase("loading teachers"):
        loaded = {**teachers_of(user_path(path), teachers, suite), **suite.load_teachers()}
    return _Loaded(model, loaded, agreement_of(user_path(path), model))


def _load_vlm(path: Path, suite: Suite) -> _Loaded:
    """A vision-language model, with its tower as the model of evaluations of features."""
    need("transformers", str(path))
    from ..downstream.vlm.files import load_vlm

    with PHASES.phase(f"reading {path}"):
        vlm = load_vlm(path)
    vlm.network.to(find_device(suite.device, "device"))  # pyright: ignore[reportArgumentType] - a decorator of the library hides the method
    return _Loaded(vlm.student, suite.load_teachers(), vlm=vlm)


def _suite(words: Sequence[str]) -> Suite:
    """The suite that the words make; where they look like changes of the built-in one, the answer to a mistake says how to make them."""
    try:
        return Suite.load(*(words or (SCENES,)))
    except UserError as error:
        if not words or any(names_file(word) for word in words) or not any("'type' is missing" in problem for problem in error.problems):
            raise
        hint = (
            f"no evaluation file is among the words; to change the built-in evaluations, begin with their name: {SCENES} {' '.join(words)}"
        )
        raise UserError(*error.problems, hint) from None


def evaluate_models(
    model: Model | None,
    teachers: Mapping[str, Teacher],
    suite: Suite,
    agreement: AgreementProtocol = UNCALIBRATED,
    processes: Processes | None = None,
    vlm: "Vlm | None" = None,
    *,
    results: dict[str, Result] | None = None,
) -> dict[str, Result]:
    """The same for models that are loaded: measures, prints the table, returns the results by evaluation.

    Where an evaluation fails, the table has those before it.

    agreement: see `agreement_of`. processes: those of `torchrun`, None for this one alone. vlm: the vision-language model whose tower is
    `model`, None where there is none. results: takes each result when it is there.
    """
    results = {} if results is None else results
    is_first = processes is None or processes.is_first
    bench = suite.bench(model, teachers, PHASES.progress if is_first else silent, agreement, processes)
    bench.vlm = vlm
    try:
        run_suite(suite, bench, PHASES.phase, results)
    finally:
        if is_first and results:
            print_results(results)
    return results


def teachers_of(path: Path, custom_teachers: Mapping[str, Teacher], suite: Suite) -> dict[str, Teacher]:
    """The teachers of a run folder and `custom_teachers`; of a model folder `custom_teachers` alone.

    They are in the precision of the suite unless the recipe fixes it. Raises UserError where one cannot be loaded.
    """
    recipe = _recipe_of(path)
    if recipe is None:
        return dict(custom_teachers)
    missing = [name for name, settings in recipe.teachers.items() if settings.type == "custom" and name not in custom_teachers]
    if missing:
        raise UserError(
            *(f"teachers: '{name}' is of type custom, an object; pass it: amradio.evaluate(..., teachers=...)" for name in missing)
        )
    return {
        **load_teachers(for_suite(recipe, suite), {name: custom_teachers[name] for name in custom_teachers if name in recipe.teachers}),
        **custom_teachers,
    }


def agreement_of(path: Path, model: Model) -> AgreementProtocol:
    """How the run that made a model compares heads with teachers: its grid, and the statistics that it calibrated.

    path: a run folder; a model folder has no statistics, and its grid is that of the recipe in its config.json where there is one.
    Raises UserError where the run's files are damaged.
    """
    recipe = _recipe_of(path)
    facts = model.config.training
    if recipe is not None:
        return AgreementProtocol(recipe.loss.grid, read_statistics(path, recipe, facts.step if facts is not None else recipe.num_steps))
    text = facts.recipe if facts is not None else None
    try:
        stated = validate(Recipe, parse_yaml(text, "recipe")) if text else None
    except UserError:  # of another version
        stated = None
    return AgreementProtocol(stated.loss.grid) if stated is not None else UNCALIBRATED


def _recipe_of(path: Path) -> Recipe | None:
    """The recipe of a distillation's run folder, None where `path` is none. Raises UserError where it cannot be read."""
    folder = RunFolder(path)
    return folder.recipe() if folder.is_run and kind_of(folder.config()) != "detection" else None


def for_suite(recipe: Recipe, suite: Suite) -> Recipe:
    """The recipe with the device and precision of the suite, so that teachers whose precision is `auto` are measured as the student is."""
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"device": suite.device, "precision": suite.precision})})


def check_json(file: Path) -> None:
    """Raises UserError where results cannot go into `file`: a folder, below a file, or a file that holds anything but results."""
    if file.is_dir():
        raise UserError(f"--json: {shown(file)} is a folder; give the name of a file, e.g. {shown(file / 'results.json')}")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if not file.exists() and not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(f"--json: {shown(above)} is no folder that can be written; give another name")
    if file.is_file() and file.stat().st_size and "results" not in (peek(file) or {}):
        raise UserError(f"--json: {shown(file)} exists and holds no results of an evaluation; nothing was touched; give another name")


def json_text(results: Mapping[str, Result], about: Mapping[str, Any]) -> str:
    """All numbers with their settings, counts, seconds and fingerprints, and the machine they were measured on."""
    content = {**about, "environment": environment(), "results": {name: plain(result) for name, result in results.items()}}
    return json.dumps(content, indent=1) + "\n"


def write_json(results: Mapping[str, Result], file: Path, about: Mapping[str, Any]) -> None:
    """Writes `json_text` to a file, or a device."""
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json_text(results, about)
        if file.exists() and not file.is_file():  # /dev/stdout
            file.write_text(text, encoding="utf-8")
        else:
            write_aside(file.resolve(), text.encode())
