"""The quickstart from its first line to its last, in a form of seconds."""

import json

import pytest

import amradio
from amradio import UserError
from amradio.commands import quickstart as module
from amradio.commands.quickstart import quickstart
from amradio.recipe import Recipe
from amradio.run_folder import RunFolder

SMALL = """
evaluations:
  k-NN:
    type: knn
    database: {type: scenes, length: 24, seed: 2}
    queries: {type: scenes, length: 12, seed: 1}
    k: [3]
  throughput: {type: throughput, batch_sizes: [1, 2], seconds: 0.01}
"""
WORDS = ("stages.0.steps=2", "stages.0.partitions.0.batch_size=4", "normalize.batches=1", "evaluate.batches=1", "student.depth=1")


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path / "small.yaml"


@pytest.mark.slow
def test_it_ends_with_the_table_of_the_evaluation(small, tmp_path, capsys):
    folder = quickstart(*WORDS, f"out={tmp_path / 'run'}", evaluations=small)
    said = capsys.readouterr().out
    for row in ("student", "student/clip", "student/dino", "student/sam", "teacher/clip", "teacher/dino", "teacher/sam"):
        assert f" {row} " in said
    assert "best of its column" in said
    assert "of its teachers." in " ".join(said.split())
    assert f'amradio.load("{folder / "model"}")' in said
    written = json.loads((folder / "evaluations" / "step_000000002" / "scenes.json").read_text())
    assert set(written["results"]) == {"k-NN", "throughput"}
    assert set(written["teachers"]) == {"clip", "dino", "sam"}
    assert amradio.load(folder).heads == ("clip", "dino", "sam")
    page = (folder / "report.html").read_text()
    assert "k=3, student/clip (%)" in page, "the page of the run has the results that were measured after the training"


def test_a_bad_evaluation_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "bad.yaml").write_text("evaluations: {a: {type: knnn}}")
    with pytest.raises(amradio.UserError, match="knn"):
        quickstart(*WORDS, f"out={tmp_path / 'run'}", evaluations=tmp_path / "bad.yaml")
    assert not (tmp_path / "run").exists()


FEW = ("stages.0.partitions.0.batch_size=2", "normalize.batches=1", "evaluate={every: null, batches: 1}", "student.depth=1")
LIMITED = """
  agreement: {type: agreement, data: {type: scenes, length: 4, seed: 1}}
  segmentation:
    type: linear_segmentation
    train: {type: scenes, length: 4, seed: 3}
    test: {type: scenes, length: 4, seed: 1}
    schedule: {type: short, steps: 1}
"""


def steps_of(folder):
    return RunFolder(folder).num_steps()


@pytest.mark.slow
def test_a_slow_machine_gets_a_shorter_run_that_resumes(small, tmp_path, monkeypatch, capsys):
    """26 steps are planned, of which 24 fit; and 25 are what the estimate takes."""
    small.write_text(SMALL + LIMITED)
    monkeypatch.setattr(module, "FEWEST", 2)
    monkeypatch.setattr(module, "UNIT", 2)
    monkeypatch.setattr(module, "TRAINING_SECONDS", 1e-9)
    monkeypatch.setattr(module, "SECONDS_LEFT", 1e-9)
    plan = Recipe.load

    def planned(*words):
        return plan(words[0], "stages.0.steps=26", *words[1:])

    monkeypatch.setattr(Recipe, "load", planned)
    words = (*FEW, f"out={tmp_path / 'run'}")
    with monkeypatch.context() as stopped:
        stopped.setattr(module, "load_teachers", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quickstart(*words, evaluations=small)
    said = capsys.readouterr().out
    assert "Starting again with 2 steps in place of 26; scores will be lower than in the README." in " ".join(said.split())
    assert steps_of(tmp_path / "run") == 2
    folder = quickstart(*words, evaluations=small)
    said = " ".join(capsys.readouterr().out.split())
    assert "Starting again" not in said, "the shortened run is finished, not begun again"
    assert f"agreement and segmentation were not measured: amradio evaluate {folder} measures all." in said
    written = json.loads((folder / "evaluations" / "step_000000002" / "scenes.json").read_text())
    assert set(written["results"]) == {"k-NN", "throughput"}


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("word", "within"),
    [
        ("stages.0.steps=26", None),
        ("stages=[{steps: 26, partitions: [{image_size: 64, batch_size: 2}]}]", None),
        ("stages.0.partitions.0.batch_size=2", module.TRAINING_SECONDS),
    ],
)
def test_steps_that_are_asked_for_are_followed(tmp_path, monkeypatch, word, within):
    def noted(recipe, within=None):
        raise UserError(str(within))

    monkeypatch.setattr(module, "distill", noted)
    with pytest.raises(UserError, match=f"^{within}$"):
        quickstart(word, f"out={tmp_path / 'run'}")
