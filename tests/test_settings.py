"""A setting that does nothing is a defect: each of these changes what three steps log or leave behind."""

import shutil
from pathlib import Path

import pytest
import torch

from amradio import distill as run_distill
from runs import metrics, state

pytestmark = pytest.mark.slow

STEPS = ("stages.0.steps=3", "evaluate.every=null", "engine.checkpoint_every=3", "loss.spatial=match")
"""With the loss that has the most keys."""
CHANGES = (
    "seed=1",
    "data.crop_scale=[0.2, 0.3]",
    "data.crop_ratio=[1.0, 1.1]",
    "data.flip=0.0",
    "optimizer.learning_rate=2e-3",
    "optimizer.final_learning_rate=9e-4",
    "optimizer.weight_decay=0.5",
    "optimizer.betas=[0.5, 0.9]",
    "optimizer.epsilon=1e-2",
    "optimizer.clip=1e-3",
    "loss.summary=cosine",
    "loss.spatial=mse",
    "loss.spatial=smooth_l1",
    "loss.spatial.cosine=0.5",
    "loss.spatial.smooth_l1=0.5",
    "loss.spatial.beta=0.1",
    "loss.grid=smaller",
    "loss.summary=angle",
    "loss.summary=tangent_sphere",
    "loss.summary=rkd",
    "loss.summary=asymmetric_rkd",
    "loss.spatial=hybrid",
    "loss.spatial={type: hybrid, cosine: 0.5}",
    "loss.spatial=dampened_mse",
    "loss.spatial=token_similarity",
    "loss.spatial={type: token_similarity, temperature: 0.5}",
    "loss.spatial={type: sum, terms: [{loss: match, weight: 2.0}]}",
    "balance=adaloss",
    "balance={type: adaloss, decay: 0.5}",
    "balance=uncertainty",
    "balance=teacher_dropping",
    "balance={type: teacher_dropping, probability: 0.9}",
    "normalize.summary=none",
    "normalize.spatial=global",
    "normalize.spatial=phi_s",
    "normalize.spatial=pca",
    "normalize.spatial=zca",
    "normalize.summary=hadamard",
    "normalize.batches=1",
    "heads.summary=linear",
    "heads.spatial={type: mlp, num_inner: 1}",
    "heads.by_teacher.sam={spatial: linear}",
    "heads.spatial={type: transformer, num_heads: 2}",
    "heads.summary={type: transformer, num_heads: 1, depth: 2}",
    "heads.spatial={type: ladder, hidden_dim: 8}",
    "heads.summary={type: ladder, last_hidden_dim: 8}",
    "teachers.clip.summary_weight=0.5",
    "teachers.clip.spatial_weight=0.0",
    "teachers.clip.precision=bfloat16",
    "teachers.clip.input_size=48",
    "teachers.dino.input_size=42",
    "student.position_dropout=0.9",
    "student.viewport=false",
    "student.viewport_scale=[0.9, 1.0]",
    "student.num_registers=2",
    "student.layer_scale=1e-5",
    "stages.0.partitions.0.weight=0.5",
    "stages.0.partitions.0.view_size=48",
    "stages.0.partitions.0.batch_size=2",
    "stages.0.partitions.0.image_size=40",
    "stages.0.partitions.0.source=scenes",
    "engine.ema=0.5",
    "engine.precision=bfloat16",
)
WITHOUT_EFFECT = (
    "student.gradient_checkpointing=true",
    "engine.keep=5",
    "engine.threads=1",
    "engine.prepare_ahead=true",
    "data.num_workers=1",
)


def outcome(recipe, out: Path, *words: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    folder = run_distill(recipe(*STEPS, *words, f"out={out}"))
    return metrics(folder), state(folder)


def same(a: tuple, b: tuple) -> bool:
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][key], b[1][key]) for key in a[1])


@pytest.fixture(scope="module")
def kept() -> dict:
    """The outcome of the unchanged recipe, computed once."""
    return {}


@pytest.fixture
def unchanged(kept: dict, recipe, tmp_path: Path) -> tuple:
    if not kept:
        kept["outcome"] = outcome(recipe, tmp_path / "unchanged")
    return kept["outcome"]


def test_the_same_recipe_gives_the_same_numbers(recipe, unchanged, tmp_path):
    assert same(outcome(recipe, tmp_path / "again"), unchanged)


@pytest.mark.parametrize("word", CHANGES)
def test_a_setting_changes_the_outcome(recipe, unchanged, tmp_path, word):
    assert not same(outcome(recipe, tmp_path / "changed", word), unchanged)


@pytest.mark.parametrize("word", WITHOUT_EFFECT)
def test_a_setting_of_the_machine_changes_nothing(recipe, unchanged, tmp_path, word):
    assert same(outcome(recipe, tmp_path / "changed", word), unchanged)


@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiling_and_tracking_change_no_number_beyond_rounding(recipe, tmp_path):
    """With the real backend, the teachers a step ahead, held-out evaluation and the event file."""
    words = ("stages.0.steps=2", "teachers.dino=null", "teachers.sam=null", "teachers.clip.spatial_weight=0", "evaluate.every=2")
    plain = run_distill(recipe(*words, f"out={tmp_path / 'plain'}"))
    torch.compiler.reset()
    compiled = run_distill(recipe(*words, f"out={tmp_path / 'compiled'}", "engine.compile=true", "engine.track=true"))
    for one, other in zip(metrics(plain), metrics(compiled), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    (events,) = (compiled / "tensorboard").iterdir()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(events))
    accumulator.Reload()
    assert [round(event.value, 4) for event in accumulator.Scalars("loss")] == [
        round(row["loss"], 4) for row in metrics(compiled) if "loss" in row
    ]
