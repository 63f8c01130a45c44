"""Benchmarks of other libraries: the real mteb and clip_benchmark on small local data where they are installed, and what is said else."""

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from amradio.config import validate
from amradio.errors import UserError
from amradio.evaluation import Bench, measure
from amradio.evaluation.benchmarks import CLIP_BENCHMARK, load_suite
from amradio.evaluation.external.settings import ClipBenchmarkSettings, MiebSettings
from amradio.evaluation.suite import plain
from amradio.labelled.classification import ScenesImagesSettings
from evaluations import SCENES, tiny_bench

TEMPLATES = ["a {}", "the {} thing"]


@pytest.fixture
def scenes() -> Any:
    return ScenesImagesSettings(length=20, image_size=32).build()


def write_shards(folder: Path, samples: list[dict[str, bytes]], **texts: str) -> Path:
    """A data set as clip_benchmark lays it out: one shard of samples {extension: content}, and files of texts."""
    (folder / "test").mkdir(parents=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as shard:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                entry = tarfile.TarInfo(f"{number:04d}.{extension}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    return folder


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def clip_benchmark(dataset: str, root: Path, **keys: object) -> ClipBenchmarkSettings:
    return validate(ClipBenchmarkSettings, {"dataset": dataset, "root": str(root), **keys})


@pytest.mark.parametrize("name", ["mteb", "clip_benchmark"])
def test_a_missing_library_is_named_with_its_installation(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    settings = MiebSettings() if name == "mteb" else clip_benchmark("wds/x", tmp_path)
    package = name.replace("_", "-")
    with pytest.raises(UserError, match=rf"takes the library '{package}', which is not installed; pip install {package}$"):
        settings.build()


def test_the_suites_have_every_set(tmp_path: Path) -> None:
    assert load_suite("mieb", None).evaluations["MIEB"].model_dump()["benchmark"] == "MIEB(lite)"
    (tmp_path / "data.yaml").write_text("clip_benchmark: /data/clip\n")
    suite = load_suite("clip", tmp_path / "data.yaml", ("evaluations.imagenet1k.batch_size=7",))
    assert tuple(suite.evaluations) == CLIP_BENCHMARK
    assert suite.evaluations["imagenet1k"].model_dump()["batch_size"] == 7
    with pytest.raises(UserError, match="clip_benchmark is missing; write `clip_benchmark: FOLDER` into a YAML file"):
        load_suite("clip", None)


@pytest.mark.slow
def test_classification_of_clip_benchmark_equals_zero_shot(scenes: Any, tmp_path: Path) -> None:
    """On the same images, classes and prompts; a sample's pickle is never loaded."""
    pytest.importorskip("clip_benchmark")
    bench = tiny_bench(tmp_path / "models")
    samples = [{"png": png(scenes.read(n)), "cls": str(label).encode(), "pyd": b"no pickle"} for n, label in enumerate(scenes.labels)]
    texts = {
        "classnames": "\n".join(scenes.classes),
        "zeroshot_classification_templates": "\n".join(t.replace("{}", "{c}") for t in TEMPLATES),
    }
    write_shards(tmp_path / "wds_scenes-small", samples, **texts)
    settings = clip_benchmark("wds/scenes-small", tmp_path / "wds_{dataset_cleaned}", batch_size=6)
    result = measure(settings, settings.build(), bench)
    ours = tiny_zero_shot(bench)
    assert result.rows.keys() == ours.rows.keys() == {"student/clip", "teacher/clip"}
    for name, row in result.rows.items():
        assert row["top1"] == pytest.approx(ours.rows[name]["top1"])
    assert len({row["top1"] for row in result.rows.values()} | {row["mean_per_class_recall"] for row in result.rows.values()}) > 1
    assert result.inputs["student/clip"] == {(32, 32): 20}
    assert json.loads(json.dumps(plain(result)))["rows"] == result.rows
    (write_shards(tmp_path / "wds_broken", samples, **texts) / "test" / "nshards.txt").write_text("many")
    broken = clip_benchmark("wds/broken", tmp_path / "wds_{dataset}")
    with pytest.raises(UserError, match=r"wds/broken: invalid literal for int.*; look into "):
        measure(broken, broken.build(), bench)


def tiny_zero_shot(bench: Bench) -> Any:
    from amradio.evaluation.classification.zero_shot import ZeroShotSettings

    settings = validate(ZeroShotSettings, {"data": SCENES, "templates": TEMPLATES})
    return measure(settings, settings.build(), bench)


@pytest.mark.slow
def test_retrieval_of_clip_benchmark_equals_a_slow_computation(scenes: Any, tmp_path: Path) -> None:
    pytest.importorskip("clip_benchmark")
    bench = tiny_bench(tmp_path / "models")
    captions = [[f"a {scenes.classes[label]}", f"the {number % 7} thing"] for number, label in enumerate(scenes.labels)]
    samples = [{"png": png(scenes.read(number)), "txt": "\n".join(texts).encode()} for number, texts in enumerate(captions)]
    write_shards(tmp_path / "wds_mscoco_captions", samples, dataset_type="retrieval")
    settings = clip_benchmark("wds/mscoco_captions", tmp_path / "wds_{dataset}", recall=[3], batch_size=8)
    result = measure(settings, settings.build(), bench)
    images = torch.stack([torch.from_numpy(scenes.read(number)).permute(2, 0, 1) for number in range(20)]) / 255
    texts = [text for pair in captions for text in pair]
    for name, row in result.rows.items():
        pictures = F.normalize(bench.predict()[name](images).summary, dim=1)
        words = F.normalize(bench.teachers["clip"].encode_text(texts), dim=1)
        found = (words @ pictures.T).topk(3, dim=1).indices
        right = [number // 2 in places for number, places in enumerate(found.tolist())]
        assert row["image_retrieval_recall3"] == pytest.approx(100 * sum(right) / len(right), abs=5.1)  # equal captions tie


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": "wds/nowhere", "root": "nowhere/wds_{dataset}"},
            r"root: nowhere/wds_nowhere/test/nshards.txt and .*/classnames.txt and .*templates.txt are missing",
        ),
        ({"dataset": "winoground", "root": "nowhere"}, "dataset: winoground is of the task image_caption_selection"),
        ({"dataset": "cifar10", "root": "nowhere"}, "root: nowhere is missing; give the folder of cifar10"),
    ],
)
def test_missing_data_of_clip_benchmark(settings: dict[str, str], message: str) -> None:
    pytest.importorskip("clip_benchmark")
    with pytest.raises(UserError, match=message):
        validate(ClipBenchmarkSettings, settings).build()


@pytest.mark.slow
def test_tasks_of_mieb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mteb's own small tasks: with images alone for every row, with texts for rows of text space."""
    mteb = pytest.importorskip("mteb")
    from mteb import mocks

    from amradio.evaluation.external.mieb import _Encoder

    bench = tiny_bench(tmp_path / "models")
    tasks = {"images": mocks.MockImageClassificationTask(), "texts": mocks.MockImageTextPairClassificationTask()}
    monkeypatch.setattr(mteb, "get_task", lambda name: tasks[name])
    settings = validate(MiebSettings, {"tasks": ["images", "texts"], "batch_size": 2})
    result = measure(settings, settings.build(), bench)
    by_task = {metric.title: metric.name for metric in result.metrics}
    images, texts = (by_task[task.metadata.name] for task in tasks.values())
    assert {name for name, row in result.rows.items() if images in row} == {
        "student",
        "student/clip",
        "student/sam",
        "teacher/clip",
        "teacher/sam",
    }
    assert {name for name, row in result.rows.items() if texts in row} == {"student/clip", "teacher/clip"}
    assert all(0 <= value <= 100 for row in result.rows.values() for value in row.values())
    assert json.loads(json.dumps(plain(result)))["rows"] == result.rows

    picture = Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3))
    wanted = bench.predict()["student/clip"](torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255).summary
    read = bench.teachers["clip"].encode_text(["a photo", "the thing"])
    encoder = _Encoder(bench.predict(), "student/clip", bench)
    assert torch.allclose(encoder.encode([{"image": [picture, picture]}]), wanted.expand(2, -1), atol=1e-5)
    assert torch.allclose(encoder.encode([{"text": ["a photo"]}, {"text": ["the thing"]}]), read, atol=1e-5)
    assert torch.allclose(encoder.encode([{"image": [picture] * 2, "text": ["a photo", "the thing"]}]), wanted + read, atol=1e-5)


def test_tasks_and_benchmarks_that_mteb_has_not() -> None:
    pytest.importorskip("mteb")
    with pytest.raises(UserError, match=r"tasks: .*NoSuchTask"):
        MiebSettings(tasks=["NoSuchTask"]).build()
    with pytest.raises(UserError, match="benchmark: "):
        MiebSettings(benchmark="MIEB(none)").build()
    assert len(MiebSettings().build().tasks) > 40
