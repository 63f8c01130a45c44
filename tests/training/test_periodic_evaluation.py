"""The suite within a run: it changes nothing of the training, says what `amradio evaluate` says, is not repeated, and is refused early."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from amradio import distill, evaluate
from amradio.commands.distill import dry_run
from amradio.engine.checkpoint import Checkpoints
from amradio.errors import UserError
from amradio.run_folder import RunFolder
from amradio.teachers.clip import ClipTeacher
from amradio.yaml12 import parse_yaml, write_yaml
from evaluations import SMALL, add_tokenizer
from processes import at_step, start_several, terminate_self
from runs import files, metrics, state

STEPS = ("stages.0.steps=4", "evaluate.every=2", "engine.checkpoint_every=2", "engine.ema=0.5")
CHOSEN = ("knn", "zero_shot", "agreement", "linear_segmentation", "promptable_segmentation", "statistics")


@pytest.fixture
def suite_file(teacher_folders: dict[str, Path], tmp_path: Path) -> Path:
    add_tokenizer(teacher_folders["clip"])
    path = tmp_path / "suite.yaml"
    path.write_text(write_yaml({"evaluations": {kind: {"type": kind, **SMALL[kind]} for kind in CHOSEN}}))
    return path


@pytest.fixture
def knn_file(tmp_path: Path) -> Path:
    path = tmp_path / "knn.yaml"
    path.write_text(write_yaml({"evaluations": {"knn": {"type": "knn", **SMALL["knn"]}}}))
    return path


def eval_lines(folder: Path) -> dict[int, dict[str, float]]:
    """The lines of metrics.jsonl with results of the suite, by step."""
    return {line["step"]: line for line in metrics(folder) if any(key.startswith("eval/") for key in line)}


@pytest.mark.slow
def test_the_training_notices_nothing_and_the_numbers_are_those_of_evaluate(recipe, suite_file, tmp_path, capsys):
    words = (*STEPS, "student.position_dropout=0.3", "engine.precision=bfloat16")
    words += tuple(f"teachers.{name}.precision=float32" for name in ("clip", "dino", "sam"))  # `auto` would be the run's in the run
    with_suite = distill(recipe(*words, f"evaluate.suite={suite_file}", f"out={tmp_path / 'with'}"))
    printed = capsys.readouterr().out
    without = distill(recipe(*words, f"out={tmp_path / 'without'}"))
    one, other = state(with_suite), state(without)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    lines = eval_lines(with_suite)
    assert [line for line in metrics(with_suite) if not any(key.startswith("eval/") for key in line)] == metrics(without)
    assert list(lines) == [0, 2, 4]
    results = evaluate(with_suite, str(suite_file), "device=cpu")
    for name, result in results.items():
        written = RunFolder(with_suite).evaluations()[4][name]
        assert written["rows"] == result.rows
        assert (written["step"], written["fingerprint"]) == (4, result.fingerprint)
        for metric in result.metrics:
            for row in result.rows:
                if metric.headline and metric.name in result.rows[row]:
                    assert lines[4][f"eval/{name}/{row}/{metric.name}"] == result.rows[row][metric.name]
    assert lines[0]["eval/zero_shot/teacher/clip/top1"] == lines[4]["eval/zero_shot/teacher/clip/top1"]
    assert printed.count("suite at step ") == 3
    assert "; zero_shot top-1 student/clip " in printed


@pytest.mark.slow
def test_a_period_of_its_own_and_no_held_out_images(recipe, knn_file):
    folder = distill(
        recipe("stages.0.steps=3", "data.val=null", "evaluate.every=null", f"evaluate.suite={knn_file}", "evaluate.suite_every=2")
    )
    assert list(eval_lines(folder)) == [0, 2, 3]
    assert not list(folder.rglob("held_out.json"))


@pytest.mark.slow
def test_a_resumed_run_does_not_measure_again(recipe, recipe_file, knn_file, amradio, tmp_path):
    words = (*STEPS, f"evaluate.suite={knn_file}")
    stopped = amradio("distill", recipe_file, *words, f"out={tmp_path / 'x'}", prelude=partial(at_step, 2, terminate_self))
    assert stopped.code == 143, stopped.errors
    assert Checkpoints(tmp_path / "x" / "checkpoints", 1).steps() == [2]
    again = amradio("distill", recipe_file, *words, f"out={tmp_path / 'x'}")
    assert again.code == 0, again.errors
    assert [(stopped.output + again.output).count(f"suite at step {step} ") for step in (0, 2, 4)] == [1, 1, 1]
    whole = distill(recipe(*words, f"out={tmp_path / 'whole'}"))
    assert eval_lines(tmp_path / "x") == eval_lines(whole)


@pytest.mark.slow
def test_teachers_of_the_run_are_not_loaded_twice(recipe, suite_file, teacher_folders, monkeypatch):
    built = []
    monkeypatch.setattr(ClipTeacher, "__init__", lambda self, *a, real=ClipTeacher.__init__, **k: built.append(1) or real(self, *a, **k))
    content = parse_yaml(suite_file.read_text(), "here")
    content["teachers"] = {name: {"type": "clip", "model": str(teacher_folders["clip"])} for name in ("clip", "another")}
    content["evaluations"] = {"knn": content["evaluations"]["knn"]}
    suite_file.write_text(write_yaml(content))
    folder = distill(recipe("stages.0.steps=1", f"evaluate.suite={suite_file}"))
    assert len(built) == 2, "clip once for run and suite, another for the suite"
    assert "eval/knn/teacher/another/k1" in eval_lines(folder)[1]


@pytest.mark.slow
def test_two_processes_share_the_images_in_a_run_and_in_the_command(recipe_file, knn_file, tmp_path):
    words = ("distill", recipe_file, *STEPS, f"evaluate.suite={knn_file}")
    ended = [each.wait() for each in start_several(2, *words, f"out={tmp_path / 'two'}", folder=tmp_path / "printed")]
    assert [each.code for each in ended] == [0, 0], [each.errors for each in ended]
    assert list(eval_lines(tmp_path / "two")) == [0, 2, 4]
    assert ended[0].output.count("suite at step") == 3
    words = ("evaluate", tmp_path / "two", knn_file, "device=cpu", "--json", tmp_path / "two.json")
    ended = [each.wait() for each in start_several(2, *words, folder=tmp_path / "evaluated")]
    assert [each.code for each in ended] == [0, 0], [each.errors for each in ended]
    assert "k=5" in ended[0].output
    assert ended[1].output == "", "only the first process prints"
    one = evaluate(tmp_path / "two", str(knn_file), "device=cpu")["knn"]
    both = json.loads((tmp_path / "two.json").read_text())["results"]["knn"]
    assert both["rows"] == one.rows
    assert both["fingerprint"] == one.fingerprint
    assert RunFolder(tmp_path / "two").evaluations()[4]["knn"]["rows"] == one.rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knn": {**SMALL["knn"], "kk": 1}}, r"evaluate\.suite\.evaluations\.knn\..*kk: there is no such key"),
        ({"knn": {**SMALL["knn"], "queries": {"type": "class_folder", "path": "/no"}}}, r"suite\.evaluations\.knn: /no: there is no"),
        ({"knn": {**SMALL["knn"], "models": ["student/clap"]}}, r"evaluations\.knn: models: there is no row 'student/clap'"),
        ({"zero_shot": {**SMALL["zero_shot"], "heads": ["sam"]}}, r"evaluations\.zero_shot: heads: 'sam' has no text encoder"),
        ({"retrieval": {**SMALL["retrieval"], "heads": ["dino"]}}, "'dino' has no text encoder"),
        ({"open_vocabulary_segmentation": {**SMALL["open_vocabulary_segmentation"], "heads": ["sam"]}}, "'sam' has no text encoder"),
        ({"promptable_segmentation": {**SMALL["promptable_segmentation"], "heads": ["clip"]}}, "'clip' is no teacher with a mask decoder"),
        ({"agreement": {**SMALL["agreement"], "models": ["student"]}}, "no head of the student has its teacher here"),
    ],
)  # fmt: skip
def test_bad_suites_are_refused_before_anything_is_written(recipe, suite_file, tmp_path, change, message):
    suite_file.write_text(write_yaml({"evaluations": {kind: {"type": kind, **settings} for kind, settings in change.items()}}))
    before = files(tmp_path)
    for start in (distill, dry_run):
        with pytest.raises(UserError, match=message):
            start(recipe(f"evaluate.suite={suite_file}", f"out={tmp_path / 'run'}"))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate.suite=nowhere.yaml",), r"evaluate\.suite: nowhere\.yaml: there is no such file"),
        (("evaluate.suite={}",), r"evaluate\.suite\.evaluations: this key is required"),
        (("evaluate.suite_every=3",), r"evaluate\.suite_every: there is no suite"),
        (("evaluate.suite=SUITE", "evaluate.every=null"), r"evaluate\.suite: it would never run"),
        (("evaluate.suite={evaluations: {held_out: throughput}}",), r"evaluate\.suite\.evaluations: no evaluation can be named 'held_out'"),
        (("evaluate.suite={evaluations: {a/b: throughput}}",), r"evaluate\.suite\.evaluations\.a/b: a file gets this name"),
        (
            ("evaluate.suite={evaluations: {a: throughput}, device: cuda}",),
            r"evaluate\.suite\.device: the models are on the device of the run",
        ),
    ],
)
def test_bad_settings(recipe, suite_file, words, message):
    with pytest.raises(UserError, match=message):
        recipe(*(word.replace("SUITE", str(suite_file)) for word in words))
