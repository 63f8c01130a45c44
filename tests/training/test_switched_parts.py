"""Each part that a recipe's word switches on: a resumed run equals an uninterrupted one bit for bit, two processes equal one."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from test_distributed import assert_near

import amradio as package
from amradio.formats.model_folder import CARD_FILE, read_config
from processes import at_step, start_several, terminate_self
from runs import assert_same, metrics, state

STAGES = (
    "stages=[{steps: 4, partitions: [{image_size: 32, batch_size: 4, teachers: [clip, dino]}]},"
    " {steps: 4, partitions: [{image_size: 40, batch_size: 8}]}]"
)
WORDS = (STAGES, "evaluate.every=4", "engine.checkpoint_every=3", "engine.ema=0.9", "normalize.batches=4")
"""A second stage with another teacher, whose statistics rewrite the heads; a stop within it."""
PARTS: dict[str, tuple[str, ...]] = {
    "phi_s": ("normalize={summary: phi_s, spatial: phi_s}",),
    "pca": ("normalize={summary: global, spatial: pca}",),
    "zca": ("normalize.spatial=zca",),
    "hadamard": ("normalize.spatial=hadamard",),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_resumed_run_is_the_uninterrupted_one(part: str, recipe_file: Path, amradio, tmp_path: Path):
    words = ("distill", recipe_file, *WORDS, *PARTS[part])
    assert amradio(*words, f"out={tmp_path / 'whole'}").code == 0
    stopped = amradio(*words, f"out={tmp_path / 'cut'}", prelude=partial(at_step, 5, terminate_self))
    assert stopped.code == 143, stopped.errors
    assert amradio(*words, f"out={tmp_path / 'cut'}").code == 0
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("part", PARTS)
def test_two_processes_are_one(part: str, recipe_file: Path, amradio, tmp_path: Path):
    words = ("distill", recipe_file, *WORDS, *PARTS[part])
    one = amradio(*words, f"out={tmp_path / 'one'}")
    assert one.code == 0, one.errors
    two = [running.wait() for running in start_several(2, *words, f"out={tmp_path / 'two'}", folder=tmp_path / "two printed")]
    assert [ended.code for ended in two] == [0, 0], [ended.errors for ended in two]
    assert_near(tmp_path / "one", tmp_path / "two")


# normalizers


def test_a_model_and_its_card_name_the_target_spaces(recipe, tmp_path: Path):
    folder = package.distill(recipe("normalize.spatial=phi_s", "stages.0.steps=1", "evaluate.every=null"))
    training = read_config(folder / "model").training
    assert training is not None
    assert training.target_spaces == {"summary": "per_channel", "spatial": "phi_s"}
    assert (
        "Target spaces in training: per_channel for summary features, phi_s for spatial features."
        in (folder / "model" / CARD_FILE).read_text()
    )
    manifest = json.loads((folder / "calibration" / "stage_0" / "manifest.json").read_text())
    assert manifest["target_spaces"] == training.target_spaces


def test_the_heads_of_a_phi_s_model_predict_raw_features(recipe, tmp_path: Path):
    """What the exported model predicts is what the run measured as agreement of its heads in target space."""
    folder = package.distill(recipe("normalize.spatial=phi_s", "stages.0.steps=2", "evaluate.every=2"))
    weights = state(folder)
    scale, shift = (weights[f"task/normalizers.clip.spatial.{name}"] for name in ("scale", "shift"))
    assert scale.shape == (32, 32)
    inside = weights["task/network.heads.clip.spatial.final.2.weight"].double()
    torch.testing.assert_close(weights["model/heads.clip.spatial.final.2.weight"], (scale.double() @ inside).float())
    bias = scale.double() @ weights["task/network.heads.clip.spatial.final.2.bias"].double() + shift.double()
    torch.testing.assert_close(weights["model/heads.clip.spatial.final.2.bias"], bias.float())


def test_raw_agreement_does_not_change_where_statistics_are_measured_anew(recipe, tmp_path: Path):
    """At the border of two stages: heads are rewritten into the new target space before the evaluation that follows the first step."""
    words = ("optimizer.learning_rate=0", "evaluate.every=1", "normalize.batches=3", "normalize.spatial=phi_s", "engine.ema=0.5")
    stage = "{steps: 2, partitions: [{image_size: 32, batch_size: 4}]}"
    rows = metrics(package.distill(recipe(*words, f"stages=[{stage}, {stage}]")))
    values = [row["val/clip/spatial/cosine"] for row in rows if "val/clip/spatial/cosine" in row]
    assert len(values) == 5
    assert values[1:] == pytest.approx([values[1]] * 4, abs=1e-6)


def test_too_few_samples_and_widths_without_a_matrix_are_warned_of(recipe_file: Path, amradio, tmp_path: Path):
    ended = amradio("distill", recipe_file, "normalize={summary: phi_s, batches: 1}", "stages.0.steps=1", f"out={tmp_path / 'run'}")
    assert ended.code == 0, ended.errors
    lines = [line for line in ended.output.splitlines() if "covariance" in line]
    assert len(lines) == 2, ended.output
    assert "normalize.summary: the covariance of the 24 channels of clip is measured from 4 samples, fewer than channels" in lines[0]
    assert "Hadamard" not in ended.output
