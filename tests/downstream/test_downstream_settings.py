"""A setting that does nothing is a defect: each of a detector's and of a vision-language model's changes what a short run leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vlms
from amradio.commands.detect import train_detector
from amradio.commands.vlm import train_vlm
from amradio.config import Settings
from amradio.downstream.detection.detector import Detector
from amradio.downstream.detection.settings import DetectionRecipe, FasterRcnnSettings
from amradio.downstream.vlm.settings import VlmRecipe
from amradio.formats.model_folder import write_folder
from amradio.network import NetworkConfig
from amradio.recipe import Recipe
from detectors import SMALL, VIT, WORDS, weights
from model_folders import config_of
from settings_tree import changed_settings, name_of, settings_below

pytestmark = pytest.mark.slow

DETECT = (*WORDS, "schedule.epochs=1.0", "engine.checkpoint_every=1", "data.val.length=2")
"""Two steps."""
FASTER = f"detector={{type: faster_rcnn, anchor_size: 16, {', '.join(f'{key}: {value}' for key, value in SMALL.items())}}}"
DETECTION = (
    "backbone=lora",
    "backbone={type: last_blocks, count: 1}",
    "backbone=all",
    "data.train.length=6",
    "data.train.seed=5",
    "data.train.limit=5",
    "data.train.image_size=48",
    "data.val=null",
    "detector.channels=8",
    "detector.rpn_convs=2",
    "detector.box_convs=1",
    "detector.box_dim=8",
    "detector.anchor_size=8",
    "detector.num_anchors=4",
    "detector.num_proposals=2",
    "detector.num_samples=4",
    "detector.mask_convs=2",
    "detector.mask_dim=4",
    "detector.windows={size: 2, num_global: 1}",
    FASTER,
    "optimizer.learning_rate=3e-3",
    "schedule={type: published, image_size: 64, batch_size: 4, epochs: 1.0}",
    "schedule.epochs=0.5",
    "schedule.batch_size=2",
    "schedule.image_size=96",
    "schedule.scale=[1.0, 1.0]",
    "schedule.flip=1.0",
    "engine.precision=bfloat16",
    "evaluate.every=1",
    "seed=1",
)
ALIGN = ("instruction=null", "alignment.epochs=1.0", "engine.log_every=1")
INSTRUCT = ("alignment=null", "instruction.epochs=0.2", "engine.log_every=1")
VLM = (
    "head=dino",
    "image_size=32",
    "alignment.learning_rate=3e-3",
    "alignment.data.limit=8",
    "alignment.epochs=0.4",
    "alignment.batch_size=4",
    "alignment.weight_decay=0.5",
    "alignment.warmup=0.9",
    "alignment.max_tokens=24",
    "seed=1",
)
LOW_RANK = (
    "instruction.language_model={type: lora, rank: 2, alpha: 4, dropout: 0.0}",
    "instruction.language_model={type: lora, rank: 4, alpha: 4, dropout: 0.0}",
    "instruction.language_model={type: lora, rank: 2, alpha: 64, dropout: 0.0}",
    "instruction.language_model={type: lora, rank: 2, alpha: 4, dropout: 0.9}",
)
ELSEWHERE = {
    "AttentionWindowsSettings.num_global": "downstream/test_detection.py::test_bad_input_is_one_message",
    "AttentionWindowsSettings.size": "downstream/test_detection.py::test_windows_are_those_of_the_student_and_are_stored",
    "CocoInstancesSettings.annotations": "evaluation/test_promptable_segmentation.py::test_coco_is_read",
    "CocoInstancesSettings.crowds": "evaluation/test_promptable_segmentation.py::test_coco_is_read",
    "CocoInstancesSettings.images": "evaluation/test_promptable_segmentation.py::test_coco_is_read",
    "CocoInstancesSettings.min_area": "evaluation/test_promptable_segmentation.py::test_coco_is_read",
    "CocoInstancesSettings.type": "downstream/test_coco_detection.py::test_images_in_cocos_format_are_scored_as_the_scorer_does",
    "ConversationsSettings.annotations": "downstream/test_vlm.py::test_wrong_conversations_are_named",
    "ConversationsSettings.images": "downstream/test_vlm.py::test_wrong_conversations_are_named",
    "DetectionDataSettings.num_workers": "downstream/test_coco_detection.py::test_one_and_two_workers_and_a_second_time",
    "DetectionRecipe.drop_path": "downstream/test_detection.py::test_branches_are_dropped_in_training_alone",
    "DetectionRecipe.model": "downstream/test_detection.py::test_bad_input_is_one_message",
    "DetectionRecipe.out": "downstream/test_detection.py::test_it_resumes_bit_for_bit",
    "DetectorSettings.num_detections": "downstream/test_downstream_settings.py::test_a_detector_gives_at_most_so_many_objects",
    "DetectorSettings.pyramid": "downstream/test_detection.py::test_every_student_has_a_pyramid",
    "FrozenSettings.type": "downstream/test_detection.py::test_what_is_frozen_keeps_its_bits",
    "VlmRecipe.language_model": "downstream/test_vlm.py::test_bad_recipes",
    "VlmRecipe.model": "downstream/test_vlm.py::test_bad_recipes",
    "VlmRecipe.out": "downstream/test_vlm.py::test_a_stopped_run_resumes_as_if_it_had_not_been",
}
"""Settings whose effect another test shows: `file::function`."""


Outcome = tuple[list[str], dict[str, torch.Tensor]]


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two runs logged and left the same."""
    return one[0] == other[0] and one[1].keys() == other[1].keys() and all(torch.equal(one[1][key], other[1][key]) for key in one[1])


def logged(folder: Path) -> list[str]:
    """The numbers of a run that are no times, and its evaluations."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key == "step" or key.endswith(("loss", "rate", "norm"))} for row in rows]
    evaluations = sorted((folder / "evaluations").glob("*/*.json"))
    return [json.dumps(row) for row in kept] + [f"{file.parent.name} {file.read_text()}" for file in evaluations]


@pytest.fixture(scope="module")
def kept() -> dict[str, Outcome]:
    """The outcome of each base, computed once."""
    return {}


def detected(student: Path, out: Path, *words: str) -> Outcome:
    folder = train_detector(DetectionRecipe.load(f"model={student}", *DETECT, *words, f"out={out}"))
    return logged(folder), weights(folder)


@pytest.mark.parametrize("word", DETECTION)
def test_a_setting_of_a_detector_changes_the_outcome(student: Path, kept: dict[str, Outcome], tmp_path: Path, word: str) -> None:
    if "detection" not in kept:
        kept["detection"] = detected(student, tmp_path / "unchanged")
    assert not same(detected(student, tmp_path / "changed", word), kept["detection"])


def test_a_detector_gives_at_most_so_many_objects() -> None:
    torch.manual_seed(0)
    images, counts = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), []
    for num_detections in (3, 100):
        torch.manual_seed(0)
        network = NetworkConfig(student=VIT, num_summaries=1).build()
        settings = FasterRcnnSettings.model_validate(SMALL | {"anchor_size": 16, "num_detections": num_detections})
        counts.append(len(Detector(network, settings, ("a", "b"), 64).eval().detect(images, [(64, 64)])[0]["scores"]))
    assert counts[0] == 3 < counts[1]


@pytest.fixture(scope="module")
def vlm_words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A student with heads, a language model and conversations."""
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("vlm")
    torch.manual_seed(0)
    config = config_of(vlms.VIT)
    write_folder(folder / "student", config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    return vlms.words(folder / "student", vlms.write_language_model(folder / "language"), vlms.write_conversations(folder / "data", 24))


def taught(words: list[str], out: Path, *more: str) -> Outcome:
    folder = train_vlm(VlmRecipe.load(*words, *more, f"out={out}"))
    return logged(folder), load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("base", "word", "matters"),
    [
        *((ALIGN, word, True) for word in VLM),
        *((INSTRUCT, word, True) for word in LOW_RANK),
        (INSTRUCT, "engine.gradient_checkpointing=true", False),
        (ALIGN, "num_workers=1", False),
    ],
    ids=str,
)
def test_a_setting_of_a_vision_language_model_changes_the_outcome(
    vlm_words: list[str], kept: dict[str, Outcome], tmp_path: Path, base: Any, word: str, matters: bool
) -> None:
    base = (*base, LOW_RANK[0]) if word in LOW_RANK[1:] else base
    name = f"vlm {base}"
    if name not in kept:
        kept[name] = taught(vlm_words, tmp_path / "unchanged", *base)
    assert same(taught(vlm_words, tmp_path / "changed", *base, word), kept[name]) is not matters


def test_every_setting_has_a_case(vlm_words: list[str]) -> None:
    every = {
        name_of(cls, field) for root in (DetectionRecipe, VlmRecipe) for cls in settings_below(root, set()) for field in cls.model_fields
    }
    every -= {name_of(cls, field) for cls in settings_below(Recipe, set()) for field in cls.model_fields}
    covered: set[str] = set()
    for word in DETECTION:
        covered |= changed_settings(*(DetectionRecipe.load("model=m", "out=o", *DETECT, *words) for words in ((), (word,))))
    for base, words in ((ALIGN, VLM), (INSTRUCT, (*LOW_RANK, "engine.gradient_checkpointing=true", "num_workers=1"))):
        start: Settings = VlmRecipe.load(*vlm_words, "out=o", *base)
        covered |= changed_settings(start, VlmRecipe.load(*vlm_words, "out=o"))
        for word in words:
            covered |= changed_settings(start, VlmRecipe.load(*vlm_words, "out=o", *base, word))
    assert sorted(every - covered - set(ELSEWHERE)) == [], "give each a case, or name the test of its effect in ELSEWHERE"
    assert sorted(set(ELSEWHERE) - every) == [], "there is no such setting"


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_test_that_is_named_for_a_setting_is_there(name: str) -> None:
    file, _, function = ELSEWHERE[name].partition("::")
    text = (Path(__file__).parents[1] / file).read_text()
    assert f"def {function}(" in text
    assert name.partition(".")[2] in text, "the file does not speak of the setting"
