"""Run folders, checkpoints, model folders and recipes that version 0.1.0 wrote before its rooms were rebuilt still load and resume.

`old_runs/` was written by that code: `stopped` at step 3 of 6, `whole` is the same run to its end, `custom` has a student of the type that
was then called `own`, and `expected.safetensors` has the features that the code of that time computed.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import amradio
from amradio.__main__ import main
from amradio.recipe import Recipe
from amradio.students import CustomStudent
from runs import losses

OLD = Path(__file__).parent / "old_runs"
IMAGES = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def custom_student() -> CustomStudent:
    return CustomStudent(nn.Conv2d(3, 8, 8, 8), patch_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("name", ["whole", "custom"])
def test_an_old_model_folder_gives_the_features_that_it_gave(name: str):
    model = amradio.load(OLD / name / "model", student=custom_student() if name == "custom" else None)
    features, expected = model(IMAGES, heads=["clip"])["clip"], load_file(OLD / "expected.safetensors")
    for kind, value in features.items():
        torch.testing.assert_close(value, expected[f"{name}/{kind}"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_old_run_resumes_to_where_it_would_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    shutil.copytree(OLD / "stopped", tmp_path / "stopped")
    monkeypatch.chdir(tmp_path)
    amradio.distill(Recipe.load("stopped/config.yaml"))
    assert "resuming stopped from step 3 of 6" in capsys.readouterr().out
    assert losses(Path("stopped")) == pytest.approx(losses(OLD / "whole"), rel=1e-4)
    weights, expected = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "stopped", OLD / "whole"))
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-5)
    assert (tmp_path / "stopped" / "evaluations" / "step_000000006" / "held_out.json").is_file()
    last = tmp_path / "stopped" / "checkpoints" / "last"
    assert last.is_symlink(), "copytree made a folder of the link, and the run did not replace it"
    assert last.resolve().name == "step_000000006"


def test_an_old_recipe_reads_as_the_present_one():
    """The student's type `own` is now called `custom`."""
    assert Recipe.load(str(OLD / "custom" / "config.yaml")).student.type == "custom"
    assert Recipe.load(str(OLD / "whole" / "config.yaml")).student.type == "vit"


@pytest.mark.parametrize("form", ["amradio", "torchhub", "hf"])
def test_an_old_model_folder_is_exported(form: str, tmp_path: Path):
    out = tmp_path / ("out.pth.tar" if form == "torchhub" else "out")
    exported = amradio.export(OLD / "whole" / "model", form, out)
    assert all(value is not None and value < 1e-4 for _, value in exported.differences)


@pytest.mark.slow
def test_an_old_run_folder_is_evaluated(tmp_path: Path, capsys):
    shutil.copytree(OLD / "whole", tmp_path / "whole")
    word = "evaluations.agreement={type: agreement, data: {type: scenes, length: 8, image_size: 32}}"
    assert main(["evaluate", str(tmp_path / "whole"), word, "image_size=32"]) == 0
    assert "clip" in capsys.readouterr().out
