"""Which size every model receives in every evaluation: the papers' where nothing else is said, never squashed, and named in the results."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import amradio.__main__
import tiny
from amradio.commands.results import headline_columns, print_results
from amradio.config import to_yaml
from amradio.evaluation import EVALUATIONS, Bench, Result, measure
from amradio.evaluation.inputs import describe
from amradio.evaluation.predictors import predictors
from amradio.evaluation.suite import plain
from amradio.evaluation.tiling import Tiled, only_side
from amradio.features import Features
from amradio.formats.model_folder import write_folder
from amradio.model import Model
from amradio.network import NetworkConfig
from amradio.recipe import Recipe
from amradio.students.base import Student
from amradio.students.settings import CustomSettings
from amradio.students.vit_settings import VitSettings
from amradio.teachers import ClipSettings, Dinov2Settings, ModelSettings, OpenClipSettings, SamSettings, SiglipSettings
from amradio.teachers.base import Teacher
from amradio.training.initialization import network_config

KINDS = {settings.model_fields["type"].default: settings for settings in EVALUATIONS}
Seen = dict[str, set[tuple[int, int]]]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Teacher]:
    """CLIP at 32 px only, DINOv2 at any multiple of 14 px, SAM at 1024 px only, as published, with patches of 64 px to be quick."""
    path = tmp_path_factory.mktemp("teachers")
    return {
        "clip": ClipSettings(model=str(tiny.tiny_clip(path / "clip"))).build(),
        "dino": Dinov2Settings(model=str(tiny.tiny_dinov2(path / "dino"))).build(),
        "sam": SamSettings(model=str(tiny.tiny_sam(path / "sam", 1024, 64))).build(),
    }


PARTITIONS = "[{image_size: 1024, batch_size: 2, teachers: [sam]}, {image_size: 448, batch_size: 4, teachers: [clip, dino]}]"


def bench_of(teachers: dict[str, Teacher], *words: str, patch_size: int = 64, **options: int) -> Bench:
    """A random student that was trained as in the paper: CLIP and DINOv2 at one size, SAM at 1024 px."""
    torch.manual_seed(0)
    recipe = Recipe.load(
        f"teachers={{{', '.join(f'{name}: custom' for name in teachers)}}}",
        "data.train=scenes",
        f"student={{type: vit, dim: 32, depth: 1, num_heads: 2, patch_size: {patch_size}, max_image_size: 1024}}",
        f"stages=[{{partitions: {PARTITIONS}}}]",
        "out=unused",
        *words,
    )
    config = network_config(recipe, teachers)
    return Bench(Model(config, config.build()), teachers, **options)


def run(bench: Bench, kind: str, **keys: object) -> tuple[Seen, Result]:
    """What student and teachers received, (height, width) px, and the result."""
    assert bench.model is not None
    seen: Seen = {}
    models = {"student": bench.model, **{f"teacher/{name}": teacher for name, teacher in bench.teachers.items()}}
    hooks = [
        model.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, set()).add(tuple(given[0].shape[-2:])))
        for name, model in models.items()
    ]
    settings = KINDS[kind].model_validate({"type": kind, **keys})
    result = measure(settings, settings.build(), bench)
    for hook in hooks:
        hook.remove()
    return seen, result


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of 4:3, upright and lying, with labels, classes and masks in COCO's format."""
    folder = tmp_path_factory.mktemp("photographs")
    entries, annotations = [], []
    for number, (height, width) in enumerate(((60, 80), (80, 60), (60, 80))):
        pixels = tiny.photo(height, width, 1, number)[0].permute(1, 2, 0).numpy().copy()
        labels = np.zeros((height, width), np.uint8)
        labels[: height // 2, : width // 2] = 1
        for path, image in (
            (folder / "images" / f"{number}.png", pixels),
            (folder / "labels" / f"{number}.png", labels),
            (folder / "classes" / f"class{number % 2}" / f"{number}.png", pixels),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        entries.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        polygon = [5, 5, width // 2, 5, width // 2, height // 2, 5, height // 2]
        annotations.append({"id": number, "image_id": number, "segmentation": [polygon], "area": 500, "iscrowd": 0})
    (folder / "classes.json").write_text(json.dumps({"classes": ["a", "b"]}))
    (folder / "instances.json").write_text(json.dumps({"images": entries, "annotations": annotations, "categories": []}))
    return folder


def masks_of(photographs: Path) -> dict:
    return {"data": {"type": "coco_instances", "annotations": str(photographs / "instances.json"), "images": str(photographs / "images")}}


def maps_of(photographs: Path, **schedule: object) -> dict:
    data = {"type": "images_labels", "path": str(photographs)}
    return {"train": data, "test": data, "schedule": schedule}


PUBLISHED = {"type": "published", "steps": 2, "batch_size": 2}


# --- the size to prefer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("partitions", "preferred", "of_heads"),
    [
        (PARTITIONS, 448, {"clip": 448, "dino": 448, "sam": 1024}),
        ("[{image_size: 448, teachers: [clip]}, {image_size: 1024, teachers: [sam]}]", 448, {"clip": 448, "sam": 1024}),
        ("[{image_size: 256, teachers: [clip]}, {image_size: 512, teachers: [dino]}]", 512, {"clip": 256, "dino": 512}),
        ("[{image_size: 768}, {image_size: 256}]", 768, {"clip": 768, "dino": 768, "sam": 768}),
        (
            "[{image_size: 256, teachers: [clip, dino]}, {image_size: 512, teachers: [clip, sam]}]",
            256,
            {"clip": 256, "dino": 256, "sam": 512},
        ),
    ],
)
def test_the_size_to_prefer_does_not_depend_on_the_order_of_partitions(partitions, preferred, of_heads, teachers) -> None:
    named = {name: teacher for name, teacher in teachers.items() if name in of_heads}
    for word in (f"stages=[{{partitions: {partitions}}}]", f"stages=[{{partitions: {reverse(partitions)}}}]"):
        config = bench_of(named, word).model.config
        assert config.image_size == preferred
        assert {name: head.image_size for name, head in config.heads.items()} == of_heads


def reverse(partitions: str) -> str:
    first, second = partitions[1:-1].split("}, {")
    return f"[{{{second}, {first}}}]"


@pytest.mark.slow
def test_a_teacher_that_left_keeps_the_size_of_its_last_stage(teachers) -> None:
    stages = "[{partitions: [{image_size: 128, teachers: [clip, sam]}]}, {partitions: [{image_size: 256, teachers: [dino]}]}]"
    config = bench_of(teachers, f"stages={stages}").model.config
    assert config.image_size == 256
    assert {name: head.image_size for name, head in config.heads.items()} == {"clip": 128, "dino": 256, "sam": 128}


@pytest.mark.slow
def test_several_sizes_are_said_at_the_start_and_in_the_card(recipe, capsys) -> None:
    partitions = "{image_size: 64, batch_size: 2, teachers: [sam]}, {image_size: 32, batch_size: 2, teachers: [clip, dino]}"
    words = f"stages=[{{steps: 1, partitions: [{partitions}]}}]"
    assert amradio.__main__.main(["distill", *words_of(recipe(words)), "--dry-run"]) == 0
    told = "heads are trained clip and dino at 32 px, sam at 64 px; 32 px is what the model prefers where no size is asked for"
    assert told in " ".join(capsys.readouterr().out.split())
    folder = amradio.distill(recipe(words))
    assert told in capsys.readouterr().out
    card = (folder / "model" / "README.md").read_text()
    assert "The size to prefer is 32 px." in card
    assert "Heads were trained at several sizes: clip and dino at 32 px, sam at 64 px." in card
    model = amradio.load(folder)
    assert (model.image_size, model.config.heads["sam"].image_size) == (32, 64)
    exported = amradio.load(amradio.export(folder, "hf", folder / "hf").path)
    assert exported.config.heads["sam"].image_size == 64, "and by the official formats too"


def words_of(recipe: Recipe) -> list[str]:
    file = Path(recipe.out).with_suffix(".yaml")
    file.write_text(to_yaml(recipe))
    return [str(file)]


def test_masks_in_python_are_made_at_the_size_of_the_head(teachers) -> None:
    model = bench_of(teachers).model
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[-2:])))
    masks = model.masks("sam", teacher=teachers["sam"])
    masks.look(torch.zeros(3, 60, 80, dtype=torch.uint8))
    masks.look(torch.zeros(3, 60, 80, dtype=torch.uint8), image_size=448)
    assert seen == [(1024, 1024), (448, 448)]


# --- what evaluations show to models


@pytest.mark.slow
def test_masks_of_sam_are_made_at_1024_px(teachers, photographs) -> None:
    seen, result = run(bench_of(teachers), "promptable_segmentation", **masks_of(photographs))
    assert seen == {"student": {(1024, 1024)}, "teacher/sam": {(1024, 1024)}}
    assert {row: describe(sizes) for row, sizes in result.inputs.items()} == {"student/sam": "1024", "teacher/sam": "1024"}
    trained_small = bench_of(teachers, "stages=[{partitions: [{image_size: 448}]}]")
    assert run(trained_small, "promptable_segmentation", **masks_of(photographs))[0]["student"] == {(1024, 1024)}


@pytest.mark.slow
def test_what_the_user_says_goes_before_the_protocol(teachers, photographs) -> None:
    keys = {**masks_of(photographs), "models": ["student/sam"]}
    assert run(bench_of(teachers), "promptable_segmentation", image_size=448, **keys)[0]["student"] == {(448, 448)}
    assert run(bench_of(teachers, image_size=128), "promptable_segmentation", **keys)[0]["student"] == {(128, 128)}
    keys = {**maps_of(photographs, **PUBLISHED), "models": ["student"]}
    assert {min(size) for size in run(bench_of(teachers, image_size=128), "linear_segmentation", **keys)[0]["student"]} == {128}


@pytest.mark.slow
def test_scenes_are_not_blown_up_to_the_size_of_photographs(teachers, tmp_path) -> None:
    """A student of 64 px with a SAM of 1024 px sees scenes of 64 px as they are."""
    bench = bench_of(teachers, "stages=[{partitions: [{image_size: 64}]}]", patch_size=8)
    scenes = {"type": "scenes", "length": 3}
    assert run(bench, "promptable_segmentation", data=scenes, models=["student/sam"])[0]["student"] == {(64, 64)}
    keys = {
        "train": scenes,
        "test": scenes,
        "schedule": {"type": "published", "steps": 1, "batch_size": 1, "augmentation": {"crop_size": 64}},
    }
    assert run(bench, "linear_segmentation", **keys, models=["student"])[0]["student"] == {(64, 64)}


@pytest.mark.slow
def test_a_small_sam_of_its_own_size_is_not_blown_up_either(tmp_path, photographs) -> None:
    own = {"sam": SamSettings(model=str(tiny.tiny_sam(tmp_path, 64, 8))).build()}
    bench = bench_of(own, "stages=[{partitions: [{image_size: 32}]}]", patch_size=8)
    assert run(bench, "promptable_segmentation", **masks_of(photographs))[0] == {"student": {(64, 64)}, "teacher/sam": {(64, 64)}}


@pytest.mark.slow
@pytest.mark.parametrize(("patch_size", "side"), [(16, 512), (14, 518)])
def test_the_published_segmentation_runs_at_512_px_and_518_for_patches_of_14(patch_size, side, teachers, photographs) -> None:
    small = {name: teachers[name] for name in ("clip", "dino")}
    size = 32 * patch_size
    bench = bench_of(small, f"stages=[{{partitions: [{{image_size: {size // 2}}}]}}]", patch_size=patch_size)
    seen, result = run(bench, "linear_segmentation", **maps_of(photographs, **PUBLISHED))
    assert {min(shape) for shape in seen["student"]} == {side}, "the size of the crops, whatever it was trained at"
    assert (side, side) in seen["student"], "crops"
    assert max(max(shape) for shape in seen["student"]) == round(512 * 4 / 3 / patch_size) * patch_size, "whole images keep their aspect"
    assert {min(shape) for shape in seen["teacher/dino"]} == {518}
    assert seen["teacher/clip"] == {(32, 32)}, "a teacher of one square size sees squares"
    assert {row: describe(sizes) for row, sizes in result.inputs.items()}["student/clip"] == f"{side}+"
    short, _ = run(bench, "linear_segmentation", **maps_of(photographs, type="short", steps=1), models=["student"])
    assert {min(shape) for shape in short["student"]} == {size // 2}, "the short schedule is no published protocol"


@pytest.mark.slow
def test_recognition_is_at_the_preferred_size_and_heads_of_others_are_named(teachers, photographs) -> None:
    data = {"type": "class_folder", "path": str(photographs / "classes")}
    seen, result = run(bench_of(teachers), "knn", database=data, queries=data, k=[1])
    assert seen["student"] == {(448, 448)}
    assert seen["teacher/sam"] == {(1024, 1024)}
    assert [note for note in result.notes if "trained at" in note] == ["trained at 1024 px and measured at 448 px: student/sam"]
    chosen = run(bench_of(teachers), "knn", database=data, queries=data, k=[1], image_size=448)[1]
    assert not [note for note in chosen.notes if "trained" in note], "the user said so"
    small = bench_of(teachers, "stages=[{partitions: [{image_size: 448}]}]")
    notes = run(small, "promptable_segmentation", **masks_of(photographs))[1].notes
    assert "trained at 448 px and measured at 1024 px: student/sam" in notes


@pytest.mark.slow
def test_agreement_is_at_the_size_of_each_head_and_all_see_the_same_square(teachers, photographs) -> None:
    data = {"type": "folder", "path": str(photographs / "images")}
    seen, result = run(bench_of(teachers), "agreement", data=data)
    assert seen["student"] == {(448, 448), (1024, 1024)}
    assert seen["teacher/dino"] == {(448, 448)}
    assert {row: describe(sizes) for row, sizes in result.inputs.items()} == {
        "student/clip": "448",
        "student/dino": "448",
        "student/sam": "1024",
    }
    assert set(result.details["by_size"]["student/sam"]) == {"1024"}
    asked, result = run(bench_of(teachers), "agreement", data=data, image_sizes=[128, 448])
    assert asked["student"] == {(128, 128), (448, 448)}
    assert describe(result.inputs["student/sam"]) == "128"


def test_features_from_the_cache_keep_their_sizes(teachers, photographs) -> None:
    bench = bench_of(teachers)
    data = {"type": "class_folder", "path": str(photographs / "classes")}
    keys = {"database": data, "queries": data, "k": [1], "models": ["student", "teacher/clip"]}
    _, first = run(bench, "knn", **keys)
    seen, again = run(bench, "knn", **keys)
    assert not seen, "nothing is computed again"
    assert again.inputs == first.inputs


# --- teachers of one square size


class Colours(Teacher):
    """Summary and map are mean colours; 32 px only, cells of 8 px."""

    def __init__(self) -> None:
        super().__init__(mean=[0, 0, 0], std=[1, 1, 1], patch_size=8, dims=(3, 3), input_size=32, licence="-", source="colours")

    def encode(self, images: Tensor) -> Features:
        cells = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1)
        return Features(cells.mean((1, 2)), cells)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(64, 64, (4, 4)), (48, 64, (4, 5)), (64, 48, (5, 4)), (30, 90, (4, 12)), (200, 20, (40, 4)), (1, 400, (4, 64))],
)
def test_whole_images_are_seen_in_squares_that_cover_them(height: int, width: int, grid: tuple[int, int]) -> None:
    teacher = Colours()
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    call = predictors(None, {"x": teacher}, None, "whole")["teacher/x"]
    found = call(images)
    resized = call.joint.prepare(images)
    assert resized.shape[-2:] == (8 * grid[0], 8 * grid[1]), "short side at the teacher's size, aspect kept to half a cell"
    wanted = torch.nn.functional.avg_pool2d(resized, 8).permute(0, 2, 3, 1)
    torch.testing.assert_close(found.spatial, wanted, rtol=1e-5, atol=1e-6)
    assert set(call.joint.recorded.sizes) == {(32, 32)}


def test_squares_overlap_and_what_they_share_is_averaged() -> None:
    """A teacher whose map holds its own mean: cells of two squares get the mean of both."""

    def teacher(squares: Tensor) -> Features:
        mean = squares.mean((1, 2, 3))
        return Features(mean[:, None], mean[:, None, None, None].expand(-1, 4, 4, 1))

    images = torch.zeros(1, 3, 32, 48)
    images[..., 16:] = 1.0
    found = Tiled(32, 8).encode(images, teacher)
    assert found.spatial[0, 0, :, 0].tolist() == [0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
    assert found.summary.tolist() == [[0.75]]


class Fixed(Student):
    """Takes 48 x 48 px only, as some backbones of timm; the map is mean colours of cells of 16 px."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.summary_dim, self.spatial_dim, self.num_summaries = 16, 3, 3, 1
        self.scale = torch.nn.Parameter(torch.ones(()))

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        return 48, 48

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        cells = torch.nn.functional.avg_pool2d(images, 16).permute(0, 2, 3, 1) * self.scale
        return Features(cells.mean((1, 2)), cells)


def test_a_student_of_one_square_size_is_not_squashed_either() -> None:
    config = NetworkConfig(student=CustomSettings(), num_summaries=1, image_size=48)
    call = predictors(Model(config, config.build(Fixed())), {}, None, "whole")["student"]
    images = torch.rand(1, 3, 48, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(call(images).spatial, torch.nn.functional.avg_pool2d(images, 16).permute(0, 2, 3, 1))
    assert set(call.joint.recorded.sizes) == {(48, 48)}


@pytest.mark.parametrize(
    ("legal", "side"),
    [
        (lambda height, width: (224, 224), 224),
        (lambda height, width: (224, 256), None),
        (lambda height, width: (max(14, height // 14 * 14), max(14, width // 14 * 14)), None),
    ],
)
def test_the_only_side_is_found(legal, side) -> None:
    assert only_side(legal) == side


def test_cells_that_do_not_fill_the_square(tmp_path) -> None:
    """SigLIP at 384 px with patches of 14 px has 27 cells; what is left over at the edges is lost, as in the original."""
    teacher = SiglipSettings(model=str(tiny.tiny_siglip(tmp_path, 30, 8))).build()
    call = predictors(None, {"x": teacher}, None, "whole")["teacher/x"]
    assert call(torch.rand(1, 3, 30, 60)).spatial.shape[1:3] == (3, 7)
    assert set(call.joint.recorded.sizes) == {(30, 30)}


def test_recognition_shows_the_centre_to_clips_and_squares_are_not_squashed(tmp_path) -> None:
    """As the original pipelines: short side resized, centre cropped. A wide image, white in the middle and black at both ends."""
    images = torch.zeros(1, 3, 40, 120)
    images[..., 40:80] = 1.0
    clip = ClipSettings(model=str(tiny.tiny_clip(tmp_path / "clip"))).build()
    open_clip = OpenClipSettings(model=str(tiny.tiny_open_clip(tmp_path / "open_clip"))).build()
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "clip")
    for teacher in (clip, open_clip):
        call = predictors(None, {"x": teacher}, None, "crop")["teacher/x"]
        prepared = call.joint.prepare(images)
        assert prepared.shape[-2:] == (32, 32)
        assert prepared.mean() > 0.95
    original = processor(images=(images[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy(), return_tensors="pt")["pixel_values"]
    prepared = predictors(None, {"x": clip}, None, "crop")["teacher/x"].joint.prepare(images)
    torch.testing.assert_close((prepared - clip.mean) / clip.std, original, rtol=0, atol=0.05)


def test_own_teachers_and_models_of_ours_are_not_squashed_in_recognition(tmp_path) -> None:
    images = torch.zeros(1, 3, 40, 120)
    images[..., 40:80] = 1.0
    own = predictors(None, {"x": Colours()}, None, "crop")["teacher/x"].joint.prepare(images)
    assert own.shape[-2:] == (32, 32)
    assert own.mean() > 0.95
    config = NetworkConfig(student=VitSettings(dim=32, depth=1, num_heads=2, patch_size=16), num_summaries=1, image_size=48)
    write_folder(tmp_path / "model", config, config.build(), {"step": 1, "num_steps": 1, "data": "none", "agreement": {}})
    for words, side in (({}, 48), ({"input_size": 32}, 32)):
        prepared = ModelSettings(path=str(tmp_path / "model"), **words).build().prepare(images)
        assert prepared.shape[-2:] == (side, side)
        assert prepared.mean() > 0.95


# --- what is shown


def sizes(result: Result) -> dict[str, str]:
    return {row: each["px"] for row, each in plain(result)["inputs"].items()}


@pytest.mark.slow
def test_every_evaluation_names_the_input_of_every_row(teachers, photographs) -> None:
    classes, images = (
        {"type": kind, "path": str(photographs / path)} for kind, path in (("class_folder", "classes"), ("folder", "images"))
    )
    for kind, keys in (
        ("knn", {"database": classes, "queries": classes, "k": [1]}),
        ("linear_classification", {"train": classes, "test": classes, "epochs": 1}),
        ("linear_segmentation", maps_of(photographs, type="short", steps=1)),
        ("promptable_segmentation", masks_of(photographs)),
        ("agreement", {"data": images}),
        ("statistics", {"data": images}),
        ("throughput", {"batch_sizes": [1], "seconds": 0.0001, "image_sizes": [128]}),
    ):
        _, result = run(bench_of(teachers), kind, **keys)
        assert result.rows.keys() == result.inputs.keys(), kind
        assert all(px[0].isdigit() for px in sizes(result).values()), kind


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, "-"),
        ({(224, 224): 3}, "224"),
        ({(512, 683): 1, (512, 512): 9, (683, 512): 2}, "512+"),
        ({(448, 448): 1, (512, 600): 1}, "448-512"),
    ],
)
def test_input_sizes_in_words(counts, words) -> None:
    assert describe(counts) == words


def printed(capsys: pytest.CaptureFixture[str], **results: Result) -> list[str]:
    print_results(results)
    return capsys.readouterr().out.splitlines()


def heading(lines: Sequence[str]) -> list[str]:
    return next(line for line in lines if "model" in line).split()


def test_one_column_of_px_where_all_agree_else_one_for_each_evaluation(teachers, photographs, capsys) -> None:
    bench = bench_of({"clip": teachers["clip"]}, "stages=[{partitions: [{image_size: 128}]}]")
    data = {"type": "class_folder", "path": str(photographs / "classes")}
    knn = run(bench, "knn", database=data, queries=data, k=[1])[1]
    linear = run(bench, "linear_classification", train=data, test=data, epochs=1)[1]
    lines = printed(capsys, a=knn, b=linear)
    assert heading(lines).count("px") == 1
    assert next(line for line in lines if line.lstrip(" |").startswith("student/clip")).split()[1] == "128"
    other = run(bench, "linear_classification", train=data, test=data, epochs=1, image_size=64)[1]
    assert heading(printed(capsys, a=knn, b=other)).count("px") == 2
    assert headline_columns({"a": knn})
