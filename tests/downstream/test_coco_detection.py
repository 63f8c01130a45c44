"""The evaluation `coco_detection`: the numbers of the training, of both libraries, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amradio
from amradio.__main__ import main
from amradio.downstream.detection.files import load_detector
from amradio.downstream.detection.scoring import coco_scores, predict
from amradio.errors import UserError
from amradio.evaluation.sharing import Share
from amradio.evaluation.suite import Suite, plain, run_suite
from amradio.labelled.instances import CocoInstancesSettings, Instances, SceneInstancesSettings
from amradio.labelled.masks import find_pycocotools
from ranks import on_several

pytest.importorskip("pycocotools")

SCENES = "data: {type: scenes, length: 3, seed: 2}"
ON_CPU = ("device=cpu", "num_workers=0")


def word(data: str = SCENES, **keys: object) -> str:
    return f"evaluations.detection={{type: coco_detection, {data}{''.join(f', {key}: {value}' for key, value in keys.items())}}}"


def test_a_run_folder_has_the_scores_of_its_training(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", str(trained), word(), *ON_CPU, "--json", str(tmp_path / "found.json")]) == 0
    printed = capsys.readouterr().out
    assert "box AP" in printed
    assert "mask AP50" in printed
    result = json.loads((tmp_path / "found.json").read_text())["results"]["detection"]
    scores = json.loads((trained / "evaluations" / "step_000000004" / "detection.json").read_text())
    assert result["rows"] == {"student": pytest.approx(scores, abs=1e-6)}
    assert {"box_ap75", "box_ar100", "mask_ap"} <= scores.keys()
    assert result["counts"]["images"] == 3
    assert result["inputs"]["student"]["px"] == "64"
    assert len(result["fingerprint"]) == 16


@pytest.fixture
def near_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of what the detector finds: the objects themselves, displaced by a few px, some with another class."""

    def rows(number: int, image: Instances, *rest: object) -> list[dict]:
        draws, found = np.random.default_rng(number), []
        for mask, (x0, y0, x1, y1), label in zip(image.masks, image.boxes.tolist(), image.labels.tolist(), strict=True):
            right, down = draws.integers(0, 3, 2)
            moved = np.asfortranarray(np.roll(mask, (int(down), int(right)), (0, 1)).astype(np.uint8))
            category = label + 1 if draws.random() < 0.8 else 1
            box = {"bbox": [x0 + right, y0 + down, x1 - x0, y1 - y0], "segmentation": find_pycocotools().encode(moved)}
            found.append({"image_id": number, "category_id": category, "score": float(draws.random())} | box)
        return found

    monkeypatch.setattr("amradio.downstream.detection.scoring._results", rows)


def test_both_libraries_give_the_same_numbers(trained: Path, near_the_truth: None) -> None:
    pytest.importorskip("faster_coco_eval")
    both = [
        amradio.evaluate(trained, word("data: {type: scenes, length: 12, seed: 2}", backend=backend, bins="[8, 16]"), *ON_CPU)["detection"]
        for backend in ("pycocotools", "faster_coco_eval")
    ]
    first, second = (result.rows["student"] for result in both)
    assert first == pytest.approx(second, abs=1e-9)
    assert len(first) == 24, "all numbers of boxes and of masks"
    assert len(set(first.values())) > 12
    assert min(first.values()) >= 0


@pytest.mark.slow
def test_one_and_two_workers_and_a_second_time(trained: Path, near_the_truth: None) -> None:
    results = [amradio.evaluate(trained, word(), "device=cpu", f"num_workers={count}")["detection"] for count in (0, 2)]
    assert results[0].rows == results[1].rows
    assert results[0].fingerprint == results[1].fingerprint
    assert json.loads(json.dumps(plain(results[0])))["rows"] == results[0].rows
    assert results[0].rows["student"]["box_ap"] > 0


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(trained: Path, near_the_truth: None) -> None:
    """Nine scenes are three windows, of which the second process has one; the third scene's annotations are in the order of one process."""
    suite = Suite.load(word("data: {type: scenes, length: 9, seed: 2}"), *ON_CPU).beside(str(trained))
    model = amradio.load(trained)

    def work(share: Share) -> dict[str, Any]:
        torch.set_num_threads(1)
        bench = suite.bench(model, {})
        bench.share = share
        result = run_suite(suite, bench)["detection"]
        return {**plain(result), "seconds": 0, "counted": result.inputs}

    expected = work(Share())
    assert expected["counted"] == {"student": {(64, 64): 9}}
    assert len(set(expected["rows"]["student"].values())) > 6
    assert on_several(2, work) == [expected] * 2


def test_a_detector_beside_the_student_and_the_keys_that_change_numbers(trained: Path, student: Path) -> None:
    """The detector is named, its canvas is another, and so are the bounds of small and large."""
    named = amradio.evaluate(student, word(detector=trained), *ON_CPU)["detection"]
    other = amradio.evaluate(student, word(detector=trained, bins="[4, 24]"), *ON_CPU)["detection"]
    large = amradio.evaluate(student, word(detector=trained), "image_size=96", *ON_CPU)["detection"]
    assert named.rows["student"]["box_ap"] == other.rows["student"]["box_ap"]
    assert "box_ap_large" in other.rows["student"]
    assert "box_ap_large" not in named.rows["student"], "scenes have no object of 96 px"
    assert (named.inputs["student"], large.inputs["student"]) == ({(64, 64): 3}, {(96, 96): 3})
    assert large.fingerprint == named.fingerprint != ""


def test_images_in_cocos_format_are_scored_as_the_scorer_does(trained: Path, coco_of_scenes: Path, near_the_truth: None) -> None:
    data = f"data: {{type: coco_instances, annotations: {coco_of_scenes / 'instances.json'}, images: {coco_of_scenes / 'images'}}}"
    found = amradio.evaluate(trained, word(data), *ON_CPU)["detection"].rows["student"]
    images = CocoInstancesSettings(annotations=str(coco_of_scenes / "instances.json"), images=str(coco_of_scenes / "images"))
    assert found.keys() >= {"box_ap", "mask_ap"}
    detector = load_detector(trained)
    expected = coco_scores(predict(detector, images.build("score"), range(3)), detector.classes, backend="pycocotools")
    assert found == pytest.approx(expected, abs=1e-9)
    scenes = SceneInstancesSettings(length=3, seed=2).build()
    assert found == pytest.approx(coco_scores(predict(detector, scenes, range(3)), detector.classes), abs=1e-6)


@pytest.mark.parametrize(
    ("path", "words", "message"),
    [
        ("student", [word()], "evaluations.detection: detector: {student}: there is no detector.json, so this is no detector; give"),
        ("trained", [word("data: {type: coco_instances, annotations: {coco}/instances.json, images: {coco}/images}")], "categories"),
        ("trained", [word(), "image_size=72"], "evaluations.detection: image_size: 72 px; a multiple of 32 px that the student takes"),
        ("trained", [word(models="[student]", detector="nowhere")], "evaluations.detection: detector: nowhere: "),
        ("trained", [word(bins="[9, 4]")], "evaluations.detection: bins: two numbers above 0, the smaller first, found [9.0, 4.0]"),
    ],
)
def test_what_cannot_be_measured_is_said_first(
    path: str, words: list[str], message: str, request: pytest.FixtureRequest, coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = request.getfixturevalue(path)
    assert main(["evaluate", str(folder), *(text.replace("{coco}", str(coco)) for text in words), *ON_CPU]) == 2
    assert message.replace("{student}", str(folder)) in capsys.readouterr().err


def test_a_library_that_is_not_installed_is_named_before_anything_runs(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert main(["evaluate", str(trained), word(backend="faster_coco_eval"), *ON_CPU]) == 2
    errors = capsys.readouterr().err
    assert "error: evaluations.detection: backend: faster-coco-eval is not installed; pip install faster-coco-eval" in errors
    assert "evaluation 1 of 1" not in errors


def test_a_suite_during_training_names_the_detector() -> None:
    from amradio.evaluation import Bench
    from amradio.evaluation.dense.coco_detection import CocoDetectionSettings

    evaluation = CocoDetectionSettings(data=SceneInstancesSettings(length=2)).build()
    with pytest.raises(UserError, match="give the folder that `amradio detect train` wrote"):
        evaluation.check({"student": None}, Bench(None, {}))  # type: ignore[dict-item]
