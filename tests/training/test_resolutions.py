"""Sizes at which models see images in training: several of them, drawn for each step."""

import pytest
import torch
from PIL import Image

from amradio.__main__ import main
from amradio.drawing.contact_sheet import CELL, MARGIN
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.errors import UserError
from amradio.recipe import Recipe
from amradio.training import Trainer, load_teachers

SIZES = "stages.0.partitions.0.image_sizes=[24, {size: 32, weight: 3, teachers: {dino: 42}}]"


def build(recipe: Recipe) -> Trainer:
    return Trainer(recipe, load_teachers(recipe, {}), Processes(torch.device("cpu")), Log(None))


def test_sizes_are_drawn_by_their_weights_from_seed_and_step(recipe):
    stage = build(recipe(SIZES)).context.stages[0]
    sizes = [stage.partitions(step)[0].size[0] for step in range(400)]
    assert sizes[:10] == [24, 32, 24, 24, 32, 24, 32, 24, 24, 32], "a change would break the resume of runs that were begun before"
    assert set(sizes) == {24, 32}
    assert sizes.count(32) / 400 == pytest.approx(0.75, abs=0.07)
    other = build(recipe(SIZES, "seed=1")).context.stages[0]
    assert sizes != [other.partitions(step)[0].size[0] for step in range(400)]
    assert stage.groups[0].partition.size == (32, 32), "held-out images"


def test_a_step_trains_at_its_size_on_one_crop(recipe, monkeypatch):
    """The crop is read once at the largest size of any model, 64 px of SAM; teachers follow the student or their own size of the list."""
    run = build(recipe(SIZES))
    context, seen = run.context, []
    views_of = context.task.views.of

    def watched(images, partition, draws):
        views = views_of(images, partition, draws)
        shapes = {name: view.images.shape[-1] for name, view in views.teachers.items()}
        seen.append({"crop": images.shape[-1], "student": views.student.images.shape[-1]} | shapes)
        return views

    monkeypatch.setattr(context.task.views, "of", watched)
    stage = context.stages[0]
    steps = {stage.partitions(step)[0].size[0]: step for step in range(12)}
    for step in steps.values():
        metrics = run.optimization.update(stage, step, [next(context.feeds.training(stage.groups[0], step))], 1e-3, True)
        assert all(torch.isfinite(value) for value in metrics.values())
    expected = {24: {"student": 24, "dino": 28}, 32: {"student": 32, "dino": 42}}
    assert seen == [{"crop": 64, "clip": 32, "sam": 64} | expected[size] for size in steps]


def test_a_shifted_step_compares_what_both_show_and_held_out_images_are_not_shifted(recipe, monkeypatch):
    run = build(recipe("stages.0.partitions.0.shift=1", "loss.token_exponent=1.0"))
    context, stage, seen = run.context, run.context.stages[0], []
    pairs_of = context.task.pairs
    monkeypatch.setattr(context.task, "pairs", lambda *given: (seen.append(pair) or pair for pair in pairs_of(*given)))
    metrics = run.optimization.update(stage, 0, [next(context.feeds.training(stage.groups[0], 0))], 1e-3, True)
    assert all(torch.isfinite(value) for value in metrics.values())
    for pair in seen:
        if pair.kind == "summary":
            assert pair.valid is None
            continue
        share = pair.valid.flatten(1).float().mean(1)
        assert share.min() >= 0.25
        weighted = (pair.prediction - pair.target).square().mean(-1).where(pair.valid, 0).flatten(1).mean(1)
        torch.testing.assert_close(metrics[f"{pair.name}/loss"], weighted.mean())
    assert len(seen) == 5
    assert stage.groups[0].partition.shift == 0


def test_images_that_are_not_square_keep_their_aspect_for_every_teacher(recipe):
    """Of patch 14 the nearest size, of one square size a canvas with a margin that is cut off; crops have the aspect of the step's size."""
    sizes = "image_sizes=[[32, 48], {size: 40, teachers: {dino: [28, 42]}}]"
    run = build(recipe("stages.0.partitions.0.image_size=[32, 48]", f"stages.0.partitions.0.{sizes}", "normalize.batches=1"))
    context, stage = run.context, run.context.stages[0]
    group = stage.groups[0]
    assert group.view_size == (64, 64), "the square sizes, 64 px of SAM"
    assert group.drawn_sizes.sizes == [(32, 48), (40, 40)]
    steps = {stage.partitions(step)[0].size: step for step in range(12)}
    assert [context.feeds.of(group).aspects(step, range(1)) for step in steps.values()] == [[size[1] / size[0]] for size in steps]
    batch = next(context.feeds.training(group, steps[32, 48]))
    prepared = context.task.prepare(batch, stage.partitions(steps[32, 48])[0])
    grids = {name: tuple(features.spatial.shape[1:3]) for name, features in prepared.targets.items()}
    assert grids == {"clip": (3, 4), "dino": (2, 3), "sam": (5, 8)}
    assert prepared.targets["clip"].summary.shape == (4, 24), "the summary of one image in its canvas is kept"
    metrics = run.optimization.update(stage, steps[32, 48], [batch], 1e-3, True)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert run.initial.config.image_size == 32
    assert str(context.task.views.teacher_frame("sam", group.partition)) == "64 (40x64 and a margin)"


def test_a_teacher_of_one_size_sees_a_mosaic(recipe):
    run = build(recipe("stages.0.partitions.0.mosaic=[sam]"))
    context, group = run.context, run.context.stages[0].groups[0]
    assert group.view_size == (32, 32), "no crop is enlarged for it"
    sizes = []
    context.task.teachers["sam"].register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape)))
    batch = next(context.feeds.training(group, 0))
    metrics = run.optimization.update(context.stages[0], 0, [batch], 1e-3, True)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert sizes == [(1, 3, 64, 64)], "one canvas of 4 images"
    prepared = context.task.prepare(batch, group.drawn(0))
    assert prepared.targets["sam"].spatial.shape == (4, 4, 4, 32)


def test_maps_weigh_by_the_cells_of_the_size_that_is_drawn(recipe):
    words = "stages.0.partitions=[{image_size: 32, image_sizes: [16, 32], batch_size: 4}, {image_size: 32, batch_size: 2}]"
    stage = build(recipe(words, "loss.token_exponent=1.0")).context.stages[0]
    for step in range(8):
        drawn, fixed = stage.partitions(step)
        cells = [partition.size[0] ** 2 for partition in (drawn, fixed)]
        mean = (4 * cells[0] + 2 * cells[1]) / 6
        assert [drawn.map_weight, fixed.map_weight] == pytest.approx([count / mean for count in cells])


@pytest.mark.slow
def test_the_picture_and_the_dry_run_show_every_size(recipe, recipe_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["distill", str(recipe_file), SIZES, "--dry-run"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "0.0 64 24 25% clip 32, dino 28, sam 64" in lines
    assert "0.0 64 32 75% clip 32, dino 42, sam 64" in lines
    run = build(recipe(SIZES))
    run.calibration.measure(run.context.stages[0])
    with Image.open(run.context.folder.path / "images" / "first_batch.png") as picture:
        assert picture.height == 8 * (CELL + MARGIN) + MARGIN


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("image_sizes=[24, 48]", r"partitions\.0\.image_size: held-out images are seen at 32 px, .* take one of 24, 48"),
        ("image_sizes=[32, 32]", r"partitions\.0\.image_sizes: a size stands twice"),
        ("image_sizes=[32, big]", r"image_sizes\.1\S*: should be 1 to 65,536 px, the side of a square, or \[height, width\], found 'big'"),
        ("image_size=[32]", r"partitions\.0\.image_size: should be 1 to 65,536 px, .*, found \[32\]"),
        ("image_sizes=[32, [32, 0]]", r"image_sizes\.1: should be 1 to 65,536 px, .*, found \[32, 0\]"),
        ("image_sizes=[32, [40, 32], [40, 32]]", r"image_sizes: a size stands twice in 32, 40x32, 40x32"),
        ("image_sizes=[]", r"image_sizes: should have at least 1 item"),
        ("image_sizes=[{size: 32, teachers: {dinov: 28}}]", r"image_sizes\.0\.teachers\.dinov: .* did you mean 'dino'"),
        ("image_sizes=[{size: 32, weight: 0}]", r"image_sizes\.0\.weight: should be greater than 0"),
    ],
)
def test_sizes_that_contradict_one_another_are_refused(recipe, words: str, message: str):
    with pytest.raises(UserError, match=message):
        recipe(f"stages.0.partitions.0.{words}")


def test_sizes_that_a_model_cannot_take_are_refused(recipe):
    with pytest.raises(UserError) as error:
        build(recipe("stages.0.partitions.0.image_sizes=[32, 30, {size: 40, teachers: {dino: 40, clip: 48}}, [32, 50]]"))
    assert error.value.problems == (
        "stages.0.partitions.0.image_sizes.1: the student cannot take 30 px; the nearest legal size is 32",
        "stages.0.partitions.0.image_sizes.2.teachers.dino: the teacher cannot take 40 px; the nearest legal size is 42",
        "stages.0.partitions.0.image_sizes.2.teachers.clip: the teacher cannot take 48 px; the nearest legal size is 32",
        "stages.0.partitions.0.image_sizes.3: the student cannot take 32x50 px; the nearest legal size is 32x48",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mosaic=[clips]"], r"0\.mosaic: the partition has no teacher 'clips'; did you mean 'clip'"),
        (["mosaic=[clip]"], r"0\.mosaic: the summary of a canvas is that of several images.*set teachers\.clip\.summary_weight=0"),
        (["mosaic=[sam, sam]"], r"0\.mosaic: 'sam' stands twice"),
        (["mosaic=[dino]"], r"0\.mosaic: 'dino' takes images of any size, and a mosaic is for teachers of one size"),
        (["mosaic=[sam]", "batch_size=6"], r"0\.batch_size: a canvas of 'sam' has 4 images of 32 px, and a process has 6 .* multiple of 4"),
    ],
)
def test_a_mosaic_that_cannot_be_made_is_refused(recipe, words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        build(recipe(*(f"stages.0.partitions.0.{word}" for word in words), *["teachers.dino.summary_weight=0"] * ("dino" in words[0])))


def test_shifts_by_more_than_a_quarter_are_refused(recipe):
    with pytest.raises(UserError, match=r"0\.shift: 2 patches are more than a quarter of 32 px; take at most 1"):
        build(recipe("stages.0.partitions.0.shift=2"))
