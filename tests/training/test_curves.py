"""Stored curves: what 20 steps on a CPU in float32 gave when they were recorded, for each student type and each way to run.

A change of structure must leave them as they are. `AMRADIO_RECORD_CURVES=1 pytest tests/training/test_curves.py` records them again: after
a change that is meant to change numbers, with the reason in the commit.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amradio
from amradio import formats
from amradio.formats.base import ExportSettings
from model_folders import layer_scale_vit
from processes import at_step, start, start_several, terminate_self
from runs import metrics, state

pytestmark = pytest.mark.slow

STORED = Path(__file__).parent / "curves.json"
RECORD = "AMRADIO_RECORD_CURVES" in os.environ
TOLERANCE = {"rel": 2e-3, "abs": 2e-4}
"""Between kinds of machines: kernels sum in other orders, and AdamW moves an element with next to no gradient by its sign."""
COMMON = ("stages.0.steps=20", "engine.checkpoint_every=10", "evaluate.every=10", "engine.log_every=1")
SMALL = "student.position_dropout=0.3"
PARTITIONS = (
    "stages=[{steps: 12, partitions: [{image_size: 32, batch_size: 4, teachers: [clip]},"
    " {image_size: 48, batch_size: 4, teachers: [dino, sam], weight: 0.5}]},"
    " {steps: 8, partitions: [{image_size: 32, batch_size: 4}]}]"
)
RUNS: dict[str, tuple[str, ...]] = {
    "vit": (SMALL, "student.viewport=true", "student.depth=2"),
    "eradio": ("student={type: eradio, size: xxxtiny}", "stages.0.partitions.0.image_size=64", "stages.0.partitions.0.batch_size=2"),
    "timm": ("student={type: timm, model: test_resnet}", "stages.0.partitions.0.image_size=64"),
    "partitions": (PARTITIONS, "engine.accumulate=2"),
    "ema": (SMALL, "engine.ema=0.9", "normalize.summary=none", "loss.summary=cosine", "loss.spatial=match"),
}
"""Those that one process runs from a recipe alone, beside the words in `COMMON`."""
FIRST_STEPS = {"eradio": 3}
"""How many of a run's steps are compared between kinds of machines, where not all: BatchNorm over two images makes the last digits of
E-RADIO's first steps into percents of its twentieth (measured: AVX2 against AVX-512). On the kind of machine of the record all 20 are."""


def digest(tensors: dict[str, Tensor]) -> str:
    """Of names, shapes, dtypes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        found.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def machine() -> str:
    """Where numbers are the same to the bit: one kind of processor, one torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = sorted({word for line in lines if line.startswith("flags") for word in line.split() if word.startswith(("avx", "amx"))})
    return f"{platform.machine()} {' '.join(flags)} torch {torch.__version__}"


def curve(folder: Path) -> dict[str, Any]:
    """Everything that was logged of losses and agreement, by name, and a digest of all weights and of the optimizer."""
    values: dict[str, list[float]] = {}
    for row in metrics(folder):
        for name, value in row.items():
            if name.endswith(("loss", "cosine", "norm_ratio", "gradient_norm")):
                values.setdefault(name, []).append(float(f"{value:.7g}"))
    return {"values": values, "digest": digest({key: value for key, value in state(folder).items() if value.numel()})}


def numbers(features: dict[str, amradio.Features]) -> dict[str, list[float]]:
    """Mean, deviation and one element of each."""
    found = {}
    for name, each in features.items():
        for kind, tensor in each._asdict().items():
            if tensor is not None:
                found[f"{name}/{kind}"] = [tensor.mean().item(), tensor.std().item(), tensor.flatten()[0].item()]
    return found


def check(name: str, found: dict[str, Any]) -> None:
    """Against what is stored: within `TOLERANCE`, and bit for bit on the kind of machine where it was recorded."""
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if RECORD:
        stored[name] = found | {"machine": machine()}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(stored.items())]
        STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    wanted = stored[name]
    same_machine = wanted["machine"] == machine()
    assert found["values"].keys() == wanted["values"].keys()
    for key, values in wanted["values"].items():
        assert len(found["values"][key]) == len(values), (name, key)
        count = len(values) if same_machine or name not in FIRST_STEPS else 1 if key.startswith("val/") else FIRST_STEPS[name]
        assert found["values"][key][:count] == pytest.approx(values[:count], **TOLERANCE), (name, key)
    if same_machine and "digest" in wanted:
        assert found["digest"] == wanted["digest"], f"{name}: the numbers are near the stored ones, but not the same to the bit"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_what_it_was(name: str, recipe: Callable[..., amradio.Recipe]) -> None:
    check(name, curve(amradio.distill(recipe(*COMMON, *RUNS[name]))))


class Mine(nn.Module):
    """A student of the user's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.BatchNorm2d(12), nn.GELU(), nn.Conv2d(12, 12, 2, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_a_custom_student_is_what_it_was(recipe: Callable[..., amradio.Recipe]) -> None:
    from amradio.students import CustomStudent

    student = CustomStudent(Mine(), patch_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    check("custom", curve(amradio.distill(recipe(*COMMON, "student={type: custom}"), student=student)))


def test_a_continued_model_is_what_it_was(recipe: Callable[..., amradio.Recipe], tmp_path: Path) -> None:
    first = amradio.distill(recipe(*COMMON, "student.depth=2", "teachers.clip=null", f"out={tmp_path / 'first'}"))
    words = (f"student={{type: model, path: {first}, train: {{type: lora, rank: 2}}}}", "teachers.dino=null")
    check("model", curve(amradio.distill(recipe(*COMMON, *words))))


def test_a_resumed_run_is_what_it_was(recipe_file: Path, tmp_path: Path) -> None:
    words = ("distill", recipe_file, *COMMON, *RUNS["vit"], f"out={tmp_path / 'run'}")
    prelude = partial(at_step, 13, terminate_self)
    ended = start(*words, folder=tmp_path / "printed", prelude=prelude).wait()
    assert "Stopped" in ended.output, ended.errors
    assert start(*words, folder=tmp_path / "printed").wait().code == 0
    check("resumed", curve(tmp_path / "run"))


def test_two_processes_are_what_they_were(recipe_file: Path, tmp_path: Path) -> None:
    words = ("distill", recipe_file, *COMMON, *RUNS["partitions"], f"out={tmp_path / 'run'}")
    ended = [running.wait() for running in start_several(2, *words, folder=tmp_path / "printed")]
    assert [each.code for each in ended] == [0, 0], ended
    check("two_processes", curve(tmp_path / "run"))


@pytest.fixture(scope="module")
def exported_from(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that every format can hold."""
    return layer_scale_vit(tmp_path_factory.mktemp("exported") / "model")


@pytest.mark.parametrize("form", formats.FORMATS, ids=lambda form: form.name)
def test_an_export_is_what_it_was(form: Any, exported_from: Path, tmp_path: Path) -> None:
    """What the format's own reader computes from the written file."""
    out = tmp_path / f"out{form.suffix}"
    amradio.export(exported_from, form.name, out)
    settings = ExportSettings(("clip", "dino", "sam"), "float32", None)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    found = form.outputs(out, images, settings)
    assert found is not None
    values = numbers(found)
    files = sorted(path.name for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file())
    check(f"export_{form.name}", {"values": values | {"num_files": [len(files)]}})
