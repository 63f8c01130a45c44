"""AM-RADIO's table 7 as a program: what each student costs, and what it has learnt from the same teachers with the same budget.

    python benchmarks/students.py LIST.yaml [key=value ...] [--throughput-only] [--only ROW ...] [--runs DIR]

For each student of the list: parameters, GMACs, images/s and latency (compiled and not, float32 and bfloat16); then one short
distillation, the same for all; then the held-out feature-distillation loss and the list's evaluations. Teachers are measured beside
them. Beside LIST's `json` a Markdown table and a picture of quality against speed are written after every row.

A row that is in the JSON with the same settings is not measured again; a distillation that was stopped goes on where it was.

    python benchmarks/students.py benchmarks/students_scenes.yaml                    # scenes, 64 px: 12 students, about 2 hours
    python benchmarks/students.py benchmarks/students_photographs.yaml               # real photographs, 64 px: 4 students, about 30 minutes
    python benchmarks/students.py benchmarks/students_224.yaml --throughput-only     # the paper's rows at 224 px, on a GPU

(times: for one CPU core). What is timed is the backbone with its summary, without heads, ready for deployment: branches
merged, and BatchNorm folded by E-RADIO itself; a compiled model has BatchNorm folded whoever made it.
Speeds mean something on a quiet machine only: the load average is noted beside each.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic
import torch
from book import Book, markdown
from scatter import Panel, Point, draw_panels
from torch import nn

from amradio.commands.distill import distill
from amradio.config import Settings, one_of, validate
from amradio.console import PHASES
from amradio.cost import macs, time_calls
from amradio.devices import find_device
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.errors import UserError, nearest
from amradio.evaluation.base import Result
from amradio.evaluation.suite import Suite, run_suite
from amradio.model import load
from amradio.recipe import Recipe
from amradio.run_folder import RunFolder
from amradio.students import STUDENTS
from amradio.students.base import Student
from amradio.students.settings import StudentSettings
from amradio.teachers.base import Teacher
from amradio.teachers.settings import TeacherSettings
from amradio.training import Trainer, load_teachers
from amradio.words import read_words

ROOT = Path(__file__).parents[1]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSS, LOSS_TITLE, TRAINING_SECONDS = "fd_loss", "FD loss", "training seconds"
COSTS = {"parameters_m": "M parameters", "gmacs": "GMACs"}
TRAINING = {LOSS: LOSS_TITLE, "training_seconds": TRAINING_SECONDS}
"""Key in the JSON file -> column of the table."""
TEACHERS = "teachers"


class SpeedSettings(Settings):
    """How images/s are measured: every combination of precision, compiled or not, and batch size."""

    image_size: int = pydantic.Field(224, gt=0)
    """px; each model takes its nearest legal size."""
    batch_sizes: list[int] = pydantic.Field([1, 32], min_length=1)
    precisions: list[Literal["float32", "bfloat16", "float16"]] = pydantic.Field(["float32"], min_length=1)
    """Of weights and images."""
    compile: list[bool] = pydantic.Field([False], min_length=1)
    """true: by torch.compile, BatchNorm folded into convolutions (`freezing`)."""
    seconds: float = pydantic.Field(3.0, gt=0)
    """How long each is called, at least five times."""
    device: str = "auto"


class Comparison(Settings):
    """A list of students, and what is done to all of them."""

    out: str
    """Where results go, from the project's root."""
    students: dict[str, one_of(STUDENTS)] = pydantic.Field(min_length=1)  # type: ignore[valid-type]
    """By the name of the row."""
    against: list[str] = pydantic.Field(default_factory=list)
    """Rows to whose cost that of all others is set in proportion."""
    speed: SpeedSettings = SpeedSettings()
    recipe: list[str] = pydantic.Field(default_factory=list)
    """Words of the distillation, less student and out; files from the project's root."""
    suite: Suite | None = None
    """Evaluations of the distilled. `models` of each names one row of the student; its teachers' rows are measured once beside them."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Comparison":
        unknown = [name for name in self.against if name not in self.students]
        if unknown:
            raise ValueError(f"against: there is no row {unknown}; there is: {', '.join(self.students)}")
        several = [name for name, found in (self.suite.evaluations if self.suite else {}).items() if len(found.models or ()) != 1]
        if several:
            raise ValueError(f"suite.evaluations: {', '.join(several)}: give `models` one row of the student, as [student]")
        return self


class Row(NamedTuple):
    """A model whose cost is measured."""

    build: Callable[[str], nn.Module]
    """precision -> the model, ready for inference."""
    shadow: Callable[[], nn.Module]
    """The model as it is trained, for counting: on the meta device where it can be built there."""


def row_of_student(settings: StudentSettings, num_summaries: int) -> Row:
    """Deployed before it is cast (`Student.deploy`): branches merged, and BatchNorm folded where the student does that itself."""

    def build(precision: str) -> nn.Module:
        return settings.build(num_summaries).eval().deploy().to(DTYPES[precision])

    def shadow() -> nn.Module:
        with torch.device("meta"):
            return settings.build(num_summaries).eval()

    return Row(build, shadow)


def row_of_teacher(settings: TeacherSettings) -> Row:
    return Row(lambda precision: settings.model_copy(update={"precision": precision}).build(), settings.build)


# cost


def measure_cost(row: Row, speed: SpeedSettings) -> dict[str, Any]:
    """Parameters, GMACs of one image, and images/s and latency of every combination."""
    device = find_device(speed.device, "speed.device")
    shadow = row.shadow()
    size = legal_size(shadow, speed.image_size)
    found: dict[str, Any] = {
        "parameters_m": sum(p.numel() for p in shadow.parameters()) / 1e6,
        "gmacs": macs(shadow, torch.rand(1, 3, *size, device=next(shadow.parameters()).device)) / 1e9,
        "input": list(size),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    return found | {"speeds": [each for precision in speed.precisions for each in speeds(row, size, precision, speed, device)]}


def speeds(row: Row, size: tuple[int, int], precision: str, speed: SpeedSettings, device: torch.device) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    model = row.build(precision).to(device).eval().requires_grad_(False)
    dtype = torch.float32 if isinstance(model, Teacher) else DTYPES[precision]  # teachers take float32 and cast what they normalised
    for compiled in speed.compile:
        torch.compiler.reset()
        call: Any = torch.compile(model, options={"freezing": True}) if compiled else model
        for batch in PHASES.progress(speed.batch_sizes, f"{precision}{', compiled' * compiled}", len(speed.batch_sizes)):
            images = torch.rand(batch, 3, *size, device=device).to(dtype)
            yield {"precision": precision, "compiled": compiled, "batch": batch, **time_calls(call, images, speed.seconds)}


def legal_size(model: nn.Module, side: int) -> tuple[int, int]:
    if isinstance(model, Teacher):
        return model.size_for(side, side)
    assert isinstance(model, Student)
    return model.nearest_size(side, side)


# quality


def distilled(recipe: Recipe, teachers: Mapping[str, Teacher] | None = None) -> dict[str, Any]:
    """Distils (or resumes); the seconds of the steps alone, and the feature-distillation loss on held-out images.

    teachers: objects for those of type `custom`, by name.
    """
    begun = time.perf_counter()
    folder = distill(recipe, teachers)
    seconds = time.perf_counter() - begun
    run = RunFolder(folder)
    speed = statistics.median(run.metrics()["images_per_second"].values)
    images = sum(stage.steps * sum(p.batch_size for p in stage.partitions) for stage in recipe.stages)
    found = {"steps": recipe.num_steps, "training_images_per_second": speed, "training_seconds": images / speed, "seconds": seconds}
    return found | {LOSS: held_out_loss(recipe, teachers or {}), "agreement": run.records()[-1]}


@torch.no_grad()
def held_out_loss(recipe: Recipe, teachers: Mapping[str, Teacher]) -> float:
    """The loss of the recipe's last stage in evaluation mode, mean over the held-out batches that the recipe measures agreement on."""
    trainer = Trainer(recipe, load_teachers(recipe, teachers), Processes(find_device(recipe.engine.device, "engine.device")), Log(None))
    assert trainer.resume() == recipe.num_steps
    context = trainer.context
    task, device, autocast = context.task.eval(), context.processes.device, context.autocast
    total, count = 0.0, 0
    for group in context.stages[-1].groups:
        for batch in context.feeds.held_out(group):
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                loss = task(batch.to(device), group.partition).loss
            total, count = total + float(loss) * len(batch.keys), count + len(batch.keys)
    return total / count


def scores(results: Mapping[str, Result], model: str) -> dict[str, float]:
    """`{"k-NN/k20": 81.2}`: the first headline of every evaluation for one row of the models."""
    first = {name: next(metric.name for metric in result.metrics if metric.headline) for name, result in results.items()}
    return {f"{name}/{metric}": results[name].rows[model][metric] for name, metric in first.items() if model in results[name].rows}


def of_teachers(suite: Suite, names: list[str]) -> Suite:
    """The same evaluations of the teachers: of the one whose head was named, or of all where the backbone was."""
    changed = {}
    for name, evaluation in suite.evaluations.items():
        heads = [row.removeprefix("student/") for row in evaluation.models or () if row != "student"]
        changed[name] = evaluation.model_copy(update={"models": [f"teacher/{head}" for head in heads or names]})
    return suite.model_copy(update={"evaluations": changed})


# the table


class Comparing:
    """One run over the list."""

    def __init__(self, comparison: Comparison, runs: Path):
        self.comparison, self.runs = comparison, runs
        self.file = ROOT / comparison.out
        self.book = Book(self.file)

    def cost(self, name: str, row: Row, settings: Mapping[str, Any]) -> None:
        """Measures what a row costs, unless it is in the book."""
        settings = {"model": settings, "speed": self.comparison.speed.model_dump(mode="json")}
        if not self.book.has(name, "cost", settings):
            self.book.write(name, "cost", settings, measure_cost(row, self.comparison.speed))

    def quality(self, name: str, student: StudentSettings) -> None:
        """Distils a row and measures what came out, unless it is in the book."""
        suite = self.comparison.suite
        recipe = self.recipe(name, student)
        settings = {"recipe": recipe.model_dump(mode="json", exclude={"out"})}
        if not self.book.has(name, "distillation", settings):
            self.book.write(name, "distillation", settings, distilled(recipe))
        settings["suite"] = suite.model_dump(mode="json") if suite is not None else None
        if suite is not None and not self.book.has(name, "scores", settings):
            results = run_suite(suite, suite.bench(load(Path(recipe.out)), load_teachers(recipe, {}), PHASES.progress))
            models = {model for result in results.values() for model in result.rows}
            self.book.write(name, "scores", settings, {"scores": {model: scores(results, model) for model in sorted(models)}})

    def teachers(self) -> None:
        """Cost and scores of the recipe's teachers."""
        if not self.comparison.recipe:
            return
        recipe = self.recipe("teachers", next(iter(self.comparison.students.values())))
        for name, settings in recipe.teachers.items():
            self.cost(f"teacher/{name}", row_of_teacher(settings), settings.model_dump(mode="json"))
        suite = self.comparison.suite
        if suite is None:
            return
        own = of_teachers(suite, list(recipe.teachers))
        settings = {"suite": own.model_dump(mode="json"), "teachers": {n: t.model_dump(mode="json") for n, t in recipe.teachers.items()}}
        names = [f"teacher/{name}" for name in recipe.teachers]
        if all(self.book.has(name, "scores", settings) for name in names):
            return
        results = run_suite(own, own.bench(None, load_teachers(recipe, {}), PHASES.progress))
        for name in names:
            self.book.write(name, "scores", settings, {"scores": {name: scores(results, name)}})

    def recipe(self, name: str, student: StudentSettings) -> Recipe:
        """The recipe of a row. Files among the words are looked for from the project's root."""
        words = [str(ROOT / word) if word.endswith(".yaml") else word for word in self.comparison.recipe]
        student_word = f"student={json.dumps(student.model_dump(mode='json'))}"
        return Recipe.load(*words, student_word, f"out={self.runs / name}")

    def rows(self) -> list[dict[str, Any]]:
        """What is known, one flat row a model, students in the order of the list, then teachers."""
        names = [n for n in self.comparison.students if n in self.book.rows]
        names += [n for n in self.book.rows if n.startswith("teacher/")]
        return [self._flat(name) for name in names]

    def _flat(self, name: str) -> dict[str, Any]:
        parts = self.book.rows[name]
        cost = parts.get("cost", {})
        flat = {"model": name} | {title: cost[key] for key, title in COSTS.items() if key in cost}
        flat |= {speed_title(found): found["images_per_second"] for found in cost.get("speeds", ())}
        flat |= {title: parts["distillation"][key] for key, title in TRAINING.items() if key in parts.get("distillation", {})}
        for found in parts.get("scores", {}).get("scores", {}).values():
            flat |= found
        return flat

    def publish(self) -> None:
        """Writes the Markdown table and the picture beside the JSON file."""
        rows = self.rows()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        self.file.with_suffix(".md").write_text(markdown(rows, columns, self.comparison.against), encoding="utf-8")
        speed = [key for key in columns if "images/s" in key]
        qualities = [key for key in columns if key not in ("model", *COSTS.values(), TRAINING_SECONDS, *speed)]
        if not speed or not qualities:
            return
        axis = max(speed, key=lambda key: (sum(key in row for row in rows), speed.index(key)))
        panels = [panel(rows, axis, quality) for quality in qualities]
        draw_panels([found for found in panels if found.points], self.file.with_suffix(".png"), f"{axis} (logarithmic)")


def speed_title(found: Mapping[str, Any]) -> str:
    return f"images/s, {found['precision']}{', compiled' * found['compiled']}, batch {found['batch']}"


def panel(rows: list[dict[str, Any]], axis: str, quality: str) -> Panel:
    points = [
        Point(row["model"], row[axis], row[quality], "teacher" if row["model"].startswith("teacher/") else "student")
        for row in rows
        if axis in row and quality in row
    ]
    return Panel(quality, points, lower_is_better=quality == LOSS_TITLE)


def compare(comparison: Comparison, runs: Path, only: list[str], throughput_only: bool) -> Path:
    """Measures what is missing, row by row; returns the JSON file."""
    comparing = Comparing(comparison, runs)
    students = {name: found for name, found in comparison.students.items() if not only or name in only}
    for number, (name, student) in enumerate(students.items()):
        print(f"[{number + 1}/{len(students)}] {name}", flush=True)
        num_summaries = 1 if student.shares_summary else len(comparison.recipe and comparing.recipe(name, student).teachers) or 1
        comparing.cost(name, row_of_student(student, num_summaries), student.model_dump(mode="json"))
        if comparison.recipe and not throughput_only:
            comparing.quality(name, student)
        comparing.publish()
    if not throughput_only and (not only or TEACHERS in only):
        comparing.teachers()
        comparing.publish()
    print(comparing.file.with_suffix(".md").read_text(encoding="utf-8"))
    return comparing.file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="LIST.yaml|key=value")
    parser.add_argument("--throughput-only", action="store_true", help="cost alone")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="this row, or `teachers` for theirs (may be given again)"
    )
    parser.add_argument("--runs", type=Path, help="where the run folders go; runs/NAME of the list's out file unless given")
    options = parser.parse_intermixed_args()
    try:
        comparison = validate(Comparison, read_words(options.words))
        there = [*comparison.students, TEACHERS]
        unknown = [name for name in options.only if name not in there]
        if unknown:
            raise UserError(*(f"--only: there is no row '{name}'; {nearest(name, there)}" for name in unknown))
        compare(comparison, options.runs or ROOT / "runs" / Path(comparison.out).stem, options.only, options.throughput_only)
    except UserError as error:
        sys.exit("\n".join(f"error: {problem}" for problem in error.problems))


if __name__ == "__main__":
    main()
