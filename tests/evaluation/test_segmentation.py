"""Segmentation: readers of labelled maps, mean IoU, the linear probe, sliding windows, open vocabulary."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import tiny
from amradio.errors import UserError
from amradio.evaluation.base import Bench
from amradio.evaluation.dense.augmentation import Augmentation, AugmentedSchedule, LabelledImage, ShortSchedule, augment, recoloured
from amradio.evaluation.dense.linear_segmentation import (
    LinearSegmentation,
    LinearSegmentationSettings,
    SlideInference,
    WholeInference,
    slide,
    starts,
)
from amradio.evaluation.dense.mean_iou import Confusion, Priors
from amradio.evaluation.dense.open_vocabulary_segmentation import OpenVocabularySegmentation, similarities
from amradio.evaluation.dense.probe import learning_rate, pixel_loss
from amradio.features import Features
from amradio.labelled.class_names import ADE20K, CITYSCAPES, PASCAL_VOC
from amradio.labelled.segmentation import (
    IGNORE,
    MAPS,
    Ade20kSettings,
    CityscapesSettings,
    ImagesLabelsSettings,
    LabelledMaps,
    MapsSettings,
    PascalVocSettings,
    SceneMapsSettings,
)
from amradio.teachers.settings import ClipSettings, OpenClipSettings, SiglipSettings

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"
SIZES = ((24, 32), (20, 20))


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels, mode) if mode else Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([number % 251 for number in range(768)])
    image.save(path)


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    return tiny.photo(*size, 1, number)[0].permute(1, 2, 0).numpy().copy()


def ids(size: tuple[int, int], *values: int) -> np.ndarray:
    """Stripes of the values."""
    return np.repeat(np.array(values, np.uint8)[np.arange(size[1]) * len(values) // size[1]][None], size[0], 0)


def make_images_labels(folder: Path) -> ImagesLabelsSettings:
    for number, size in enumerate(SIZES):
        save(folder / "images" / f"{number}.jpg", picture(number, size))
        save(folder / "labels" / f"{number}.png", ids(size, 0, 1, 2, 9))
    (folder / "classes.json").write_text(json.dumps({"classes": ["sky", "road", "car"], "ignore_index": 9}))
    return ImagesLabelsSettings(path=str(folder))


def make_ade20k(folder: Path) -> Ade20kSettings:
    for number, size in enumerate(SIZES):
        save(folder / "images" / "validation" / f"ADE_{number}.jpg", picture(number, size))
        save(folder / "annotations" / "validation" / f"ADE_{number}.png", ids(size, 1, 150, 0))
    return Ade20kSettings(path=str(folder))


def make_voc(folder: Path) -> PascalVocSettings:
    for number, size in enumerate(SIZES):
        save(folder / "JPEGImages" / f"n{number}.jpg", picture(number, size))
        save(folder / "SegmentationClass" / f"n{number}.png", ids(size, 0, 20, 255), mode="P")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("n0\nn1\n")
    return PascalVocSettings(path=str(folder))


def make_cityscapes(folder: Path) -> CityscapesSettings:
    for number, size in enumerate(SIZES):
        save(folder / "leftImg8bit" / "val" / "ulm" / f"ulm_{number}_leftImg8bit.png", picture(number, size))
        save(folder / "gtFine" / "val" / "ulm" / f"ulm_{number}_gtFine_labelIds.png", ids(size, 7, 33, 0, 29))
    return CityscapesSettings(path=str(folder))


def make_scenes(folder: Path) -> SceneMapsSettings:
    return SceneMapsSettings(length=2, image_size=20)


MAKERS: dict[str, Callable[[Path], MapsSettings]] = {
    "images_labels": make_images_labels,
    "ade20k": make_ade20k,
    "pascal_voc": make_voc,
    "cityscapes": make_cityscapes,
    "scenes": make_scenes,
}
CLASSES = {
    "images_labels": (3, {0, 1, 2, 255}),
    "ade20k": (150, {0, 149, 255}),
    "pascal_voc": (21, {0, 20, 255}),
    "cityscapes": (19, {0, 18, 255}),
}


def test_a_limit_thins_out(tmp_path: Path):
    for kind, make in MAKERS.items():
        maps = make(tmp_path / kind).model_copy(update={"limit": 1}).build()
        assert len(maps) == 1
        assert maps.describe().startswith("1 ")


@pytest.mark.parametrize("kind", [settings.model_fields["type"].default for settings in MAPS])
def test_every_reader(kind: str, tmp_path: Path):
    maps = MAKERS[kind](tmp_path).build()
    assert len(maps) == 2
    assert f"{len(maps.names)} classes" in maps.describe()
    for number in range(2):
        image, label = maps.read(number)
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (*label.shape, 3)
        assert np.array_equal(maps.label(number), label)
        assert all(value < len(maps.names) or value == IGNORE for value in np.unique(label))
        if kind in CLASSES:
            assert label.shape == SIZES[number]
            assert (len(maps.names), set(np.unique(label).tolist())) == CLASSES[kind]


def test_class_names_are_all_there():
    assert (len(ADE20K), len(PASCAL_VOC), len(CITYSCAPES)) == (150, 21, 19)
    assert len(set(ADE20K)) == 150
    assert list(CITYSCAPES) == sorted(CITYSCAPES)


def test_bad_labels_are_one_message_each(tmp_path: Path):
    problems: dict[str, Callable[[Path], None]] = {
        "its label .* is missing": lambda p: (p / "labels" / "0.png").unlink(),
        "its image .* is missing": lambda p: (p / "images" / "0.jpg").unlink(),
        "the label is 5x4 px and its image 32x24 px": lambda p: save(p / "labels" / "0.png", ids((4, 5), 0)),
        "ids that are no class: 7; there are 3 classes and the ids known are 0 to 2, 9": lambda p: save(
            p / "labels" / "0.png", ids(SIZES[0], 0, 7)
        ),
        "a picture of mode RGB": lambda p: save(p / "labels" / "0.png", picture(0, SIZES[0])),
        "label cannot be read": lambda p: (p / "labels" / "0.png").write_bytes(b"no picture"),
        "no classes.json": lambda p: (p / "classes.json").unlink(),
        "the class 0: found 1; expected a text": lambda p: (p / "classes.json").write_text('{"classes": [1]}'),
        "not valid JSON": lambda p: (p / "classes.json").write_text("{"),
        "also the id of the class 'car'": lambda p: (p / "classes.json").write_text(
            '{"classes": ["sky", "road", "car"], "ignore_index": 2}'
        ),
    }
    for number, (message, spoil) in enumerate(problems.items()):
        settings = make_images_labels(tmp_path / str(number))
        spoil(tmp_path / str(number))
        with pytest.raises(UserError, match=message) as caught:
            settings.build()
        assert len(caught.value.problems) == 1
    with pytest.raises(UserError, match="missing"):
        ImagesLabelsSettings(path=str(tmp_path / "nowhere")).build()
    make_voc(tmp_path / "voc")
    with pytest.raises(UserError, match=r"no such list; there is: val"):
        PascalVocSettings(path=str(tmp_path / "voc"), split="train").build()


def test_all_problems_at_once_up_to_a_bound(tmp_path: Path):
    settings = make_images_labels(tmp_path)
    for number in range(30):
        save(tmp_path / "images" / f"lonely{number}.jpg", picture(0, SIZES[0]))
    with pytest.raises(UserError) as caught:
        settings.build()
    assert len(caught.value.problems) == 21
    assert "and 10 more such problems" in caught.value.problems[-1]


@pytest.mark.slow
def test_mean_iou_equals_torchmetrics_and_a_plain_loop():
    draws = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 6, (4, 15, 17), generator=draws)
    truth[truth == 4] = 0  # a class that does not occur, but is predicted
    predicted = torch.where(torch.rand(truth.shape, generator=draws) < 0.6, truth, torch.randint(0, 6, truth.shape, generator=draws))
    truth[:, :3] = IGNORE
    confusion = Confusion(7)  # class 6 neither occurs nor is predicted
    for k in range(4):
        confusion.update(predicted[k], truth[k].to(torch.uint8))
    wanted = []
    for k in range(7):
        both = either = 0
        for p, t in zip(predicted.flatten().tolist(), truth.flatten().tolist(), strict=True):
            both += t != IGNORE and p == t == k
            either += t != IGNORE and (p == k or t == k)
        wanted += [both / either] if either else []
    assert confusion.scores()["mean_iou"] == pytest.approx(100 * np.mean(wanted), abs=1e-9)
    counted = truth != IGNORE
    assert confusion.scores()["accuracy"] == pytest.approx(100 * (predicted == truth)[counted].double().mean().item())
    classification = pytest.importorskip("torchmetrics.classification")
    metric = classification.MulticlassJaccardIndex(7, average="macro", ignore_index=IGNORE)
    assert confusion.scores()["mean_iou"] == pytest.approx(100 * metric(predicted, truth).item(), abs=1e-4)


class Blocks(LabelledMaps):
    """Images of coloured blocks; the class is the colour. One pixel in ten does not count, and its label lies."""

    names = ("red", "green", "blue")

    def __init__(self, length: int = 12, seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((16, 24), (16, 16))):
        self.length, self.seed, self.sizes = length, seed, sizes

    def __len__(self) -> int:
        return self.length

    def describe(self) -> str:
        return "blocks"

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        draws = np.random.default_rng((self.seed, number))
        height, width = self.sizes[number % len(self.sizes)]
        label = np.kron(draws.integers(0, 3, (height // 4, width // 4)), np.ones((4, 4))).astype(np.uint8)
        image = (np.eye(3)[label] * 200 + draws.uniform(0, 50, (height, width, 3))).astype(np.uint8)
        return image, np.where(draws.random(label.shape) < 0.1, IGNORE, label).astype(np.uint8)


def colours(images: torch.Tensor) -> Features:
    """A map in which the classes lie apart: each pixel."""
    return Features(None, images.permute(0, 2, 3, 1))


def noise(images: torch.Tensor) -> Features:
    """Nothing to do with the image, but the same for the same image."""
    seeds = [int(image.double().sum() * 1000) for image in images]
    return Features(
        None, torch.stack([torch.randn(*images.shape[-2:], 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    )


def blind(images: torch.Tensor) -> Features:
    return Features(images.mean((2, 3)), None)


SHORT = ShortSchedule(steps=60, batch_size=4, warmup=5, learning_rate=0.05)


def test_the_probe_finds_what_is_there_and_nothing_else():
    evaluation = LinearSegmentation(Blocks(), Blocks(seed=1), SHORT, WholeInference())
    result = evaluation.run({"student": colours, "teacher/x": noise, "teacher/blind": blind}, Bench(None, {}))
    assert set(result.rows) == {"student", "teacher/x"}
    assert result.rows["student"]["mean_iou"] > 99.9
    assert 10 < result.rows["teacher/x"]["mean_iou"] < 30
    assert 20 < result.rows["teacher/x"]["accuracy"] < 45
    assert 0 < result.floors["mean_iou"] < 30
    assert result.counts["training_images"] == result.counts["images"] == 12
    assert set(result.details["iou_by_class"]["student"]) == {"red", "green", "blue"}


@pytest.mark.slow
def test_the_same_again_on_workers_and_without_room_to_keep_features():
    def run(schedule: ShortSchedule | AugmentedSchedule, **options) -> dict:
        evaluation = LinearSegmentation(Blocks(6), Blocks(6, seed=1), schedule, WholeInference())
        result = evaluation.run({"a": colours, "b": noise}, Bench(None, {}, **options))
        return dict(result.rows) | {"fingerprint": {"": result.fingerprint}}

    short = SHORT.model_copy(update={"steps": 8})
    first = run(short)
    assert run(short) == first
    assert run(short, num_workers=2) == first
    assert run(short.model_copy(update={"cache_gib": 0.0})) == first
    augmented = AugmentedSchedule(steps=6, batch_size=2, warmup=2, augmentation=Augmentation(crop_size=16))
    crops = run(augmented)
    assert crops["a"] != first["a"]
    assert run(augmented, num_workers=2) == crops


@pytest.mark.slow
def test_augmented_training_learns():
    schedule = AugmentedSchedule(
        steps=80, batch_size=4, warmup=5, learning_rate=0.05, augmentation=Augmentation(crop_size=16, photometric=False)
    )
    result = LinearSegmentation(Blocks(), Blocks(seed=1), schedule, WholeInference()).run({"a": colours}, Bench(None, {}))
    assert result.rows["a"]["mean_iou"] > 99


@pytest.mark.slow
def test_sliding_windows_equal_the_whole_for_a_model_of_single_pixels():
    images = torch.rand(2, 3, 37, 53, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))

    def logits_of(view: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": F.conv2d(view, weight[:, :, None, None])}

    for window, stride in ((16, 11), (16, 16), (37, 20), (64, 30), (5, 3)):
        torch.testing.assert_close(slide(logits_of, images, window, stride)["a"], logits_of(images)["a"])
    evaluations = [
        LinearSegmentation(Blocks(), Blocks(seed=1), SHORT, inference)
        for inference in (WholeInference(), SlideInference(window=8, stride=5, resize=False), SlideInference(window=16, stride=11))
    ]
    whole, cut, resized = (evaluation.run({"a": colours}, Bench(None, {})).rows for evaluation in evaluations)
    assert cut["a"]["mean_iou"] == pytest.approx(whole["a"]["mean_iou"], abs=0.01)
    assert resized == whole  # the short side has 16 px already


@pytest.mark.parametrize(("length", "window", "stride"), [(10, 4, 3), (10, 4, 4), (8, 4, 4), (3, 4, 2), (4, 4, 1)])
def test_windows_cover_every_pixel(length: int, window: int, stride: int):
    found = starts(length, window, stride)
    covered = {pixel for start in found for pixel in range(start, start + window)}
    assert covered >= set(range(length))
    assert len(set(found)) == len(found)
    assert max(found) + window <= max(length, window)


def test_settings_of_linear_segmentation(tmp_path: Path):
    scenes = {"type": "scenes", "length": 2}
    default = LinearSegmentationSettings.model_validate({"train": scenes, "test": scenes})
    assert default.schedule == AugmentedSchedule()
    assert default.schedule.steps == 80_000
    bare = LinearSegmentationSettings.model_validate({"train": scenes, "test": "scenes", "schedule": "short", "inference": "slide"})
    assert bare.schedule == ShortSchedule()
    assert bare.inference == SlideInference()
    with pytest.raises(ValueError, match="left out"):
        SlideInference(window=10, stride=11)
    make_images_labels(tmp_path)
    other = {"type": "images_labels", "path": str(tmp_path)}
    with pytest.raises(UserError, match="the classes of train"):
        LinearSegmentationSettings.model_validate({"train": scenes, "test": other}).build()
    with pytest.raises(UserError, match="has a map"):
        LinearSegmentation(Blocks(2), Blocks(2), SHORT, WholeInference()).run({"a": blind}, Bench(None, {}))


def test_the_learning_rate_rises_and_falls():
    schedule = AugmentedSchedule()
    rates = [learning_rate(schedule, step) for step in (0, 750, 1500, 40_750, 79_999)]
    assert rates == pytest.approx([1e-9, 5e-4, 1e-3, 5e-4, 1e-3 / 78_500], rel=1e-3)


def test_the_loss_is_the_mean_over_pixels_that_count():
    draws = torch.Generator().manual_seed(0)
    logits = [torch.randn(3, 4, 4, generator=draws), torch.randn(3, 2, 5, generator=draws), torch.randn(3, 4, 4, generator=draws)]
    labels = [torch.randint(0, 3, size, generator=draws, dtype=torch.uint8) for size in ((4, 4), (2, 5), (4, 4))]
    labels[0][:2] = IGNORE
    flat = torch.cat([x.flatten(1).T for x in logits]), torch.cat([x.flatten().long() for x in labels])
    torch.testing.assert_close(pixel_loss(logits, labels), F.cross_entropy(*flat, ignore_index=IGNORE))
    assert pixel_loss(logits[:1], [torch.full((4, 4), IGNORE, dtype=torch.uint8)]).item() == 0


def test_views_keep_image_and_label_together():
    image = picture(0, (40, 60))
    label = (image[..., 0] > 128).astype(np.uint8)
    how = Augmentation(crop_size=40, scale=(1.0, 1.0), max_class_share=1.0, photometric=False)
    for number in range(5):
        view = augment(LabelledImage(image, label), how, 0, number)
        assert view.image.shape == (40, 40, 3)
        assert np.array_equal(view.label, view.image[..., 0] > 128)
    small = augment(LabelledImage(image, label), how.model_copy(update={"crop_size": 100, "scale": (0.5, 0.5)}), 0, 0)
    assert (small.label[50:] == IGNORE).all()
    assert not small.image[50:].any()
    views = [augment(LabelledImage(image, label), Augmentation(crop_size=32), 0, number).image for number in range(4)]
    assert len({view.tobytes() for view in views}) == 4
    changed = [recoloured(image, np.random.default_rng(seed)) for seed in range(8)]
    assert all(found.shape == image.shape and found.dtype == np.uint8 for found in changed)
    assert len({found.tobytes() for found in changed}) > 4


def test_each_key_of_the_augmentation_matters():
    image = picture(1, (40, 60))
    label = ids((40, 60), 0, 0, 0, 1)
    base = Augmentation(crop_size=24, scale=(0.8, 1.2), flip=0.5, photometric=False)
    changes = {"crop_size": 20, "scale": (2.0, 2.0), "max_long_side": 1.0, "max_class_share": 0.6, "flip": 0.0, "photometric": True}

    def drawn(how: Augmentation) -> bytes:
        return b"".join(augment(LabelledImage(image, label), how, 0, number).image.tobytes() for number in range(8))

    assert set(changes) == set(Augmentation.model_fields)
    for key, value in changes.items():
        assert drawn(base.model_copy(update={key: value})) != drawn(base), key


def test_priors_know_places():
    class Halves(Blocks):
        names = ("left", "right", "never")

        def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((8, 12, 3), np.uint8), ids((8, 12), 0, 0, 1)

    priors = Priors(Halves())
    found = priors.confusions()
    priors.update(found, torch.from_numpy(ids((16, 24), 0, 0, 1)))
    assert found["position prior"].scores()["mean_iou"] == 100
    assert found["majority class"].scores()["mean_iou"] == pytest.approx(100 * (2 / 3) / 2)


@pytest.mark.parametrize("kind", ["clip", "siglip", "naflex", "open_clip", "timm tower"])
def test_maps_of_text_space(kind: str, tmp_path: Path):
    """A map whose cells all are one token: what the tower's own way from its tokens to the embedding makes of them."""
    builders = {
        "clip": lambda: ClipSettings(model=str(tiny.tiny_clip(tmp_path))),
        "siglip": lambda: SiglipSettings(model=str(tiny.tiny_siglip(tmp_path))),
        "naflex": lambda: SiglipSettings(model=str(tiny.tiny_naflex(tmp_path))),
        "open_clip": lambda: OpenClipSettings(model=f"local-dir:{tiny.tiny_open_clip(tmp_path)}"),
        "timm tower": lambda: OpenClipSettings(
            model=f"local-dir:{tiny.tiny_open_clip(tmp_path, timm_model_name='test_vit', image_size=160)}"
        ),
    }
    teacher = builders[kind]().build()
    spatial = torch.randn(2, 3, 4, teacher.spatial_dim, generator=torch.Generator().manual_seed(0))
    found = teacher.project_spatial(spatial)
    assert found.shape == (2, 3, 4, teacher.summary_dim)
    assert found.isfinite().all()
    # Every cell for itself.
    torch.testing.assert_close(teacher.project_spatial(spatial[:1, 1:2, 2:3])[0, 0, 0], found[0, 1, 2], rtol=1e-4, atol=1e-5)
    model = teacher.model
    if kind == "clip":
        token = spatial[0, 1, 2]
        wanted = model.visual_projection(model.vision_model.post_layernorm(token))
        torch.testing.assert_close(found[0, 1, 2], wanted)
    if kind in ("siglip", "naflex"):  # pooling over equal tokens gives what pooling over one of them gives
        same = spatial[0, 1, 2].expand(1, 7, -1)
        head = model.vision_model.head
        torch.testing.assert_close(found[0, 1, 2], (head(same, None) if kind == "naflex" else head(same))[0], rtol=1e-4, atol=1e-5)
    if kind == "open_clip":
        torch.testing.assert_close(found[0, 1, 2], spatial[0, 1, 2] @ model.visual.proj)
    classes = F.normalize(torch.randn(5, teacher.summary_dim), dim=1)
    cosines = similarities(teacher, spatial, classes)
    assert cosines.shape == (2, 5, 3, 4)
    assert torch.allclose(cosines[0, 3, 1, 2], F.cosine_similarity(found[0, 1, 2], classes[3], dim=0), atol=1e-5)


def test_open_vocabulary_finds_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A CLIP whose texts are the embeddings of the very tokens: every pixel right; with the words in another order: every pixel wrong."""
    teacher = ClipSettings(model=str(tiny.tiny_clip(tmp_path))).build()
    tokens = torch.randn(3, teacher.spatial_dim, generator=torch.Generator().manual_seed(0))
    texts = teacher.project_spatial(tokens[None, None])[0, 0]
    order = list(Blocks.names)
    monkeypatch.setattr(teacher, "has_text", True)
    monkeypatch.setattr(teacher, "encode_text", lambda prompts: torch.stack([texts[order.index(prompt.split()[-1])] for prompt in prompts]))

    def seen(images: torch.Tensor) -> Features:
        return Features(None, tokens[images.argmax(1)])

    bench = Bench(None, {"clip": teacher})
    evaluation = OpenVocabularySegmentation(Blocks(3), ["a {}", "the {}"])
    result = evaluation.run({"teacher/clip": seen}, bench)
    assert result.rows["teacher/clip"]["mean_iou"] == 100
    assert result.counts["prompts"] == 2
    assert result.floors["mean_iou"] < 60
    order[:] = ["green", "blue", "red"]
    assert evaluation.run({"teacher/clip": seen}, bench).rows["teacher/clip"]["mean_iou"] == 0
    with pytest.raises(UserError, match="has a map"):
        evaluation.run({"teacher/clip": blind}, bench)
    with pytest.raises(UserError, match="text encoder"):
        evaluation.run({}, Bench(None, {}))


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="the photographs of camvid are not on this machine")
def test_photographs():
    """The floor by place on real labels (17.0 % on all of them), and a probe on colours that beats the most frequent class."""
    test = ImagesLabelsSettings(path=str(CAMVID / "test"), limit=4)
    train = ImagesLabelsSettings(path=str(CAMVID / "train"), limit=12)
    assert test.build().describe().startswith("4 labelled images of 11 classes")
    schedule = ShortSchedule(steps=12, batch_size=2, warmup=2, learning_rate=0.1)

    def thumbnails(images: torch.Tensor) -> Features:
        return Features(None, F.interpolate(images, (18, 24), mode="bilinear", antialias=True).permute(0, 2, 3, 1))

    evaluation = LinearSegmentationSettings(train=train, test=test, schedule=schedule).build()
    result = evaluation.run({"student": thumbnails}, Bench(None, {}))
    assert 10 < result.floors["mean_iou"] < 25
    assert result.rows["student"]["accuracy"] > 40
