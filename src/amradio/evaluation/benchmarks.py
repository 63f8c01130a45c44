"""Suites of published benchmarks: their evaluations from one small file of paths, and what was published for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config import Settings, UserPath, defaults, validate
from ..errors import UserError, shown
from ..files import read_text
from ..words import merge, read_words
from ..yaml12 import parse_yaml
from .base import Result
from .suite import Suite

SuiteName = Literal["paper", "dense", "detection"]


class BenchmarkPaths(Settings):
    """Where benchmarks are on this machine, each in its official layout: the file of `amradio evaluate MODEL --suite NAME --data FILE`."""

    imagenet: UserPath | None = None
    """ImageNet-1k: `train` and `val` with a folder for each class."""
    ade20k: UserPath | None = None
    """ADE20K (ADEChallengeData2016): `images` and `annotations`, each with `training` and `validation`."""
    voc: UserPath | None = None
    """Pascal VOC 2012 (VOCdevkit/VOC2012): `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`."""
    coco: UserPath | None = None
    """COCO: `annotations/instances_val2017.json` and `val2017`."""
    navi: UserPath | None = None
    """NAVI: a folder for each object."""
    nyu: UserPath | None = None
    """NYUv2 with the lists of BTS."""


def _instances(data: str) -> dict[str, Any]:
    return {"type": "coco_instances", "annotations": f"{data}/annotations/instances_val2017.json", "images": f"{data}/val2017"}


def _classes(data: str, part: str) -> dict[str, Any]:
    return {"type": "class_folder", "path": f"{data}/{part}"}


def _maps(kind: str, data: str, *splits: str) -> dict[str, Any]:
    train, test = ({"type": kind, "path": data, "split": split} for split in splits)
    return {"train": train, "test": test}


def evaluations_of(suite: SuiteName, paths: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The evaluations of a suite as a file has them. paths: by the keys of `BenchmarkPaths`."""
    imagenet, ade20k, voc, coco, navi, nyu = (paths[key] for key in BenchmarkPaths.model_fields)
    suites: dict[SuiteName, dict[str, dict[str, Any]]] = {
        "paper": {
            "k-NN": {"type": "knn", "database": _classes(imagenet, "train"), "queries": _classes(imagenet, "val")},
            "zero-shot": {"type": "zero_shot", "data": _classes(imagenet, "val")},
            "ADE20K": {"type": "linear_segmentation", **_maps("ade20k", ade20k, "training", "validation")},
            "VOC": {"type": "linear_segmentation", **_maps("pascal_voc", voc, "train", "val")},
            "SAM-COCO": {"type": "promptable_segmentation", "data": _instances(coco)},
        },
        "dense": {
            "depth": {"type": "depth", **_maps("navi", navi, "train", "test"), "align": "scale_shift"},
            "normals": {"type": "normals", **_maps("navi", navi, "train", "test")},
            "NYUv2": {"type": "depth", **_maps("nyu", nyu, "train", "test")},
        },
        "detection": {"COCO": {"type": "coco_detection", "data": _instances(coco)}},
    }
    return suites[suite]


class Published(NamedTuple):
    """Numbers of one model, in %."""

    model: str
    source: str
    values: Mapping[str, float]
    """By evaluation."""


HEADLINES = {"knn": "k20", "zero_shot": "top1", "linear_segmentation": "mean_iou", "promptable_segmentation": "box"} | {
    "depth": "mean_delta",
    "normals": "mean_recall",
    "coco_detection": "box_ap",
}
"""Which metric of a type the published numbers are of."""
TABLE_1, README, TABLE_13 = "arXiv 2312.06709, table 1", "README of NVlabs/RADIO", "arXiv 2410.01680, table 13"
COLUMNS = ("zero-shot", "k-NN", "ADE20K", "VOC", "SAM-COCO")


def _row(model: str, source: str, *values: float) -> Published:
    return Published(model, source, dict(zip(COLUMNS, values, strict=True)))


PUBLISHED: Mapping[SuiteName, Sequence[Published]] = {
    "paper": (
        _row("RADIO ViT-H/16", TABLE_1, 82.93, 86.06, 51.34, 84.71, 76.23),
        _row("E-RADIO-L", TABLE_1, 80.73, 83.89, 48.22, 81.64, 76.31),
        _row("RADIOv2.5-B", README, 74.57, 81.89, 48.94, 84.35, 73.87),
        _row("RADIOv2.5-L", README, 81.01, 84.68, 51.47, 85.49, 75.06),
    ),
    "dense": (Published("PHI-S ViT-B/16", TABLE_13, {"depth": 81.89, "normals": 56.79}),),
    "detection": (),
}
"""No number of detection is of this detector and schedule, so none stands beside it."""


def load_suite(name: SuiteName, data: Path | None, words: Sequence[str] = ()) -> Suite:
    """The evaluations of a suite, on the data of this machine.

    Args:
        name: of the suite.
        data: a YAML file with the keys of `BenchmarkPaths`; None where the user gave none.
        words: evaluation files and `key=value` that change the suite; `evaluations.VOC=null` leaves one out.

    Raises UserError with every folder that is missing and every problem of the words at once.
    """
    where = "--data" if data is None else shown(data)
    problems: list[str] = []
    stated = BenchmarkPaths() if data is None else validate(BenchmarkPaths, parse_yaml(read_text(data), where) or {}, f"{where}: ")
    known = {key: value for key, value in stated.model_dump().items() if value is not None}
    missing = {key: f"<{key}>" for key in BenchmarkPaths.model_fields if key not in known}
    start = merge(defaults(Suite), {"evaluations": evaluations_of(name, known | missing)})
    tree = read_words(words, start, "evaluation")
    for key, mark in missing.items():
        users = [evaluation for evaluation, keys in tree["evaluations"].items() if mark in str(keys)]
        if users:
            about = (BenchmarkPaths.model_fields[key].description or "").rstrip(".")
            without = " ".join(f"evaluations.{evaluation}=null" for evaluation in users)
            file = "a YAML file, give it as --data FILE" if data is None else "it"
            problems.append(
                f"{where}: {key} is missing; write `{key}: FOLDER` into {file} ({about}), or leave out what needs it: {without}"
            )
    if problems:
        raise UserError(*problems)
    return validate(Suite, tree)


class Comparison(NamedTuple):
    """A measured number beside a published one, in %."""

    evaluation: str
    name: str
    """The row that was measured: the student, and where only its heads were, the best of them."""
    measured: float
    published: Published
    value: float


def comparison(name: SuiteName, results: Mapping[str, Result]) -> list[Comparison]:
    """Every published number of which one was measured, by evaluation."""
    rows: list[Comparison] = []
    for evaluation, result in results.items():
        metric = HEADLINES.get(str(result.settings.get("type")), "")
        measured = {row: values[metric] for row, values in result.rows.items() if row.startswith("student") and metric in values}
        if measured:
            best = "student" if "student" in measured else max(measured, key=lambda row: measured[row])
            with_number = [published for published in PUBLISHED[name] if evaluation in published.values]
            rows += [Comparison(evaluation, best, measured[best], entry, entry.values[evaluation]) for entry in with_number]
    return rows
