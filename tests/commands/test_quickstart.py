"""The quickstart from its first line to its last, in a form of seconds."""

import json

import pytest

import amradio
from amradio.commands.quickstart import quickstart

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
    assert "of its teachers." in said
    assert f'amradio.load("{folder / "model"}")' in said
    written = json.loads((folder / "evaluations" / "step_000000002" / "scenes.json").read_text())
    assert set(written["results"]) == {"k-NN", "throughput"}
    assert set(written["teachers"]) == {"clip", "dino", "sam"}
    assert amradio.load(folder).heads == ("clip", "dino", "sam")


def test_a_bad_evaluation_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "bad.yaml").write_text("evaluations: {a: {type: knnn}}")
    with pytest.raises(amradio.UserError, match="knn"):
        quickstart(*WORDS, f"out={tmp_path / 'run'}", evaluations=tmp_path / "bad.yaml")
    assert not (tmp_path / "run").exists()
