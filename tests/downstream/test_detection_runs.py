"""Runs of detectors: several processes, the shipped recipes, event files, and what their folders are to other commands."""

import json
import re
from pathlib import Path

import pytest
import torch

from amradio.__main__ import main
from amradio.config import to_yaml
from amradio.downstream.detection.files import load_detector
from amradio.downstream.detection.settings import DetectionRecipe
from amradio.recipes import shipped
from amradio.yaml12 import parse_yaml, write_yaml
from detectors import SMALL, WORDS, weights
from processes import start_several
from runs import metrics

pytest.importorskip("pycocotools")

SHIPPED = [entry.name for entry in shipped() if entry.kind == "detection"]


@pytest.mark.slow
def test_two_processes_train_the_detector_of_one(trained: Path, student: Path, tmp_path: Path) -> None:
    """Images have different numbers of objects, so that the means of the two processes are over different numbers of them."""
    out = tmp_path / "two"
    words = ("detect", "train", f"model={student}", *WORDS, "backbone=lora", f"out={out}")
    ended = [process.wait() for process in start_several(2, *words, folder=tmp_path / "printed")]
    assert [process.code for process in ended] == [0, 0], [process.errors for process in ended]
    assert ended[1].output == "", "only the first process prints"
    assert [row["step"] for row in metrics(out)] == [row["step"] for row in metrics(trained)]
    for one, two in zip(metrics(trained), metrics(out), strict=True):
        shared = [name for name in one if name in ("loss", "objectness", "rpn_box", "class", "box", "mask") or name.startswith("val/")]
        assert shared
        assert {name: two[name] for name in shared} == pytest.approx({name: one[name] for name in shared}, rel=1e-4, abs=1e-5)
    first, second = weights(trained), weights(out)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-3, msg=name)


def test_recipes_of_detectors_are_shipped() -> None:
    assert len(SHIPPED) >= 2


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_trains_two_steps(name: str, student: Path, coco: Path, tmp_path: Path) -> None:
    """With the kinds of parts that it has; numbers are made small."""
    original = DetectionRecipe.load(name, f"model={student}")
    small = parse_yaml(to_yaml(original), name)
    small["detector"] |= SMALL | ({"mask_convs": 1, "mask_dim": 8} if small["detector"]["type"] == "mask_rcnn" else {})
    if small["detector"]["windows"]:
        small["detector"]["windows"] = {"size": 2, "num_global": 1}
    small["schedule"] |= {"image_size": 64, "batch_size": 2, "epochs": 1.4}
    small["engine"] |= {"device": "cpu", "precision": "float32"}
    for part in ("train", "val"):
        small["data"][part] |= {"annotations": str(coco / "instances.json"), "images": str(coco / "images")}
    small |= {"out": str(tmp_path / "run")}
    small["data"]["num_workers"] = 0
    (tmp_path / "small.yaml").write_text(write_yaml(small))
    assert main(["detect", "train", str(tmp_path / "small.yaml")]) == 0
    assert json.loads((tmp_path / "run/evaluations/step_000000002/detection.json").read_text()).keys() >= {"box_ap", "box_ap50"}
    assert load_detector(tmp_path / "run").settings.type == original.detector.type


@pytest.mark.slow
def test_lines_of_the_page_on_detection_run(trained: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/detector").symlink_to(trained)
    Path("runs/quickstart").symlink_to(student)
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")
    names: dict = {}
    for text in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M):
        exec(text, names)
    assert names["objects"].keys() >= {"boxes", "scores", "labels"}


def test_event_files_have_the_numbers(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    words = ["detect", "train", f"model={student}", *WORDS, "schedule.epochs=0.5", "data.val=null", "engine.track=true"]
    monkeypatch.setattr("amradio.engine.settings.find_spec", lambda name: None)
    assert main([*words, f"out={tmp_path / 'refused'}"]) == 2
    assert "engine.track: tensorboard is not installed; pip install 'amradio[track]', or leave the key out" in capfd.readouterr().err
    monkeypatch.undo()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    assert main([*words, f"out={tmp_path / 'run'}"]) == 0
    events = accumulator(str(next((tmp_path / "run" / "tensorboard").iterdir())))
    events.Reload()
    assert [event.value for event in events.Scalars("box")] == pytest.approx([row["box"] for row in metrics(tmp_path / "run")])
