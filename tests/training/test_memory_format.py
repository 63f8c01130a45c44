"""`engine.channels_last`: the convolutions of the student in another order of memory, and nothing else changes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import amradio as package
from amradio.devices import find_device
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.recipe import Recipe
from amradio.training import Trainer, load_teachers
from runs import assert_same, metrics

WORDS = (
    "student={type: timm, model: test_resnet}",
    "teachers.dino=null",
    "teachers.sam=null",
    "stages.0.partitions.0.image_size=64",
    "stages.0.steps=2",
    "evaluate.every=2",
    "engine={checkpoint_every: 1, keep: 9, ema: 0.5, precision: float32, report: false}",
)
LAST = "engine.channels_last=true"


@pytest.mark.parametrize("is_last", [False, True])
def test_wide_kernels_have_the_format_that_the_setting_names(recipe: Callable[..., Recipe], is_last: bool):
    settings = recipe(*WORDS, *[LAST] * is_last)
    trainer = Trainer(settings, load_teachers(settings, {}), Processes(find_device("cpu", "engine.device")), Log(None))
    wide = [m.weight for m in trainer.initial.network.student.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert wide
    assert {weight.is_contiguous(memory_format=torch.channels_last) for weight in wide} == {is_last}


@pytest.mark.slow
def test_numbers_change_by_rounding_only_and_a_resumed_run_is_the_uninterrupted_one(recipe: Callable[..., Recipe], tmp_path: Path):
    plain = package.distill(recipe(*WORDS, f"out={tmp_path / 'plain'}"))
    whole = package.distill(recipe(*WORDS, LAST, f"out={tmp_path / 'whole'}"))
    for one, other in zip(metrics(plain), metrics(whole), strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut, symlinks=True)
    shutil.rmtree(cut / "checkpoints" / "step_000000002")
    package.distill(recipe(*WORDS, LAST, f"out={cut}"))
    assert_same(whole, cut)
