"""The evaluation room: every evaluation keeps the contract; the student is computed once; images are read as they lie there."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from amradio.config import validate
from amradio.data.scenes import CLASS_NAMES, draw_scene
from amradio.errors import UserError
from amradio.evaluation import EVALUATIONS, Bench, EvaluationSettings, Result, measure
from amradio.evaluation.cache import FeatureCache, Summaries
from amradio.evaluation.predictors import predictors
from amradio.evaluation.reading import Broken, encode
from amradio.evaluation.suite import plain
from amradio.evaluation.summaries import summaries
from amradio.features import KINDS, Features
from amradio.images import centre_crop
from amradio.labelled.classification import ClassFolderSettings, CocoCaptionsSettings, ScenesImagesSettings, labels_in
from amradio.teachers.base import Teacher
from evaluations import SMALL, tiny_bench

TYPES = {settings.model_fields["type"].default: settings for settings in EVALUATIONS}
TIMED = ("throughput",)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return tiny_bench(tmp_path_factory.mktemp("bench"))


def settings_of(kind: str, **changes: object) -> EvaluationSettings:
    return validate(TYPES[kind], SMALL[kind] | changes)


def measured(kind: str, bench: Bench, **changes: object) -> Result:
    settings = settings_of(kind, **changes)
    return measure(settings, settings.build(), bench)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind in SMALL])
def test_every_evaluation_says_rows_of_finite_numbers(kind: str, bench: Bench) -> None:
    result = measured(kind, bench)
    assert result.rows.keys() <= bench.predict().keys()
    assert any(name.startswith("student") for name in result.rows)
    assert result.rows
    names = [metric.name for metric in result.metrics]
    for row in result.rows.values():
        assert set(row) <= set(names)
        assert row
        assert all(torch.tensor(value).isfinite() for value in row.values())
    for metric in result.metrics:
        values = [row[metric.name] for row in result.rows.values() if metric.name in row]
        if metric.unit == "%":
            assert all(0 <= value <= 100 for value in values)
    assert set(result.floors) <= set(names)
    assert result.settings["type"] == kind
    assert result.seconds > 0
    assert all(isinstance(count, int) for count in result.counts.values())
    assert json.loads(json.dumps(plain(result)))["rows"] == result.rows


def keys_in(content: object) -> Iterator[str]:
    """All keys of JSON, however deep."""
    if isinstance(content, dict):
        yield from content
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from keys_in(value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind in SMALL])
def test_names_in_json_are_identifiers(kind: str, bench: Bench) -> None:
    """Of metrics, counts and details; names that a user gave (rows, classes) and px are no names of ours."""
    found = plain(measured(kind, bench))
    models = {*found["rows"], *(f"{row}/{kind}" for row in found["rows"] for kind in KINDS)} | {
        f"{name}/{kind}" for name in bench.teachers for kind in KINDS
    }
    names = {metric["name"] for metric in found["metrics"]} | set(keys_in([found["counts"], found["details"]]))
    names -= models | {*CLASS_NAMES, "background"}
    assert [name for name in names if not re.fullmatch(r"[a-z][a-z0-9_]*|[0-9]+", name)] == []
    assert all(metric["title"] for metric in found["metrics"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind in SMALL and kind not in TIMED])
def test_every_evaluation_is_deterministic(kind: str, bench: Bench) -> None:
    first = measured(kind, bench)
    again = Bench(bench.model, bench.teachers)
    second = measured(kind, again)
    assert first.rows == second.rows
    assert first.fingerprint == second.fingerprint != ""


def test_another_set_has_another_fingerprint(bench: Bench) -> None:
    one, other = (measured("zero_shot", bench, data={**SMALL["zero_shot"]["data"], "seed": seed}) for seed in (1, 2))
    assert one.fingerprint != other.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind in SMALL and kind not in TIMED])
def test_the_same_on_one_and_two_workers(kind: str, bench: Bench) -> None:
    one, two = (measured(kind, Bench(bench.model, bench.teachers, num_workers=workers)) for workers in (1, 2))
    assert one.rows == two.rows
    assert one.details == two.details


@pytest.mark.parametrize("kind", ["knn", "statistics"])
def test_models_side_by_side_give_the_same(kind: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, names = measured(kind, Bench(bench.model, bench.teachers)), set()
    forward = type(bench.teachers["sam"]).forward

    def noted(self: Teacher, images: Tensor) -> Features:
        names.add((threading.current_thread().name.split("_")[0], torch.get_num_threads()))
        return forward(self, images)

    monkeypatch.setattr(type(bench.teachers["sam"]), "forward", noted)
    torch.set_num_threads(2)
    try:
        parallel = Bench(bench.model, bench.teachers)
        parallel.side_by_side = True
        found = measured(kind, parallel)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert names == {("encode", 1)}
    assert found.fingerprint == expected.fingerprint
    for row, values in expected.rows.items():
        assert found.rows[row] == pytest.approx(values, abs=1e-3), row


def test_models_choose_rows(bench: Bench) -> None:
    assert list(measured("knn", bench, models=["teacher/sam"]).rows) == ["teacher/sam"]
    with pytest.raises(UserError, match=r"no row 'teacher/sma'; did you mean .*'teacher/sam'"):
        measured("knn", bench, models=["teacher/sma"])


def test_the_student_is_computed_once_for_all_heads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    student = bench.model.network.student
    monkeypatch.setattr(student, "forward", lambda images, draws=None, real=student.forward: calls.append(1) or real(images, draws))
    predict = bench.predict()
    images = torch.rand(2, 3, 40, 50)
    for name in ("student", "student/clip", "student/sam"):
        predict[name](images)
    assert len(calls) == 1
    images.mul_(0.5)
    changed = predict["student/clip"](images)
    assert len(calls) == 2
    assert torch.equal(changed.summary, bench.predict()["student/clip"](images.clone()).summary)


def test_heads_of_predict_are_those_of_the_model(bench: Bench) -> None:
    images = torch.rand(2, 3, 32, 32)
    found = bench.model(images, heads=["clip"])
    predict = bench.predict()
    assert torch.allclose(predict["student"](images).spatial, found["backbone"].spatial)
    assert torch.allclose(predict["student/clip"](images).summary, found["clip"].summary)


def test_views(bench: Bench) -> None:
    images = torch.rand(1, 3, 40, 80)
    crop, whole = bench.predict("crop"), bench.predict("whole")
    assert crop["student"](images).spatial.shape[1:3] == (4, 4)
    assert whole["student"](images).spatial.shape[1:3] == (4, 8)
    teacher = bench.teachers["clip"]
    assert torch.equal(crop["teacher/clip"](images).summary, teacher(teacher.prepare(images)).summary)
    assert bench.predict("whole", 64)["student"](images).spatial.shape[1:3] == (8, 16)


def test_centre_crop_keeps_the_aspect() -> None:
    images = torch.zeros(1, 3, 20, 60)
    images[..., 20:40] = 1
    assert (centre_crop(images, 10) > 0.5).all()


def test_images_of_mixed_sizes_keep_their_order(bench: Bench) -> None:
    draws = torch.Generator().manual_seed(0)
    sizes = [(32, 32), (40, 32), (32, 32), (32, 48), (40, 32)]
    images = [(torch.rand(3, *size, generator=draws) * 255).to(torch.uint8) for size in sizes]
    predict = bench.predict()
    together = encode(predict, images, torch.device("cpu"), lambda features: {"map": features.spatial})
    for name in ("student", "teacher/clip", "teacher/sam"):
        for index, image in enumerate(images):
            alone = bench.predict()[name](image[None].float() / 255).spatial
            assert torch.allclose(together[name]["map"][index], alone[0], atol=1e-5)


def test_plain_functions_serve_as_models(bench: Bench) -> None:
    predict = {"mean": lambda images: Features(images.mean((2, 3)), None)}
    found = summaries(ScenesImagesSettings(length=4, image_size=32).build(), predict, bench, Broken())["mean"]
    assert found.features.shape == (4, 3)


@pytest.mark.slow
def test_features_are_computed_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Bench(bench.model, bench.teachers)
    calls = []
    teacher = fresh.teachers["clip"]
    monkeypatch.setattr(teacher, "encode", lambda images, real=teacher.encode: calls.append(len(images)) or real(images))
    measured("knn", fresh)
    seen = sum(calls)
    measured("zero_shot", fresh)
    measured("linear_classification", fresh, train=SMALL["knn"]["database"])
    assert sum(calls) == seen == 50
    measured("zero_shot", fresh, image_size=64)
    assert sum(calls) == seen, "the teacher's own view does not depend on the student's size"


def test_the_cache_is_bounded() -> None:
    cache = FeatureCache(limit=1000)
    for number in range(5):
        cache.put((number,), Summaries(torch.zeros(50, 2), torch.zeros(10, dtype=torch.int64), {}))
    assert cache.get((4,)) is not None
    assert cache.get((0,)) is None


def test_labels_of_scenes_are_those_of_the_drawn_ones() -> None:
    images = ScenesImagesSettings(length=12, limit=5, seed=3, image_size=48).build()
    for index in range(len(images)):
        scene = draw_scene(3, images.kept[index], 48)
        assert (images.labels[index], images.captions[index]) == (scene.label, scene.captions)


def classes(path: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 16), (number * 20, 0, 0)).save(path / name / f"{number}.png")
    return path


def test_class_folder(tmp_path: Path) -> None:
    found = ClassFolderSettings(path=str(classes(tmp_path / "a", big_cat=2, dog=1))).build()
    assert list(found.classes) == ["big cat", "dog"]
    assert found.labels == [0, 0, 1]
    (tmp_path / "a" / "classnames.json").write_text('{"big_cat": "tiger", "dog": "hound"}')
    assert list(ClassFolderSettings(path=str(tmp_path / "a")).build().classes) == ["tiger", "hound"]


def test_broken_images_are_counted_and_named(tmp_path: Path, bench: Bench) -> None:
    path = classes(tmp_path / "a", cat=3, dog=2)
    (path / "cat" / "1.png").write_bytes(b"no picture")
    folder = {"type": "class_folder", "path": str(path)}
    result = measured("knn", bench, database=folder, queries=folder, k=[1])
    assert result.counts["broken"] == 1
    assert any("1 images could not be read" in note and "cat/1.png" in note for note in result.notes)
    again = measured("linear_classification", bench, train=folder, test=folder)
    assert again.counts["broken"] == 1, "also where features come from the cache"


def test_not_one_readable_image_is_an_error(tmp_path: Path) -> None:
    path = classes(tmp_path / "a", cat=1)
    (path / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"not one can be read; the first: cat/0.png: an empty file"):
        summaries(
            ClassFolderSettings(path=str(path)).build(),
            {"x": lambda images: Features(images.mean((2, 3)), None)},
            Bench(None, {}),
            Broken(),
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: classes(path, cat=0, dog=0), "there is no folder with images in it"),
        (lambda path: path.mkdir(), "there is no folder with images in it"),
        (lambda path: None, "there is no such folder"),
        (lambda path: (classes(path, cat=1) / "classnames.json").write_text('{"dog": "x"}'), "there is no name for the class 'cat'"),
        (lambda path: (classes(path, cat=1) / "classnames.json").write_text("{"), "not valid JSON"),
    ],
)
def test_bad_class_folder(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "a")
    with pytest.raises(UserError, match=message):
        ClassFolderSettings(path=str(tmp_path / "a")).build()


def test_classes_that_do_not_match(tmp_path: Path) -> None:
    one, other = (ClassFolderSettings(path=str(path)).build() for path in (classes(tmp_path / "a", b=1, c=1), classes(tmp_path / "b", c=1)))
    assert labels_in(one, other).tolist() == [1]
    with pytest.raises(UserError, match="the class 'b' is none of the 1 classes"):
        labels_in(other, one)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "it lacks 'annotations'"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": []}, "there is no caption in it"),
        ({"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}, r"annotations\[0\]: its image_id 3 belongs to no image"),
    ],
)
def test_bad_captions(tmp_path: Path, content: dict, message: str) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        CocoCaptionsSettings(annotations=str(tmp_path / "captions.json"), images=str(tmp_path)).build()


def test_text_evaluations_need_a_text_encoder(bench: Bench) -> None:
    silent = Bench(bench.model, {"sam": bench.teachers["sam"]})
    for kind in ("zero_shot", "retrieval"):
        with pytest.raises(UserError, match=r"none of the teachers has one \(there is: 'sam'\)"):
            measured(kind, silent)
        with pytest.raises(UserError, match="'sam' has no text encoder; these have one: clip"):
            measured(kind, bench, heads=["sam"])
        with pytest.raises(UserError, match="there is no teacher 'clap'; did you mean 'clip'"):
            measured(kind, bench, heads=["clap"])
    with pytest.raises(UserError, match="no head of the student has its teacher here"):
        measured("agreement", Bench(bench.model, {}))


def test_predictors_of_teachers_alone(bench: Bench) -> None:
    assert list(predictors(None, bench.teachers, None, "crop")) == ["teacher/clip", "teacher/sam"]
