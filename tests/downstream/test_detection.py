"""Detection: one run in full, resume and processes, levels of all students, views, scores, and bad input."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import amradio
from amradio.__main__ import main
from amradio.downstream.detection.detector import Detector
from amradio.downstream.detection.examples import View, boxes_on, lay_out
from amradio.downstream.detection.files import load_detector, write_detector
from amradio.downstream.detection.sampling import ImageSampler, numbers_of
from amradio.downstream.detection.scoring import Predictions, coco_scores, predict
from amradio.downstream.detection.settings import DetectionRecipe, FasterRcnnSettings
from amradio.errors import UserError
from amradio.labelled.instances import CocoInstancesSettings, SceneInstancesSettings
from amradio.network import NetworkConfig
from amradio.students.drop_path import add_drop_path
from amradio.students.eradio_settings import EradioSettings
from amradio.students.timm_settings import TimmSettings
from detectors import SMALL, VIT, WORDS, weights

pytest.importorskip("pycocotools")


def test_a_run_leaves_scores_and_a_detector_that_is_read_back(trained: Path) -> None:
    scores = json.loads((trained / "evaluations" / "step_000000004" / "detection.json").read_text())
    assert {"box_ap", "mask_ap"} <= scores.keys()
    detector = load_detector(trained)
    images = SceneInstancesSettings(length=3, seed=2).build()
    found = predict(detector, images, range(3))
    assert coco_scores(found, detector.classes) == pytest.approx(scores, abs=1e-6)
    stored, state = weights(trained), detector.state_dict()
    assert any("lora_a" in name for name in stored)
    assert not any("lora_a" in name for name in state)
    assert torch.equal(state["roi_heads.box_head.fc6.weight"], stored["roi_heads.box_head.fc6.weight"])


def test_a_detector_of_weights_that_are_no_numbers_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / "model", tmp_path / "model")
    tensors = load_file(folder / "detector.safetensors")
    tensors["rpn.head.cls_logits.bias"][0] = float("nan")
    save_file(tensors, folder / "detector.safetensors")
    with pytest.raises(UserError, match=r"weights that are no finite numbers \(rpn\.head\.cls_logits\.bias\)"):
        load_detector(folder)


@pytest.mark.parametrize("module", ["amradio.formats.model_folder", "amradio.downstream.detection.files"])
def test_a_full_disk_leaves_whole_files_alone(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Half-written files would keep the space that is needed."""
    folder, config, detector = shutil.copytree(trained / "model", tmp_path / "model"), amradio.load(trained).config, load_detector(trained)
    before = {path.name for path in folder.iterdir()}

    def filling(tensors: object, path: Path, *rest: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"{module}.write_tensors", filling)
    with pytest.raises(OSError, match="No space left"):
        write_detector(folder, config, detector, {"step": 1, "num_steps": 1, "data": "nothing"})
    assert {path.name for path in folder.iterdir()} == before
    monkeypatch.undo()
    assert load_detector(folder).classes == detector.classes


@pytest.mark.slow
def test_it_resumes_bit_for_bit(trained: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after two of four steps, as by a signal."""
    from amradio.engine.monitor import Monitor

    take = Monitor.take

    def stopping(self: Monitor, step: int, *rest: object) -> None:
        take(self, step, *rest)
        if step == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    words = ["detect", "train", f"model={student}", *WORDS, "backbone=lora", f"out={tmp_path / 'run'}"]
    monkeypatch.setattr(Monitor, "take", stopping)
    assert main(words) == 143
    monkeypatch.undo()
    assert main(words) == 0
    whole, resumed = weights(trained), weights(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(("kind", "is_trained"), [("frozen", False), ("all", True)])
def test_what_is_frozen_keeps_its_bits(student: Path, tmp_path: Path, kind: str, is_trained: bool) -> None:
    words = (*WORDS, "schedule.epochs=0.5", "data.val=null", "optimizer.learning_rate=1e-2", f"backbone={kind}")
    assert main(["detect", "train", f"model={student}", *words, f"out={tmp_path / 'run'}"]) == 0
    from safetensors.torch import load_file

    before, after = load_file(student / "model.safetensors"), load_file(tmp_path / "run" / "model" / "model.safetensors")
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert bool(moved) is is_trained
    assert not any("cls_token" in name and name not in before for name in moved)


@pytest.mark.parametrize(
    ("settings", "strides"),
    [
        (VIT, []),
        (EradioSettings(size="xxxtiny", dim=8, stem_dim=8, depths=(1, 1, 1, 1), num_heads=(2, 2), window_size=3), [4, 8, 16, 32]),
        (TimmSettings(model="test_efficientnet"), [4, 8, 16, 32]),
        (TimmSettings(model="test_vit", image_size=64), []),
    ],
    ids=["vit", "eradio", "timm", "timm_vit"],
)
def test_every_student_has_a_pyramid(settings, strides: list[int]) -> None:
    torch.manual_seed(0)
    network = NetworkConfig(student=settings, num_summaries=1).build()
    detector = Detector(network, FasterRcnnSettings(**SMALL), ("a", "b"), 64).eval()
    assert list(network.student.pyramid) == strides
    maps = detector.maps(torch.rand(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in maps.values()] == [(16, 16, 16), (16, 8, 8), (16, 4, 4), (16, 2, 2), (16, 1, 1)]
    found = detector.detect(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), [(64, 40), (30, 64)])
    assert all({"boxes", "scores", "labels"} <= image.keys() for image in found)


def test_windows_are_those_of_the_student_and_are_stored(student: Path, tmp_path: Path) -> None:
    windows = "detector.windows={size: 2, num_global: 1}"
    words = (*WORDS, "schedule.epochs=0.5", "data.val=null", windows, f"out={tmp_path / 'run'}")
    assert main(["detect", "train", f"model={student}", *words]) == 0
    images = torch.rand(1, 3, 64, 64)
    detector, model = load_detector(tmp_path / "run"), amradio.load(student)
    whole = model.network.student(images).spatial
    model.set_windows(2, num_global=1)
    windowed = model.network.student(images).spatial
    assert detector.student.window_size == 2
    assert torch.equal(detector.student(images).spatial, windowed)
    assert not torch.allclose(whole, windowed)


def test_branches_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    network = NetworkConfig(student=VIT, num_summaries=1).build()
    add_drop_path(network.student, 0.5)
    detector = Detector(network, FasterRcnnSettings(**SMALL), ("a", "b"), 64)
    images = torch.rand(4, 3, 64, 64)

    def maps(seeds: list[int]) -> torch.Tensor:
        network.student.take_draws(numbers_of(seeds))
        return detector.maps(images[: len(seeds)])["0"]

    plain, dropped = detector.eval() and maps([1, 2, 3, 4]), detector.train() and maps([1, 2, 3, 4])
    assert torch.equal(detector.eval() and maps([5, 6, 7, 8]), plain)
    assert not torch.allclose(dropped, plain)
    torch.testing.assert_close(detector.train() and maps([1]), dropped[:1])
    assert not torch.allclose(detector.train() and maps([5, 6, 7, 8]), dropped)


def test_what_is_drawn_for_an_image_depends_on_its_seed_alone() -> None:
    matches = [torch.tensor([1, 0, 0, 2, 0, -1, 0, 0, 1, 0]), torch.tensor([0, 1] * 8)]
    both, one = ImageSampler(4, 0.5), ImageSampler(4, 0.5)
    both.seeds, one.seeds = [5, 6], [6]
    positive, negative = both(matches)
    assert torch.equal(one(matches[1:])[0][0], positive[1])
    assert [int(mask.sum()) for mask in (*positive, *negative)] == [2, 2, 2, 2]
    assert not (positive[0].bool() & (matches[0] < 1)).any()
    assert not (negative[0].bool() & (matches[0] != 0)).any()


@pytest.mark.parametrize("view", [View(1.0, 0, 0), View(2.0, 20, 11), View(0.5, 0, 0, True), View(2.0, 15, 0, True)])
def test_boxes_move_as_the_pixels_do(view: View) -> None:
    image = np.zeros((48, 60), dtype=np.uint8)
    image[12:30, 14:40] = 255
    canvas, height, width = lay_out(image, view, 64)
    box = boxes_on(np.array([[14, 12, 40, 30]], dtype=np.float32), view, height, width)[0]
    rows, columns = np.flatnonzero((canvas > 127).any(1)), np.flatnonzero((canvas > 127).any(0))
    assert box == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=1.01)


def test_perfect_boxes_score_100_and_a_shifted_one_less() -> None:
    truth = {"image_id": 0, "category_id": 1, "bbox": [10.0, 10.0, 40.0, 40.0], "area": 1600.0, "iscrowd": 0}
    image, found = {"id": 0, "height": 100, "width": 100}, {"image_id": 0, "category_id": 1, "bbox": [10.0, 10.0, 40.0, 40.0], "score": 0.9}
    assert coco_scores(Predictions([image], [truth], [found]), ["a"], backend="pycocotools")["box_ap"] == pytest.approx(100)
    shifted = found | {"bbox": [20.0, 10.0, 40.0, 40.0]}  # IoU 0.6: right at 0.5, 0.55 and 0.6
    assert coco_scores(Predictions([image], [truth], [shifted]), ["a"], backend="pycocotools")["box_ap"] == pytest.approx(30)
    assert coco_scores(Predictions([image], [truth], []), ["a"])["box_ap"] == 0
    for annotations in ([], [truth | {"iscrowd": 1}]):
        with pytest.raises(UserError, match="no object with a category in these images, crowds aside"):
            coco_scores(Predictions([image], annotations, []), ["a"])


def test_a_complete_set_has_all_images_crowds_and_boxes_without_a_mask(tmp_path: Path) -> None:
    from PIL import Image

    for name in "ab":
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    images = [{"id": n, "file_name": f"{name}.png", "height": 30, "width": 40} for n, name in enumerate("ab")]
    boxed = {"id": 1, "image_id": 0, "category_id": 7, "bbox": [5, 5, 10, 20], "iscrowd": 1}
    content = {"images": images, "annotations": [boxed], "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    settings = CocoInstancesSettings(annotations=str(tmp_path / "a.json"), images=str(tmp_path))
    complete = settings.build("score")
    assert (len(complete), list(complete.classes)) == (2, ["cat", "dog"])
    first = complete.read(0)
    assert (first.labels.tolist(), first.crowds.tolist(), first.areas.tolist(), first.boxes.tolist()) == (
        [0],
        [True],
        [200.0],
        [[5, 5, 15, 25]],
    )
    assert len(complete.read(1).boxes) == 0
    with pytest.raises(UserError, match="it lacks 'segmentation'"):
        settings.build()
    boxes = settings.build("boxes")
    assert len(boxes) == 1, "images without an object are left out"
    assert boxes.read(0).boxes.tolist() == [[5, 5, 15, 25]]
    with pytest.raises(UserError, match="there is no annotation with a box in it, crowds left out"):
        settings.model_copy(update={"crowds": False}).build("boxes")
    nothing = {key: value for key, value in boxed.items() if key != "bbox"}
    (tmp_path / "a.json").write_text(json.dumps(content | {"annotations": [nothing]}))
    with pytest.raises(UserError, match="it lacks 'bbox' and 'segmentation'"):
        settings.build("boxes")
    for box, message in (([5, 5, 0, 20], "there is no annotation with a box in it;"), ([5, 5, 1], "expected \\[x, y, width, height\\]")):
        (tmp_path / "a.json").write_text(json.dumps(content | {"annotations": [boxed | {"bbox": box}]}))
        for purpose in ("boxes", "score"):
            with pytest.raises(UserError, match=message):
                settings.build(purpose)


def test_a_detector_learns_from_boxes_without_masks(student: Path, coco: Path, tmp_path: Path, capfd) -> None:
    content = json.loads((coco / "instances.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = f"{{type: coco_instances, annotations: {tmp_path / 'boxes.json'}, images: {coco / 'images'}}}"
    words = ["detect", "train", f"model={student}", *WORDS, f"data={{train: {data}, val: {data}, num_workers: 0}}", "schedule.epochs=0.1"]
    assert main([*words, "detector.type=mask_rcnn", f"out={tmp_path / 'masks'}"]) == 2
    assert "it lacks 'segmentation'" in capfd.readouterr().err
    plain = "detector={type: faster_rcnn, channels: 16, box_convs: 0, rpn_convs: 1, box_dim: 16}"
    boxes = [word for word in words if not word.startswith("detector=")]
    assert main([*boxes, plain, f"out={tmp_path / 'boxes'}"]) == 0


def test_a_run_is_not_resumed_with_other_images(student: Path, coco: Path, tmp_path: Path, capfd) -> None:
    """The file has the same name, so that the recipe is the same; images for the score may change."""
    file = tmp_path / "a.json"
    content = json.loads((coco / "instances.json").read_text())
    file.write_text(json.dumps(content))
    train, val = (f"{{type: coco_instances, annotations: {name}, images: {coco / 'images'}}}" for name in (file, coco / "instances.json"))
    words = ["detect", "train", f"model={student}", *WORDS, f"data={{train: {train}, val: {val}, num_workers: 0}}", "schedule.epochs=1"]
    words += [f"out={tmp_path / 'run'}"]
    assert main(words) == 0
    file.write_text(json.dumps(content, indent=1))
    assert main(words) == 0, "the same, written otherwise"
    content["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(content))
    before = weights(tmp_path / "run")
    capfd.readouterr()
    assert main(words) == 2
    assert "was begun with other training images or annotations" in capfd.readouterr().err
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("schedule.image_size=72",),
            "schedule.image_size: 72 px; a multiple of 32 px that the student takes is needed; the nearest is",
        ),
        (("detector.pyramid=levels",), "detector.pyramid: the student has maps of one stride only; take simple, or auto"),
        (("optimizer.layer_decay=0.5",), "optimizer.layer_decay: it is for a backbone that is trained, and this one is frozen"),
        (("drop_path=0.1",), "drop_path: it is for a backbone that is trained, and this one is frozen"),
        (
            ("detector.windows={size: 3, num_global: 1}",),
            "schedule.image_size: 64 px; a multiple of 32 px that the student takes is needed; the nearest is 96",
        ),
        (("detector.windows.num_global=2",), "detector.windows: num_global 2: every one of 2 blocks would be global"),
        (("optimizer.milestones=[0.9,0.5]",), "optimizer: milestones: shares of the stage, each larger than the one before"),
        (("optimizer.milestones=[0.9]", "optimizer.final_learning_rate=1e-5"), "there is no cosine where milestones are given"),
        (("schedule.epoch=3",), "schedule.epoch: there is no such key; did you mean 'epochs'?"),
        (("engine.accumulate=3",), "engine.accumulate: 3 does not divide"),
        (("model=nowhere", "data.train={type: coco_instances, annotations: no.json, images: no}"), "model: nowhere: "),
    ],
)
def test_bad_input_is_one_message(
    student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "run"
    assert main(["detect", "train", f"model={student}", *WORDS, f"out={out}", *words]) == 2
    errors = capfd.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (out / "config.yaml").exists()


def test_published_is_vitdets_schedule() -> None:
    recipe = DetectionRecipe.load("model=m", "out=o", "data.train.type=scenes", "schedule=published")
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.batch_size, schedule.image_size, schedule.scale) == (100, 64, 1024, (0.1, 2.0))
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (1e-4, 0.1)
