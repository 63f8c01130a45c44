"""The embedded teachers as anyone would load them: plain transformers, offline, judged on scenes of other seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, Dinov2WithRegistersModel, SamModel, SamProcessor

import amradio
from amradio.data.scenes import CLASS_NAMES, draw_scene

FOLDER = Path(amradio.__file__).parent / "teachers" / "embedded"
CLASSES = {"clip": CLIPModel, "dino": Dinov2WithRegistersModel, "sam": SamModel}
KNOWN, ASKED = 1000, 400


@pytest.fixture(scope="module")
def models():
    return {name: kind.from_pretrained(FOLDER / name, local_files_only=True).eval() for name, kind in CLASSES.items()}


def drawn(seed: int, length: int) -> tuple[list[np.ndarray], torch.Tensor]:
    scenes = [draw_scene(seed, index) for index in range(length)]
    return [scene.image for scene in scenes], torch.tensor([scene.label for scene in scenes])


@pytest.fixture(scope="module")
def known():
    return drawn(110, KNOWN)


@pytest.fixture(scope="module")
def asked():
    return drawn(111, ASKED)


def nearest_neighbours(train, train_labels, test, test_labels) -> float:
    near = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(20, dim=1).indices
    guess = F.one_hot(train_labels[near], len(CLASS_NAMES)).sum(1).argmax(1)
    return float((guess == test_labels).float().mean())


@torch.inference_mode()
def encoded(name: str, model, images: list[np.ndarray]) -> torch.Tensor:
    """The summary that each family is known by; for SAM, which has none, its embeddings averaged."""
    processor, parts = AutoImageProcessor.from_pretrained(FOLDER / name), []
    for start in range(0, len(images), 200):
        pixels = processor(images[start : start + 200], return_tensors="pt")["pixel_values"]
        if name == "clip":
            parts.append(model.visual_projection(model.vision_model(pixels).pooler_output))
        elif name == "dino":
            parts.append(model(pixels).pooler_output)
        else:
            parts.append(model.vision_encoder(pixels).last_hidden_state.mean((2, 3)))
    return torch.cat(parts)


@pytest.fixture(scope="module")
def neighbours(models, known, asked):
    """20-NN accuracy of each teacher and of raw pixels."""
    scores = {
        name: nearest_neighbours(encoded(name, model, known[0]), known[1], encoded(name, model, asked[0]), asked[1])
        for name, model in models.items()
    }
    raw = [torch.from_numpy(np.stack(images)).flatten(1).float() for images in (known[0], asked[0])]
    return scores | {"raw": nearest_neighbours(raw[0], known[1], raw[1], asked[1])}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_each_is_small_and_says_how_it_was_made(name):
    folder = FOLDER / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4_000_000
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "scores.json"} <= {
        file.name for file in folder.iterdir()
    }
    card, scores = (folder / "README.md").read_text(), json.loads((folder / "scores.json").read_text())
    assert "Apache-2.0" in card
    assert "make_embedded_teachers.py" in card
    assert set(scores["made"]) >= {"command", "seed", "steps", "minutes"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_each_takes_pictures_of_any_shape_by_its_own_processor(name):
    processor = AutoImageProcessor.from_pretrained(FOLDER / name)
    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    assert processor(picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.slow
def test_clip_knows_words(models, asked):
    words = AutoTokenizer.from_pretrained(FOLDER / "clip", local_files_only=True)
    model, classes = models["clip"], []
    with torch.inference_mode():
        for template in ("a photo of a {} object", "a picture of a large {} object", "a picture of a small {} object"):
            tokens = words([template.format(name) for name in CLASS_NAMES], padding=True, return_tensors="pt")
            pooled = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
            classes.append(F.normalize(model.text_projection(pooled), dim=1))
    images = F.normalize(encoded("clip", model, asked[0]), dim=1)
    guess = (images @ F.normalize(torch.stack(classes).mean(0), dim=1).T).argmax(1)
    assert float((guess == asked[1]).float().mean()) >= 0.85


@pytest.mark.slow
def test_dino_groups_what_is_alike(neighbours):
    assert neighbours["raw"] <= 0.35
    assert neighbours["dino"] >= 0.60
    assert neighbours["dino"] >= neighbours["raw"] + 0.20


def middle(mask: np.ndarray) -> tuple[int, int]:
    """x, y of the pixel farthest from the outline, the slow way."""
    inside, outside = np.argwhere(mask), np.argwhere(~np.pad(mask, 1)) - 1
    y, x = inside[np.abs(inside[:, None] - outside).max(-1).min(1).argmax()]
    return int(x), int(y)


@pytest.mark.slow
def test_sam_draws_what_is_clicked(models):
    processor, found = SamProcessor.from_pretrained(FOLDER / "sam"), []
    for index in range(60):
        scene = draw_scene(112, index)
        masks = scene.instance_masks[scene.instance_masks.sum((1, 2)) >= 64]
        points = [[[middle(mask)] for mask in masks]]
        inputs = processor(scene.image, input_points=points, return_tensors="pt")
        inputs["input_points"] = inputs["input_points"].float()
        with torch.inference_mode():
            output = models["sam"](**inputs)
        logits = F.interpolate(output.pred_masks[0], (64, 64), mode="bilinear", align_corners=False)
        best = logits[torch.arange(len(masks)), output.iou_scores[0].argmax(1)] > 0
        wanted = torch.from_numpy(masks)
        found.append((best & wanted).sum((1, 2)) / (best | wanted).sum((1, 2)))
    assert float(torch.cat(found).mean()) >= 0.60


@pytest.mark.slow
def test_each_is_weaker_elsewhere(models, neighbours):
    # Only CLIP has words and only SAM draws masks; what all three have in common is 20-NN, and there SAM lags.
    assert neighbours["sam"] <= neighbours["dino"] - 0.15
    assert neighbours["sam"] <= neighbours["clip"] - 0.15
    assert not hasattr(models["dino"], "text_model")
    assert not hasattr(models["clip"], "mask_decoder")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "sam"])
def test_the_tool_repeats_bit_for_bit(name, tmp_path, monkeypatch):
    """One thread, a number of steps: the same command makes the same file (the cards' commands give --steps)."""
    tools = Path(__file__).parents[2] / "tools"
    monkeypatch.syspath_prepend(str(tools))
    import make_embedded_teachers as tool

    monkeypatch.setattr(tool.TEACHERS[name], "BATCH", 4)
    made = []
    for attempt in "ab":
        words = ["tool", "--only", name, "--steps", "2", "--pictures", "32", "--out", str(tmp_path / attempt)]
        monkeypatch.setattr("sys.argv", words)
        monkeypatch.setattr(tool, "KNOWN", 32)
        monkeypatch.setattr(tool, "TEST", 16)
        tool.main()
        made.append((tmp_path / attempt / name / "model.safetensors").read_bytes())
    assert made[0] == made[1]
    assert " --steps " in json.loads((FOLDER / name / "scores.json").read_text())["made"]["command"]
