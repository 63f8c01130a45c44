"""What cannot fit into this machine's memory is refused by an estimate before it is built."""

import time

import numpy as np
import pytest
import torch

import amradio.network
import amradio.recipe
from amradio.__main__ import main
from amradio.config import validate
from amradio.errors import UserError
from amradio.memory import gib, machine_memory, memory_errors
from amradio.network import NetworkConfig

BASE = ("data.train={type: scenes, length: 4}", "teachers={clip: {type: embedded, name: clip}}", "data.num_workers=0", "engine.device=cpu")
SMALL = (
    "student={type: vit, size: tiny, depth: 1, max_image_size: 128}",
    "stages=[{steps: 2, partitions: [{image_size: 64, batch_size: 2}]}]",
)


def test_this_machine_has_some():
    assert 1 << 28 < machine_memory() < 1 << 50
    assert gib(3 << 29) == "1.5 GiB"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: torch.empty(1 << 46), "this machine has not enough memory left: 262,144.0 GiB were asked for; take smaller images"),
        (lambda: np.empty(1 << 56), "this machine has not enough memory left: 512. PiB were asked for"),
        (lambda: raised(MemoryError()), "this machine has not enough memory left; take smaller images"),
        (
            lambda: raised(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB")),
            "the GPU has not enough memory left: 20.00 GiB were asked for",
        ),
    ],
)
def test_memory_that_does_not_suffice_is_one_message(error, message):
    with pytest.raises(UserError) as caught, memory_errors():
        error()
    assert message in caught.value.problems[0]


def test_other_errors_are_left_as_they_are(monkeypatch, capsys):
    with pytest.raises(RuntimeError, match="shapes"), memory_errors():
        raise RuntimeError("shapes differ")
    monkeypatch.setattr("amradio.__main__.call", lambda options: raised(MemoryError()))
    assert main(["teachers"]) == 2
    assert "error: this machine has not enough memory left" in capsys.readouterr().err


def raised(error: Exception):
    raise error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("student={type: vit, size: tiny, dim: 100000, num_heads: 100}", "M parameters"),
        ("student={type: vit, size: tiny, max_image_size: 65536, patch_size: 1}", "M parameters"),
        ("student={type: eradio, size: tiny, dim: 80000}", "M parameters"),
        ("heads.spatial={type: mlp, hidden_dim: 100000, num_inner: 900}", "M parameters"),
        ("stages.0.partitions.0.batch_size=1000000000", "1,000,000,000 images of 64 px"),
        ("stages.0.partitions.0.view_size=65536", "2 images of 65536 px"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_built(capsys, monkeypatch, tmp_path, word, what):
    for module in (amradio.network, amradio.recipe):
        monkeypatch.setattr(module, "machine_memory", lambda: 16 << 30)
    start = time.process_time()
    code = main(["distill", *BASE, *SMALL, word, f"out={tmp_path / 'run'}", "--dry-run"])
    assert code == 2
    assert time.process_time() - start < 60
    (problem,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert what in problem
    assert "this machine has 16.0 GiB" in problem


def test_a_model_folder_is_measured_before_it_is_built():
    student = {"type": "vit", "size": "tiny", "dim": 100000, "num_heads": 1000}
    with pytest.raises(UserError, match="whose weights need"):
        validate(NetworkConfig, {"student": student, "num_summaries": 1}).build()
