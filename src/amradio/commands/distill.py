"""`amradio distill`: runs or resumes a recipe."""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import torch

from ..config import to_yaml
from ..console import INDENT, note, outlive_console, print_text
from ..data import OpenData
from ..devices import autocast_dtype, find_device
from ..engine.distributed import Processes, failures_of_peers
from ..engine.log import Log
from ..errors import UserError
from ..interruption import RunStoppedError
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..students.base import Student
from ..teachers.base import Teacher
from ..training import (
    PeriodicSuite,
    Trainer,
    check_data,
    check_network,
    describe_data,
    describe_views,
    doubts_about_amounts,
    initialize,
    load_teachers,
)
from .report import write_own_report
from .tables import print_table

Say = Callable[[str], None]


def distill(
    recipe: Recipe, teachers: Mapping[str, Teacher] | None = None, student: Student | None = None, within: float | None = None
) -> Path:
    """Distils the teachers of a recipe into its student and returns the run folder. The same call resumes a stopped run exactly.

    Under `torchrun` the processes share out the images of each step.

    Args:
        recipe: see `Recipe.load`.
        teachers: objects for the teachers of type `custom`, by their names in the recipe.
        student: an object that is trained in place, where the recipe's student is of type `custom`.
        within: seconds that the training may take; where the first steps of a new run show that it takes longer, TooSlowError is raised
            before anything is saved and names the number of steps that fit. None for no limit.

    Raises UserError with all problems at once, before anything is written, where the recipe cannot be run here; and during the run where
    numbers are not finite or a file cannot be written. Raises RunStoppedError (a SystemExit) after the checkpoint where a signal stops
    the run.
    """
    custom_teachers = dict(teachers or {})
    if recipe.engine.threads:
        torch.set_num_threads(min(recipe.engine.threads, os.cpu_count() or 1))
    with outlive_console(), failures_of_peers(), closing(Processes(find_device(recipe.engine.device, "engine.device"))) as processes:
        return _distill(recipe, custom_teachers, processes, student, within)


def _distill(
    recipe: Recipe, custom_teachers: Mapping[str, Teacher], processes: Processes, student: Student | None, within: float | None
) -> Path:
    folder = RunFolder(recipe.out, recipe.engine.keep)
    log = Log(aloud=processes.is_first)
    with folder.lock() as lock:
        processes.first_does(lambda: lock.take() if folder.is_run else None)
        data = OpenData(recipe.data)
        loaded, problems = _load(recipe, data, custom_teachers, folder, log.say)
        met = list(dict.fromkeys(problem for process_problems in processes.gather(problems) for problem in process_problems))
        if met:
            raise UserError(*met, on_all_processes=True)
        trainer = Trainer(recipe, loaded, processes, log, student, data)
        trainer.monitor.within = None if folder.checkpoints.steps() else within
        trainer.begin(lock)
        for note in doubts_about_amounts(recipe, data) if processes.is_first else ():
            log.warn(note)
        trainer.run()
        stop = trainer.context.stop
        if stop.was_followed:  # the same code on all processes, whichever of them was asked
            raise RunStoppedError(max(number or 0 for number in processes.gather(stop.number)))
        if recipe.engine.report and processes.is_first:
            write_own_report(folder, log.warn)
    return folder.path


def _load(
    recipe: Recipe, data: OpenData, custom_teachers: Mapping[str, Teacher], folder: RunFolder, say: Say
) -> tuple[dict[str, Teacher], list[str]]:
    """The teachers, and what stands against the run: all that can be found out before anything is written."""
    problems = recipe.memory_problems(int(os.environ.get("WORLD_SIZE", "1")))
    if problems:
        return {}, problems
    problems = folder.check(recipe)
    is_writable = not problems
    say("looking at the data")
    problems += check_data(recipe, data) + recipe.engine.missing_extras()
    problems += [
        f"teachers: '{name}' was passed, but the recipe has no teacher of that name and the type 'custom'"
        for name in custom_teachers
        if name not in recipe.teachers or recipe.teachers[name].type != "custom"
    ]
    loaded: dict[str, Teacher] = {}
    if not is_writable:  # the teachers may take minutes, and another folder is needed first
        return loaded, problems
    try:
        loaded = load_teachers(recipe, custom_teachers, say)
    except UserError as error:
        problems += error.problems
    return loaded, problems


def dry_run(recipe: Recipe) -> None:
    """Prints the resolved recipe, the teachers, the student and the data found; trains nothing and writes nothing."""
    device, data = find_device(recipe.engine.device, "engine.device"), OpenData(recipe.data)
    folder = RunFolder(recipe.out)
    loaded, problems = _load(recipe, data, {}, folder, note)
    if problems:
        raise UserError(*problems)
    record = folder.network_record()
    needs_no_weights = record is None and recipe.student_is_random and recipe.evaluate.suite is None
    with torch.device("meta" if needs_no_weights else "cpu"):  # a network of any size costs no memory where nothing is read or run
        initial = initialize(recipe, loaded, record)
    network = initial.network
    problems = check_network(recipe, network, loaded, 1)
    if problems:
        raise UserError(*problems)
    PeriodicSuite(recipe, loaded, device).check(initial.config, network)
    print(to_yaml(recipe))
    rows = [
        (
            name,
            recipe.teachers[name].type,
            t.source,
            _millions(t),
            t.summary_dim or "-",
            t.spatial_dim or "-",
            _input(t),
            t.patch_size,
            t.licence,
        )
        for name, t in loaded.items()
    ]
    print_table("Teachers", ("name", "type", "source", "M", "summary", "spatial", "input px", "patch", "licence"), rows)
    print_table("Views", ("partition", "crops px", "student px", "steps", "teachers px"), describe_views(recipe, network, loaded))
    student = network.student
    rows = [("student", _millions(student), student.patch_size, student.num_summaries, student.summary_dim)]
    rows += [(f"head {name}", _millions(head), "-", "-", "-") for name, head in network.heads.items()]
    print_table("Network", ("part", "M parameters", "patch", "summaries", "channels"), rows)
    for line in initial.notes:
        print_text(line, "", INDENT)
    print_table("Data", ("key", "found"), list(describe_data(recipe, data).items()))
    for line in doubts_about_amounts(recipe, data):
        print_text(f"warning: {line}", "", INDENT)
    precision = autocast_dtype(recipe.engine.precision, device) or torch.float32
    print_text(f"{recipe.num_steps} steps on {device} in {str(precision).removeprefix('torch.')} would be written to {recipe.out}")


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}"


def _input(teacher: Teacher) -> str:
    return str(teacher.input_size) if teacher.input_size else f"any x{teacher.patch_size}"
