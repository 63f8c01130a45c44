"""The comparison of students: a tiny one is run, gone on with and published; what its parts count and choose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amradio.yaml12 import write_yaml

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import scatter

import students
from amradio.config import validate
from amradio.errors import UserError
from amradio.words import read_words

ROOT = Path(__file__).parents[2]
LISTS = sorted((ROOT / "benchmarks").glob("students_*.yaml"))
SCENES = {"type": "scenes", "length": 16, "seed": 1}
TINY = {
    "students": {
        "vit": {"type": "vit", "dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "max_image_size": 64},
        "convnext": {"type": "timm", "model": "test_convnext", "level": 1, "neck": True, "neck_dim": 24},
    },
    "against": ["vit"],
    "speed": {"image_size": 64, "batch_sizes": [1, 2], "precisions": ["float32", "bfloat16"], "seconds": 0.01, "device": "cpu"},
    "recipe": [
        "src/amradio/recipes/quickstart.yaml",
        "stages.0.steps=3",
        "stages.0.partitions.0.batch_size=4",
        "normalize.batches=1",
        "evaluate={every: null, batches: 1}",
        "data.num_workers=0",
        "engine={device: cpu, precision: float32, log_every: 1}",
    ],
    "suite": {
        "device": "cpu",
        "image_size": 64,
        "evaluations": {
            "zero-shot": {"type": "zero_shot", "data": SCENES, "templates": ["a {}"], "models": ["student/clip"]},
            "k-NN": {"type": "knn", "database": SCENES, "queries": {**SCENES, "seed": 2}, "k": [5], "models": ["student"]},
        },
    },
}


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    path = tmp_path / "list.yaml"
    path.write_text(write_yaml({"out": str(tmp_path / "found.json"), **TINY}))
    return path


def run(listing: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "students.py"), str(listing), "--runs", str(listing.parent / "runs"), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=listing.parent)


@pytest.mark.slow
def test_a_comparison_is_run_gone_on_with_and_published(
    listing: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    comparison = validate(students.Comparison, read_words([str(listing)]))
    students.compare(comparison, tmp_path / "runs", only=["vit"], throughput_only=False)
    assert list(json.loads((tmp_path / "found.json").read_text())["rows"]) == ["vit"]
    before = (tmp_path / "found.json").read_text()
    assert "student vit" in capsys.readouterr().out

    students.compare(comparison, tmp_path / "runs", only=[], throughput_only=False)
    assert "student vit" not in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"]["vit"] == json.loads(before)["rows"]["vit"]  # not measured again
    assert list(found["rows"]) == ["vit", "convnext", "teacher/clip", "teacher/dino", "teacher/sam"]
    row = found["rows"]["convnext"]
    assert [(speed["precision"], speed["batch"]) for speed in row["cost"]["speeds"]] == [
        ("float32", 1),
        ("float32", 2),
        ("bfloat16", 1),
        ("bfloat16", 2),
    ]
    assert row["distillation"]["steps"] == 3
    assert 2 < row["distillation"]["fd_loss"] < 15  # five losses of 1 to 2 (few images are calibrated on), one of them twice
    assert set(row["scores"]["scores"]) == {"student", "student/clip"}
    assert set(found["rows"]["teacher/dino"]["scores"]["scores"]["teacher/dino"]) == {"k-NN/k5"}

    table = (tmp_path / "found.md").read_text()
    assert table.startswith("| model | M parameters | GMACs | images/s, float32, batch 1 |")
    assert "Against vit" in table
    assert (tmp_path / "found.png").stat().st_size > 1000

    third = run(listing, "speed.batch_sizes=[1]", "--throughput-only")
    assert third.returncode == 0, third.stderr
    changed = json.loads((tmp_path / "found.json").read_text())["rows"]["vit"]
    assert len(changed["cost"]["speeds"]) == 2  # other settings: measured again
    assert changed["distillation"] == found["rows"]["vit"]["distillation"]


@pytest.mark.slow
def test_a_comparison_refuses_what_it_does_not_know(listing: Path) -> None:
    ended = run(listing, "--only", "convnxt")
    assert ended.returncode == 1
    assert "there is no row 'convnxt'; did you mean 'convnext'?" in ended.stderr
    with pytest.raises(UserError, match="against: there is no row"):
        validate(students.Comparison, read_words([str(listing), "against=[nobody]"]))
    with pytest.raises(UserError, match="k-NN: give `models` one row of the student"):
        validate(students.Comparison, read_words([str(listing), "suite.evaluations.k-NN.models=null"]))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_the_lists_are_valid(path: Path) -> None:
    comparison = validate(students.Comparison, read_words([str(path)]))
    assert all(Path(name).name == name for name in comparison.students)
    if comparison.recipe:
        recipe = students.Comparing(comparison, Path("runs")).recipe("row", next(iter(comparison.students.values())))
        assert recipe.data.has_val


@pytest.mark.slow
def test_students_of_the_list_for_scenes_are_of_similar_cost() -> None:
    comparison = validate(students.Comparison, read_words([str(ROOT / "benchmarks" / "students_scenes.yaml")]))
    assert len(comparison.students) >= 8
    for student in comparison.students.values():
        shadow = students.row_of_student(student, 2).shadow()
        assert students.legal_size(shadow, 64) == (64, 64)
        assert 0.03 < students.macs(shadow, torch.rand(1, 3, 64, 64, device="meta")) / 1e9 < 0.16


def test_teachers_are_evaluated_where_their_heads_are() -> None:
    suite = validate(students.Suite, TINY["suite"])
    found = students.of_teachers(suite, ["clip", "sam"]).evaluations
    assert found["zero-shot"].models == ["teacher/clip"]
    assert found["k-NN"].models == ["teacher/clip", "teacher/sam"]


def test_the_frontier_is_what_nothing_beats() -> None:
    points = [scatter.Point(name, x, y, "student") for name, x, y in (("a", 10, 1), ("b", 5, 3), ("c", 5, 2), ("d", 1, 4), ("e", 2, 2.5))]
    assert [point.name for point in scatter.frontier(points)] == ["a", "b", "d"]
    assert [point.name for point in scatter.frontier(points, lower_is_better=True)] == ["a"]
