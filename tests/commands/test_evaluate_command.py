"""`amradio evaluate` on a run folder and on a model folder; its table and its machine-readable results."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import amradio
import vlms
from amradio.__main__ import main
from amradio.commands.results import best_of, gap, headline_columns
from amradio.errors import UserError
from amradio.evaluation import Metric, Result
from amradio.evaluation.suite import Suite
from amradio.recipe import Recipe
from amradio.yaml12 import write_yaml
from evaluations import SMALL, add_tokenizer


@pytest.fixture
def run_folder(recipe: Callable[..., Recipe], teacher_folders: dict[str, Path]) -> Path:
    add_tokenizer(teacher_folders["clip"])
    return amradio.distill(recipe("stages.0.steps=2"))


@pytest.fixture
def evaluation_file(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation.yaml"
    chosen = {kind: {"type": kind, **SMALL[kind]} for kind in ("knn", "zero_shot", "agreement", "throughput")}
    path.write_text(write_yaml({"evaluations": chosen, "device": "cpu"}))
    return path


@pytest.mark.slow
def test_a_run_folder(run_folder: Path, evaluation_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["evaluate", str(run_folder), str(evaluation_file), "evaluations.knn.k=[3]", "--json", str(tmp_path / "deep" / "x.json")]) == 0
    )
    printed = capsys.readouterr().out
    for word in ("student/clip", "teacher/dino", "gap clip", "floor", "k=3 %", "*"):
        assert word in printed, word
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80
    assert printed.count("student/clip ") >= 2, "the table is split"
    found = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert found["path"] == str(run_folder)
    assert set(found["teachers"]) == {"clip", "dino", "sam"}
    for result in found["results"].values():
        assert {"rows", "settings", "counts", "seconds", "fingerprint", "floors", "metrics", "details"} <= set(result)
    assert set(found["results"]["knn"]["rows"]) >= {"student", "student/sam", "teacher/dino"}
    assert found["results"]["knn"]["settings"]["k"] == [3]
    assert set(found["results"]["agreement"]["details"]["by_size"]["student/dino"]) == {"32", "48"}


@pytest.mark.slow
def test_a_model_folder(run_folder: Path, teacher_folders: dict[str, Path]) -> None:
    alone = amradio.evaluate(
        run_folder / "model", "evaluations.knn={type: knn, database: {type: scenes, length: 20}, queries: {type: scenes, length: 9}}"
    )
    assert set(alone["knn"].rows) == {"student", "student/clip", "student/dino", "student/sam"}
    word = "evaluations.zero_shot={type: zero_shot, data: {type: scenes, length: 9}, templates: ['a {}']}"
    with pytest.raises(UserError, match=r"evaluations.zero_shot: a text encoder is needed.*there is: no teacher"):
        amradio.evaluate(run_folder / "model", word)
    clip = f"teachers.clip={{type: clip, model: {teacher_folders['clip']}}}"
    assert "teacher/clip" in amradio.evaluate(run_folder / "model", word, clip)["zero_shot"].rows


@pytest.mark.slow
def test_what_the_user_can_put_right(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = "teachers.x={type: clip, model: ./nowhere}"
    for words, message in (
        (["nowhere"], "nowhere: there is no such file or folder"),
        ([run_folder, "evaluations.x={type: knn}"], "evaluations.x.database: this key is required"),
        ([run_folder, "evaluatoins.x=knn"], "there is no such key; did you mean 'evaluations'"),
        ([run_folder, "evaluations={}"], "evaluations: "),
        ([run_folder, teacher, "evaluations.a={type: throughput}"], "teachers.x: teacher './nowhere'"),
    ):
        assert main(["evaluate", *map(str, words)]) == 2
        assert message in capsys.readouterr().err


def test_columns_gaps_and_the_best() -> None:
    metrics = [Metric("a", "a"), Metric("b", "b", "cos"), Metric("c", "c", "", "lower"), Metric("hidden", "hidden", headline=False)]
    rows = {
        "student": {"a": 50.0, "c": 3.0},
        "student/clip": {"a": 60.0, "b": 0.5, "c": 2.0, "hidden": 1.0},
        "teacher/clip": {"a": 55.0, "b": 0.75, "c": 9.0},
        "teacher/sam": {"a": 70.0, "c": 1.0},
    }
    a, b, c = headline_columns({"x": Result(metrics, rows, {})})
    assert [best_of(column) for column in (a, b, c)] == [["teacher/sam"], ["teacher/clip"], ["teacher/sam"]]
    assert gap(a, "student/clip", ["teacher/clip"]) == 5
    assert gap(a, "student", ["teacher/clip", "teacher/sam"]) == -20
    assert gap(b, "student/clip", ["teacher/clip"]) == -25
    assert gap(b, "student", ["teacher/clip"]) is None
    assert gap(c, "student", ["teacher/clip"]) is None


def test_the_built_in_file_is_a_suite() -> None:
    suite = Suite.load("scenes")
    assert {settings.type for settings in suite.evaluations.values()} >= {"zero_shot", "knn", "agreement", "throughput"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a folder", "a recipe", "below a file"])
def test_results_overwrite_nothing_and_are_refused_before_anything_is_measured(kind, run_folder, evaluation_file, tmp_path, capsys):
    file = {"a folder": tmp_path, "a recipe": run_folder / "config.yaml", "below a file": run_folder / "config.yaml" / "x.json"}[kind]
    before = (run_folder / "config.yaml").read_bytes()
    assert main(["evaluate", str(run_folder), str(evaluation_file), f"--json={file}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: --json: " in printed.err
    assert "reading" not in printed.err
    assert (run_folder / "config.yaml").read_bytes() == before


def test_results_before_an_error_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second evaluation meets images that cannot be read; the first one's results are not lost, and a repetition overwrites them."""
    student = vlms.write_student(tmp_path / "student")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    scenes, broken = "{type: scenes, length: 4, image_size: 32}", f"{{type: folder, path: {tmp_path / 'images'}}}"
    words = [f"evaluations={{first: {{type: statistics, data: {scenes}}}, second: {{type: statistics, data: {broken}}}}}", "device=cpu"]
    file = tmp_path / "results.json"
    assert main(["evaluate", str(student), *words, "--json", str(file)]) == 2
    printed = capsys.readouterr()
    assert "error: evaluations.second: 1 images in" in printed.err
    assert "RankMe" in printed.out
    assert "results.json: the results of first, which were measured before" in " ".join(printed.out.split())
    assert list(json.loads(file.read_text())["results"]) == ["first"]
    assert main(["evaluate", str(student), *words, "evaluations.second=null", "--json", str(file)]) == 0
    capsys.readouterr()
    assert main(["--json", "evaluate", str(student), *words, "evaluations.second=null"]) == 0
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)["results"]) == ["first"], "one document and nothing else"
    assert "RankMe" in printed.err, "the table is beside it"
    assert main(["--json", "evaluate", str(student), *words]) == 2
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)["results"]) == ["first"], "what was measured before an error"
    assert "error: evaluations.second" in printed.err
