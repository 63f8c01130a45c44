"""Runs with regularisation: what is written, resuming, two processes; self-distillation against its formula."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_distributed import assert_near
from torch import Tensor

import amradio as package
from amradio.distillation.self_distillation import SelfDistillation, step_of
from amradio.errors import UserError
from amradio.network import NetworkConfig
from amradio.recipe import Recipe
from amradio.students import EradioSettings, VitSettings
from amradio.students.draws import derived
from amradio.tensors import read_tensors
from processes import start_several
from runs import assert_same, metrics, state

ONE = ("teachers.dino=null", "teachers.sam=null", "evaluate.every=null", "engine.checkpoint_every=1", "engine.keep=9")
ALL = (
    "regularize={spectral: true, weight_noise: 0.05, drop_path: 0.3, self_distillation: {weight: 0.5}, "
    "windows: {sizes: [2], num_global: 1}}"
)
PARTS = (ALL, "engine.ema=0.5", "student.depth=2", "student.gradient_checkpointing=true", "stages.0.steps=4", "engine.accumulate=2")


@pytest.mark.slow
def test_a_run_with_all_parts_resumes_and_hands_over_plain_weights(recipe: Callable[..., Recipe], tmp_path: Path):
    whole = package.distill(recipe(*ONE, *PARTS, f"out={tmp_path / 'whole'}"))
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut, symlinks=True)
    for later in (3, 4):
        shutil.rmtree(cut / "checkpoints" / f"step_{later:09d}")
    package.distill(recipe(*ONE, *PARTS, f"out={cut}"))
    assert_same(whole, cut)
    weights = state(whole)
    assert [key for key in weights if key.startswith("task/") and "parametrizations.weight.0.scale" in key]
    assert not [key for key in weights if key.startswith(("model/", "ema/")) and "parametrizations" in key]
    assert all(torch.equal(weights[f"model/{key}"], weights[f"ema/{key}"]) for key in ("student.blocks.1.attn.qkv.weight",))
    assert all(row["self_distillation/loss"] > 0 for row in metrics(whole))
    assert package.load(whole)(torch.rand(1, 3, 32, 32)).spatial.isfinite().all()


@pytest.mark.slow
def test_two_processes_regularise_as_one(recipe_file: Path, recipe: Callable[..., Recipe], tmp_path: Path):
    one = package.distill(recipe(*ONE, *PARTS, "engine.accumulate=1", f"out={tmp_path / 'one'}"))
    words = ("distill", recipe_file, *ONE, *PARTS, "engine.accumulate=1", f"out={tmp_path / 'two'}")
    ended = [running.wait() for running in start_several(2, *words, folder=tmp_path / "printed")]
    assert [each.code for each in ended] == [0, 0], [each.errors for each in ended]
    assert_near(one, tmp_path / "two")


@pytest.mark.slow
def test_scales_decay_in_place_of_matrices(recipe: Callable[..., Recipe]):
    words = ("regularize.spectral=true", "optimizer.learning_rate=0.1", "optimizer.weight_decay=1.0", "stages.0.steps=1")
    folder = package.distill(recipe(*ONE, *words, "optimizer.betas=[0.0, 0.999]", "optimizer.epsilon=1"))
    after = read_tensors(folder / "checkpoints" / "step_000000001" / "task.safetensors")
    plain = package.distill(
        recipe(*ONE, *words, "optimizer.weight_decay=0.0", "optimizer.betas=[0.0, 0.999]", "optimizer.epsilon=1", f"out={folder}0")
    )
    without = read_tensors(plain / "checkpoints" / "step_000000001" / "task.safetensors")
    start = "network.student.blocks.0.mlp.fc1.parametrizations.weight"
    assert torch.equal(after[f"{start}.original"], without[f"{start}.original"])
    assert not torch.equal(after[f"{start}.0.scale"], without[f"{start}.0.scale"])


def test_what_does_not_go_together_is_refused(recipe: Callable[..., Recipe]):
    with pytest.raises(UserError) as caught:
        recipe("regularize={spectral: true, self_distillation: {}}", "student.train={type: lora}")
    part = "student.train 'lora' trains a part"
    assert caught.value.problems == (
        f"regularize.spectral: it changes all weights, and {part}; leave one of both out",
        "regularize.self_distillation: it compares with averaged weights, and there are none; set engine.ema",
    )


# self-distillation


@pytest.mark.parametrize("max_shift", [1, 2])
def test_self_distillation_is_its_formula(max_shift: int):
    settings = VitSettings(dim=16, depth=2, num_heads=2, patch_size=8, max_image_size=64)
    average = NetworkConfig(student=settings, num_summaries=1).build().double().eval()
    draws = torch.rand(5, 8, generator=torch.Generator().manual_seed(1))
    images, spatial = torch.rand(5, 3, 40, 48).double(), torch.randn(5, 5, 6, 16).double().requires_grad_()
    loss = SelfDistillation(average, 1.0, max_shift)(spatial, images, draws)
    (gradient,) = torch.autograd.grad(loss, spatial)
    total: Tensor = torch.zeros((), dtype=torch.float64)
    shifts = set()
    for number in range(5):
        down, right = (int(derived(draws, n)[number] * (max_shift + 1)) for n in (1_000_001, 1_000_002))
        shifts.add((down, right))
        height, width = 5 - max_shift, 6 - max_shift
        seen = images[number : number + 1, :, 8 * down : 8 * (down + height), 8 * right : 8 * (right + width)]
        target = average(seen)["backbone"].spatial.detach()[0]
        mine = spatial[number, down : down + height, right : right + width]
        total = total + (F.layer_norm(mine, (16,)) - F.layer_norm(target, (16,))).square().mean() / 5
    assert len(shifts) > 1
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(total, spatial)[0], rtol=1e-4, atol=1e-8)


def test_shifts_are_whole_cells_of_a_size_that_the_student_takes():
    eradio = EradioSettings(size="xxxtiny", dim=8).build(1)
    assert step_of(eradio, (96, 64), 1) == 32
    assert step_of(VitSettings(dim=16, depth=1, num_heads=2, patch_size=8).build(1), (40, 32), 3) == 8
    for size, shift in (((32, 32), 1), ((96, 64), 2)):
        with pytest.raises(UserError, match="no crop that is smaller by a shift is legal"):
            step_of(eradio, size, shift)
