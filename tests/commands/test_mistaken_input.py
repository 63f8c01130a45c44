"""What is given in place of what a command takes: one message that says what it is and what to give."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import amradio
from amradio.__main__ import main
from amradio.commands import distill as command
from amradio.errors import UserError
from amradio.evaluation.suite import Suite
from amradio.recipe import Recipe
from data_folders import make_folder, make_shards

RUN = Path(__file__).parents[1] / "training" / "old_runs" / "whole"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of two runs, one of which has checkpoints."""
    for name in ("first", "second"):
        shutil.copytree(RUN, tmp_path / "runs" / name)
    (tmp_path / "runs" / "first" / "checkpoints" / "step_000000006").mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("x")
    return tmp_path / "runs"


@pytest.fixture
def problems(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a command, which has to be refused; its messages."""

    def run(*words: object) -> list[str]:
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        return [line.removeprefix("error: ") for line in printed.splitlines() if line.startswith("error: ")]

    return run


# files of the other kind


def test_a_recipe_in_place_of_an_evaluation_file(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    (problem,) = problems("evaluate", RUN, "starter", "image_size=64")
    assert problem.startswith("'starter': this is a recipe, for `amradio distill`; give an evaluation file, e.g. real_evaluation or scenes")
    (problem,) = problems("evaluate", RUN, RUN)
    assert "this is a recipe" in problem
    (tmp_path / "mine.yaml").write_text("teachers: {clip: {type: embedded, name: clip}}\n")  # may stand in both
    assert Suite.load("scenes", str(tmp_path / "mine.yaml")).teachers.keys() == {"clip"}


def test_an_evaluation_file_in_place_of_a_recipe(problems: Callable[..., list[str]]) -> None:
    (problem,) = problems("distill", "real_evaluation", "out=x")
    assert problem.startswith("'real_evaluation': this is an evaluation file, for `amradio evaluate PATH real_evaluation`; give a recipe")
    assert "evaluate.suite=real_evaluation runs it during the training" in problem
    with pytest.raises(UserError, match="'starter': this is a recipe"):
        Recipe.load("quickstart", "evaluate.suite=starter")


def test_a_recipe_of_a_detector_in_place_of_another_file(problems: Callable[..., list[str]]) -> None:
    advice = "'detection_short': this is a recipe of a detector, for `amradio detect train`; give "
    assert problems("distill", "detection_short", "out=x")[0].startswith(f"{advice}a recipe, e.g. starter (")
    assert problems("evaluate", RUN, "detection_short")[0].startswith(f"{advice}an evaluation file, e.g. ")
    (problem,) = problems("detect", "train", "starter", "model=x")
    assert problem.startswith("'starter': this is a recipe, for `amradio distill`; give a recipe of a detector, e.g. detection_short or ")


@pytest.mark.parametrize("words", [["starter"], ["out=x", "mine.yaml"]])
def test_a_recipe_for_the_quickstart(words: list[str], problems: Callable[..., list[str]]) -> None:
    (problem,) = problems("quickstart", *words)
    told = "quickstart: it has its recipe and takes changes of it, key=value, found"
    assert problem == f"{told} '{words[-1]}'; to run a recipe: amradio distill {words[-1]}"
    from amradio.commands.quickstart import quickstart

    with pytest.raises(UserError, match="takes changes of it"):
        quickstart(*words)


def test_held_out_images_named_in_two_ways(recipe_file: Path, problems: Callable[..., list[str]]) -> None:
    (problem,) = problems("distill", recipe_file, "data.hold_out=0.1")
    assert problem == (
        "data: val and hold_out are two ways to name held-out images, and both are set; set one of them to null: data.hold_out=null "
        "measures on data.val, data.val=null on a share of data.train"
    )


# folders that are no model


def test_a_folder_of_runs(runs: Path, problems: Callable[..., list[str]], tmp_path: Path) -> None:
    wanted = f"{runs}: this folder is no model, but 2 in it are; give {runs / 'first'}, {runs / 'second'}"
    assert problems("evaluate", runs) == [wanted]
    assert problems("export", runs, "--format", "onnx", "--out", tmp_path / "a.onnx") == [wanted]
    make_folder(tmp_path / "photos", count=2)
    assert problems("embed", runs, tmp_path / "photos", "--out", tmp_path / "a.safetensors") == [wanted]
    shutil.rmtree(runs / "second")
    with pytest.raises(UserError, match="this folder is no model, but 1 in it is"):
        amradio.load(runs)


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/step_000000006", "evaluations", "model/README.md", "config.yaml"])
def test_a_part_of_a_run(part: str, runs: Path) -> None:
    run = runs / "first"
    with pytest.raises(UserError) as caught:
        amradio.load(run / part)
    assert caught.value.problems == (f"{run / part}: this is a part of the run folder {run}; give {run}, or {run / 'model'}",)
    assert amradio.load(run / "model").heads == amradio.load(run).heads


def test_a_run_without_a_model(runs: Path) -> None:
    shutil.rmtree(runs / "first" / "model")
    with pytest.raises(UserError, match="first: this run has no model yet: it is written with the first checkpoint; resume the run"):
        amradio.load(runs / "first")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "config.json does not say `format: amradio`, so it is damaged; restore it, or resume the run"),
        ('{"model_type": "llava"}', "model_type 'llava', which is no student; it is a vision-language model, for `amradio evaluate`"),
        ("[]", "config.json: an object is expected, found a list"),
        ("", "config.json: the file is empty"),
        ('{"format": "amr', "config.json: line 1: not valid JSON"),
    ],
)
def test_a_damaged_config_in_a_run(content: str, message: str, runs: Path) -> None:
    (runs / "first" / "model" / "config.json").write_text(content)
    for path in (runs / "first", runs / "first" / "model"):
        with pytest.raises(UserError) as caught:
            amradio.load(path)
        (problem,) = caught.value.problems
        assert message in problem or (path.name == "model" and content == "{}")
        assert "there is no config.json" not in problem


def test_a_folder_of_pictures_is_no_run_because_a_config_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")  # of anything else
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"there is no config\.json in it"):
        amradio.load(tmp_path / "photos")


# all at once


def test_embed_reports_all_at_once(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    make_folder(tmp_path / "photos", count=2)
    words = ("--image-size", "0", "--device", "cuda:7", "--heads", "clpi", "--batch-size", "0", "--out", tmp_path / "a.txt")
    found = problems("embed", RUN, tmp_path / "nowhere", *words)
    keys = ["image_size", "batch_size", "out", "device", "heads", str(tmp_path / "nowhere")]
    assert [problem.split(":")[0] for problem in found] == keys
    assert "did you mean 'clip'" in found[4]
    assert not (tmp_path / "a.txt").exists()


def test_shards_are_counted_in_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", counts=(7, 5))
    out = tmp_path / "a.safetensors"
    assert main(["embed", str(RUN), str(tmp_path / "shards"), "--out", str(out), "--num-workers", "0"]) == 0
    assert f"\nfeatures of 12 images of 2 tar shards in {tmp_path / 'shards'}\n" in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("shards/00000.tar\nshards/00001.tar\n")
    with pytest.raises(UserError, match=r"it names tar shards \(shards/00000\.tar\); such a list names pictures: give the shards as"):
        amradio.embed(RUN, tmp_path / "list.txt", tmp_path / "b.safetensors")


def test_export_reports_all_at_once(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    words = ("--image-size", "63", "--dtype", "float16", "--heads", "clpi")
    found = problems("export", RUN, "--format", "onnx", "--out", tmp_path / "a.onnx", *words)
    assert found[0].startswith("heads: there is no head 'clpi'; did you mean 'clip'")
    assert found[1:] == ["image_size: the model does not take 63 px; the nearest legal size is 64"]
    for size in (0, -3, 10**6):
        (problem,) = problems("export", RUN, "--format", "onnx", "--out", tmp_path / "a.onnx", f"--image-size={size}")
        assert problem == f"image_size: should be px from 1 to 65,536, found {size}"
    with pytest.raises(UserError, match="dtype: there is no 'half'"):
        amradio.export(RUN, "onnx", tmp_path / "a.onnx", dtype="half")
    assert not list(tmp_path.iterdir())


# the run folder


def test_an_unusable_run_folder_is_reported_before_teachers_are_loaded(
    recipe_file: Path, problems: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_teachers", lambda *rest: pytest.fail("teachers were loaded"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "closed").mkdir()
    access = command.os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path / "closed" and access(path, mode))
    for out, message in (
        ("full", "is not empty and not a run folder"),
        ("file", "is a file; give another folder"),
        ("file/deeper/run", f"{tmp_path / 'file'} is a file, so there can be no folder"),
        ("closed", "cannot be written to; change its permissions"),
        ("closed/run", f"{tmp_path / 'closed'} cannot be written to"),
    ):
        for dry in ([], ["--dry-run"]):
            (problem,) = problems("distill", recipe_file, f"out={tmp_path / out}", *dry)
            assert problem.startswith("out: ")
            assert message in problem


def test_changes_of_a_run_are_listed_one_a_line(recipe_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    stored = Recipe.load(str(recipe_file)).model_dump(mode="json")
    (run / "config.yaml").write_text(json.dumps(stored))
    assert main(["distill", str(recipe_file), "seed=4", "data.val=null", "evaluate.every=null"]) == 2
    lines = capsys.readouterr().err.splitlines()
    start = lines.index(f"error: out: {run} is a run of another recipe; take these changes back to resume it, or give another out folder:")
    changes = lines[start + 1 :]
    assert "    seed: was 0, is now 4" in changes
    assert "    evaluate.every: was 6, is now null" in changes
    assert "    data.val: was not set, is now null" in changes
    assert f"    data.val.path: was '{stored['data']['val']['path']}', is now not set" in changes
    assert all(line.startswith("    ") for line in changes)
