"""Spectral reparametrisation in official files: what a spectral run exports by default, and the reparametrised form on request."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from test_formats_radio import FIXTURES, needs_fixtures, outputs, same, tiny

import amradio
from amradio import UserError, formats
from amradio.formats import ExportSettings
from amradio.formats.model_folder import write_folder
from amradio.formats.radio.torchhub import TorchHub
from amradio.recipe import Recipe

IMAGES = torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(2))


def content_of(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


@needs_fixtures
def test_the_reparametrised_form_has_the_names_and_shapes_of_the_official_file(tmp_path: Path) -> None:
    official = content_of(FIXTURES / "spectral.pth.tar")["state_dict"]
    model = formats.read(FIXTURES / "spectral.pth.tar")
    TorchHub().write(tmp_path / "ours.pth.tar", model, ExportSettings((), spectral=True))
    content = content_of(tmp_path / "ours.pth.tar")
    assert content["args"].spectral_reparam is True
    theirs = {key: (tensor.shape, tensor.dtype) for key, tensor in official.items() if key.startswith("base_model.blocks.")}
    ours = {key: (tensor.shape, tensor.dtype) for key, tensor in content["state_dict"].items() if key.startswith("base_model.blocks.")}
    assert any("parts.2._u" in key for key in ours)
    assert ours == theirs


def test_the_reparametrised_form_is_the_same_model(tmp_path: Path) -> None:
    model = tiny({"layer_scale": 0.2})
    write_folder(tmp_path / "model", model.config, model.network, {"step": 1, "num_steps": 1, "data": "nothing"})
    exported = amradio.export(tmp_path / "model", "torchhub", tmp_path / "spectral.pth.tar", spectral=True)
    assert max(difference.largest or 0 for difference in exported.differences) < 1e-5
    state = content_of(tmp_path / "spectral.pth.tar")["state_dict"]
    kept = [key for key in state if key.startswith("base_model.blocks.") and key.endswith(".weight") and state[key].ndim > 1]
    assert kept == []  # every matrix of the blocks is in the other form
    assert "base_model.patch_generator.embedder.weight" in state
    same(outputs(formats.read(tmp_path / "spectral.pth.tar"), IMAGES), outputs(model, IMAGES), 1e-5)
    for key in [key for key in state if key.endswith("mlp.fc1.parametrizations.weight.original")]:
        start = key.removesuffix("original") + "0."
        sigma = torch.linalg.matrix_norm(state[key].double(), 2)
        stored = state[f"{start}_u"].double() @ state[key].double() @ state[f"{start}_v"].double()
        assert abs(stored / sigma - 1) < 0.02  # power iteration has found the largest singular value
        scale = torch.nn.functional.softplus(state[f"{start}scale"].double()) + 0.05
        assert abs(scale / sigma - 1) < 0.02


@pytest.mark.slow
def test_a_spectral_run_exports_the_weights_that_act(tmp_path: Path) -> None:
    words = ("teachers.dino=null", "teachers.sam=null", "stages.0.steps=3", "stages.0.partitions.0.batch_size=2", "evaluate.every=null")
    few = ("normalize.batches=2", "engine.prepare_ahead=false", "optimizer.warmup_steps=1", "regularize.spectral=true")
    amradio.distill(Recipe.load("quickstart", *words, *few, f"out={tmp_path / 'run'}"))
    amradio.export(tmp_path / "run", "torchhub", tmp_path / "student.pth.tar")
    content = content_of(tmp_path / "student.pth.tar")
    assert content["args"].spectral_reparam is False
    assert not [key for key in content["state_dict"] if "parametrizations" in key]
    model = amradio.load(tmp_path / "run")
    acting = model.network.state_dict()["student.blocks.0.mlp.fc1.weight"]
    assert torch.equal(content["state_dict"]["base_model.blocks.0.mlp.fc1.weight"], acting)


@pytest.mark.parametrize(
    ("format", "ending", "dtype", "words"),
    [
        ("onnx", ".onnx", None, "'torchhub' has"),
        ("hf", "", None, "'torchhub' has"),
        ("torchhub", ".pth.tar", "float16", "give dtype float32"),
    ],
)
def test_other_formats_and_half_weights_are_refused(format: str, ending: str, dtype: str | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"spectral: .*{words}"):
        amradio.export("embedded/quickstart", format, tmp_path / f"out{ending}", dtype=dtype, spectral=True)
    assert list(tmp_path.iterdir()) == []
