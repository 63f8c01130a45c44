"""Batches and steps that look wrong for the number of images are named before a run begins."""

import pytest

from amradio.commands.distill import distill, dry_run
from amradio.data import OpenData
from amradio.training import doubts_about_amounts
from amradio.training.amounts import ENOUGH_IMAGES, MOST_PASSES
from data_folders import make_shards

SCENES = "data.train={type: scenes, length: 10000}"


def doubts(recipe):
    return list(doubts_about_amounts(recipe, OpenData(recipe.data)))


def stages(steps, batch_size, more=""):
    return f"stages=[{{steps: {steps}, partitions: [{{image_size: 32, batch_size: {batch_size}{more}}}]}}]"


def test_a_batch_larger_than_the_data_is_named(recipe):
    found = doubts(recipe(stages(1000, 28)))
    assert found[0].startswith("stages.0.partitions.0.batch_size: 28 images a step of data with 24, so that")
    assert doubts(recipe(SCENES, stages(1000, 28))) == []


def test_bounds_are_those_of_the_measurements(recipe):
    """One image fewer than enough, and one pass more than brings anything."""
    assert doubts(recipe(SCENES, stages(ENOUGH_IMAGES, 1))) == []
    assert doubts(recipe(SCENES, stages(MOST_PASSES * 10_000 // 4, 4))) == []
    (few,) = doubts(recipe(SCENES, stages(ENOUGH_IMAGES - 1, 1)))
    assert few.startswith("data.train: the run sees 26,999 images, 2.7 passes over the 10,000 that there are; even the small student")
    assert few.endswith("take more steps")
    (often,) = doubts(recipe(SCENES, stages(MOST_PASSES * 10_000 // 4 + 1, 4)))
    assert often.startswith("data.train: the run sees 2,500,004 images, 250 passes over the 10,000 that there are; more than 250 gained")


def test_where_no_number_of_steps_is_right_more_images_are_asked_for(recipe):
    (few,) = doubts(recipe())
    assert few.endswith("needed 27,000 (docs/choosing.md): 250 passes would not suffice: take more images")
    (often,) = doubts(recipe(stages(10_000, 4)))
    assert "1,667 passes over the 24 that there are" in often


def test_steps_of_all_partitions_and_stages_on_the_same_data_add_up(recipe):
    stage = "{steps: 5000, partitions: [{image_size: 32, batch_size: 2}, {image_size: 32, batch_size: 1}]}"
    assert doubts(recipe(SCENES, f"stages=[{stage}, {stage}]")) == []
    other = "{type: scenes, length: 9000, seed: 5}"
    parts = f"{{image_size: 32, batch_size: 3}}, {{image_size: 32, batch_size: 1, source: {other}}}"
    (few,) = doubts(recipe(SCENES, f"stages=[{{steps: 10000, partitions: [{parts}]}}]"))
    assert few.startswith("stages.0.partitions.1.source: the run sees 10,000 images, 1.1 passes over the 9,000")


@pytest.mark.parametrize("with_counts", [True, False])
def test_data_of_unknown_size_are_not_read_through(recipe, tmp_path, monkeypatch, with_counts):
    make_shards(tmp_path / "shards", (6, 6))
    if with_counts:
        for shard in (tmp_path / "shards").glob("*.tar"):
            shard.with_name(f"{shard.stem}_stats.json").write_text('{"successes": 6}')
    mixed = f"{{type: webdataset, path: '{tmp_path}/shards/*.tar'}}"
    words = (f"data.train={{type: mixture, weights: {{a: 1, b: 1}}, sources: {{a: {mixed}, b: {mixed}}}}}", stages(10, 2))
    found = doubts(recipe(*words))
    assert [text.partition(";")[0] for text in found] == (
        ["data.train: the run sees 20 images, 0.83 passes over the 24 that there are"] if with_counts else []
    )


@pytest.mark.slow
def test_a_run_and_a_dry_run_warn(recipe, capsys):
    few = recipe(stages(1, 28))
    larger = "warning: stages.0.partitions.0.batch_size: 28 images a step of data with 24, so that a step holds"
    seen = "warning: data.train: the run sees 28 images, 1.2 passes over the 24 that there are; even"
    dry_run(few)
    shown = " ".join(capsys.readouterr().out.split())
    assert larger in shown
    assert seen in shown
    log = (distill(few) / "train.log").read_text()
    assert larger in log
    assert seen in log
