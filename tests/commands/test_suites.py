"""`amradio evaluate MODEL --suite NAME`: published benchmarks in their official layouts, and what is missing of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import amradio
import data_folders
from amradio.__main__ import main
from amradio.commands.parser import parser
from amradio.evaluation import EVALUATIONS
from amradio.evaluation.benchmarks import BenchmarkPaths, evaluations_of, load_suite
from amradio.evaluation.published import HEADLINES, PUBLISHED
from amradio.recipe import Recipe
from evaluations import add_tokenizer

QUICK = (
    "evaluations.zero-shot.templates=['a {}']",
    "evaluations.ADE20K.schedule={type: short, steps: 2}",
    "evaluations.VOC.schedule={type: short, steps: 2}",
    "evaluations.SAM-COCO.bins=[5, 10]",
    "device=cpu",
    "image_size=32",
)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """The file of paths, and below it small folders in the layouts of ImageNet, ADE20K, VOC and COCO."""
    draws = np.random.default_rng(0)

    def picture() -> np.ndarray:
        return draws.integers(0, 256, (40, 48, 3), dtype=np.uint8)

    def labels(*values: int) -> np.ndarray:
        return np.repeat(np.array(values, np.uint8), 48 // len(values))[None].repeat(40, 0)

    imagenet, ade, voc, coco = (tmp_path / name for name in ("imagenet", "ade20k", "voc", "coco"))
    for number in range(20):  # as many as there are neighbours
        save(imagenet / "train" / ("n01440764", "n02102040")[number % 2] / f"{number}.JPEG", picture())
    for number in range(4):
        save(imagenet / "val" / ("n01440764", "n02102040")[number % 2] / f"{number}.JPEG", picture())
        for part in ("training", "validation"):
            save(ade / "images" / part / f"ADE_{number}.jpg", picture())
            save(ade / "annotations" / part / f"ADE_{number}.png", labels(1, 150, 0))
        save(voc / "JPEGImages" / f"n{number}.jpg", picture())
        save(voc / "SegmentationClass" / f"n{number}.png", labels(0, 20, 255))
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("n0\nn1\n")
    (lists / "val.txt").write_text("n2\nn3\n")
    data_folders.make_coco(coco)
    (coco / "annotations").mkdir()
    (coco / "instances.json").rename(coco / "annotations" / "instances_val2017.json")
    (coco / "images").rename(coco / "val2017")
    file = tmp_path / "benchmarks.yaml"
    file.write_text("".join(f"{folder.name}: {folder}\n" for folder in (imagenet, ade, voc, coco)))
    return file


@pytest.mark.slow
def test_the_suite_of_the_paper_runs_end_to_end(
    benchmarks: Path, recipe: Callable[..., Recipe], teacher_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_tokenizer(teacher_folders["clip"])
    run = amradio.distill(recipe("stages.0.steps=2"))
    out = tmp_path / "results.json"
    assert main(["evaluate", str(run), "--suite", "paper", "--data", str(benchmarks), *QUICK, "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert results.keys() == {"k-NN", "zero-shot", "ADE20K", "VOC", "SAM-COCO"}
    for result in results.values():
        metric = HEADLINES[result["settings"]["type"]]
        assert any(row.startswith("student") and metric in values for row, values in result["rows"].items())
    printed = capsys.readouterr().out
    table = " ".join(printed[printed.index("Beside published numbers") :].split())
    knn = results["k-NN"]["rows"]["student"]["k20"]
    for text in ("RADIO ViT-H/16", "86.1", f"{knn:.1f}", f"{knn - 86.06:+.1f}", "arXiv 2312.06709, table 1", "76.2", "RADIOv2.5-L"):
        assert text in table, text


def test_what_is_missing_is_said_before_anything_runs(benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks.write_text(
        "".join(line for line in benchmarks.read_text().splitlines(keepends=True) if not line.startswith(("voc", "coco")))
    )
    assert main(["evaluate", "nowhere", "--suite", "paper", "--data", str(benchmarks)]) == 2
    errors = capsys.readouterr().err
    assert f"error: {benchmarks}: voc is missing; write `voc: FOLDER` into it (Pascal VOC 2012" in errors
    assert "or leave out what needs it: evaluations.SAM-COCO=null" in errors
    assert "nowhere" not in errors.replace("evaluate nowhere", "")
    rest = load_suite("paper", benchmarks, ("evaluations.VOC=null", "evaluations.SAM-COCO=null"))
    assert rest.evaluations.keys() == {"k-NN", "zero-shot", "ADE20K"}
    assert main(["evaluate", "nowhere", "--suite", "paper"]) == 2
    assert "--data: imagenet is missing; write `imagenet: FOLDER` into a YAML file, give it as --data FILE" in capsys.readouterr().err
    (tmp_path / "other.yaml").write_text("imagnet: /data\n")
    assert main(["evaluate", "nowhere", "--suite", "paper", "--data", str(tmp_path / "other.yaml")]) == 2
    assert "imagnet: there is no such key; did you mean 'imagenet'?" in capsys.readouterr().err
    assert main(["evaluate", "nowhere", "--data", str(benchmarks)]) == 2
    assert "--data: it names the folders of a suite, and no suite is given" in capsys.readouterr().err


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_suite_is_of_evaluations_that_exist_and_published_numbers_are_of_them(name: str, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text("".join(f"{key}: /data/{key}\n" for key in BenchmarkPaths.model_fields))
    suite = load_suite(name, file)  # type: ignore[arg-type]
    types = {settings.model_fields["type"].default for settings in EVALUATIONS}
    assert {settings.type for settings in suite.evaluations.values()} <= types
    assert not PUBLISHED[name] or {settings.type for settings in suite.evaluations.values()} <= HEADLINES.keys()  # type: ignore[index]
    assert all(published.values.keys() <= suite.evaluations.keys() for published in PUBLISHED[name])  # type: ignore[index]
    paths = {key: f"/data/{key}" for key in BenchmarkPaths.model_fields}
    assert list(evaluations_of(name, paths)) == list(suite.evaluations)  # type: ignore[arg-type]


def test_the_command_line_takes_every_suite() -> None:
    (option,) = (action for action in parser()[1]["evaluate"]._actions if "--suite" in action.option_strings)
    assert tuple(option.choices) == tuple(PUBLISHED)
    (option,) = (action for action in parser()[1]["evaluate"]._actions if "--data" in action.option_strings)
    assert all(key in option.help for key in BenchmarkPaths.model_fields)
