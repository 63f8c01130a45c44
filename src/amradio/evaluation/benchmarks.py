"""Suites of published benchmarks: their evaluations from one small file of paths."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Settings, UserPath, defaults, validate
from ..errors import UserError, shown
from ..files import read_text
from ..words import merge, read_words
from ..yaml12 import parse_yaml
from .published import SuiteName
from .suite import Suite


class BenchmarkPaths(Settings):
    """Where benchmarks are on this machine, each in its official layout: the file of `amradio evaluate MODEL --suite NAME --data FILE`."""

    imagenet: UserPath | None = None
    """ImageNet-1k: `train` and `val` with a folder for each class."""
    ade20k: UserPath | None = None
    """ADE20K (ADEChallengeData2016): `images` and `annotations`, each with `training` and `validation`."""
    voc: UserPath | None = None
    """Pascal VOC 2012 (VOCdevkit/VOC2012): `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`."""
    coco: UserPath | None = None
    """COCO: `annotations/instances_val2017.json` and `val2017`; for the suite vlm `val2014`."""
    navi: UserPath | None = None
    """NAVI: a folder for each object."""
    nyu: UserPath | None = None
    """NYUv2 with the lists of BTS."""
    spair: UserPath | None = None
    """SPair-71k: `JPEGImages` and `PairAnnotation`."""
    gqa: UserPath | None = None
    """GQA: `val_balanced_questions.json` and `images`."""
    pope: UserPath | None = None
    """POPE: `coco_pope_popular.json`."""
    textvqa: UserPath | None = None
    """TextVQA: `TextVQA_0.5.1_val.json`, `TextVQA_Rosetta_OCR_v0.2_val.json` and `train_images`."""
    vqav2: UserPath | None = None
    """VQAv2: `v2_OpenEnded_mscoco_val2014_questions.json` and `v2_mscoco_val2014_annotations.json`."""
    clip_benchmark: UserPath | None = None
    """Shards of clip_benchmark: a folder `wds_NAME` for each data set, with `test/nshards.txt`."""


CLIP_BENCHMARK = (
    *("imagenet1k", "imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet", "cars", "country211", "fer2013"),
    *("fgvc_aircraft", "food101", "gtsrb", "mnist", "renderedsst2", "stl10", "sun397", "voc2007"),
    *(f"vtab/{name}" for name in ("caltech101", "cifar10", "cifar100", "dtd", "eurosat", "flowers", "pcam", "pets", "resisc45", "svhn")),
    *("flickr8k", "flickr30k", "mscoco_captions"),
)
"""Data sets of the suite clip by their names in the library, which has their shards on the hub."""


def _instances(data: str) -> dict[str, Any]:
    return {"type": "coco_instances", "annotations": f"{data}/annotations/instances_val2017.json", "images": f"{data}/val2017"}


def _classes(data: str, part: str) -> dict[str, Any]:
    return {"type": "class_folder", "path": f"{data}/{part}"}


def _maps(kind: str, data: str, *splits: str) -> dict[str, Any]:
    train, test = ({"type": kind, "path": data, "split": split} for split in splits)
    return {"train": train, "test": test}


def _shards(name: str, data: str) -> dict[str, Any]:
    return {"type": "clip_benchmark", "dataset": f"wds/{name}", "root": f"{data}/wds_{{dataset_cleaned}}"}


def _answers(paths: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """LLaVA-1.5's questions as AM-RADIO measures them. TextVQA has OCR tokens: with OpenAI's CLIP as tower AM-RADIO has 57.92, which is
    LLaVA-1.5's 58.2 with them.
    """
    vqa, textvqa, photographs = paths["vqav2"], paths["textvqa"], f"{paths['coco']}/val2014"
    return {
        "GQA": {"type": "gqa", "questions": f"{paths['gqa']}/val_balanced_questions.json", "images": f"{paths['gqa']}/images"},
        "POPE": {"type": "pope", "questions": [f"{paths['pope']}/coco_pope_popular.json"], "images": photographs},
        "TextVQA": {
            "type": "textvqa",
            "questions": f"{textvqa}/TextVQA_0.5.1_val.json",
            "ocr": f"{textvqa}/TextVQA_Rosetta_OCR_v0.2_val.json",
            "images": f"{textvqa}/train_images",
        },
        "VQAv2": {
            "type": "vqav2",
            "questions": f"{vqa}/v2_OpenEnded_mscoco_val2014_questions.json",
            "annotations": f"{vqa}/v2_mscoco_val2014_annotations.json",
            "images": photographs,
        },
    }


def evaluations_of(suite: SuiteName, paths: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The evaluations of a suite as a file has them. paths: by the keys of `BenchmarkPaths`."""
    suites: dict[SuiteName, dict[str, dict[str, Any]]] = {
        "paper": {
            "k-NN": {"type": "knn", "database": _classes(paths["imagenet"], "train"), "queries": _classes(paths["imagenet"], "val")},
            "zero-shot": {"type": "zero_shot", "data": _classes(paths["imagenet"], "val")},
            "ADE20K": {"type": "linear_segmentation", **_maps("ade20k", paths["ade20k"], "training", "validation")},
            "VOC": {"type": "linear_segmentation", **_maps("pascal_voc", paths["voc"], "train", "val")},
            "SAM-COCO": {"type": "promptable_segmentation", "data": _instances(paths["coco"])},
        },
        "dense": {
            "depth": {"type": "depth", **_maps("navi", paths["navi"], "train", "test"), "align": "scale_shift"},
            "normals": {"type": "normals", **_maps("navi", paths["navi"], "train", "test")},
            "NYUv2": {"type": "depth", **_maps("nyu", paths["nyu"], "train", "test")},
            "multi-view": {"type": "multiview_correspondence", "data": {"type": "navi", "path": paths["navi"]}},
            "SPair-71k": {"type": "keypoint_correspondence", "data": {"type": "spair", "path": paths["spair"]}},
        },
        "detection": {"COCO": {"type": "coco_detection", "data": _instances(paths["coco"])}},
        "vlm": _answers(paths),
        "mieb": {"MIEB": {"type": "mieb"}},
        "clip": {name: _shards(name, paths["clip_benchmark"]) for name in CLIP_BENCHMARK},
    }
    return suites[suite]


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
