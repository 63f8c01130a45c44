"""Packed training: each image of a batch at its own size, the loss and its gradient those of separate images."""

from collections import Counter

import pytest
import torch

from amradio.distillation.parts import parts_of
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.errors import UserError
from amradio.recipe import Recipe
from amradio.training import Trainer, load_teachers

PACKED = (
    "stages=[{steps: 2, partitions: [{image_size: 32, image_sizes: [32, {size: [32, 48], weight: 2, teachers: {dino: [28, 42]}}, 40],"
    " packed: true, shift: 1, batch_size: 8}]}]"
)


def build(recipe: Recipe) -> Trainer:
    return Trainer(recipe, load_teachers(recipe, {}), Processes(torch.device("cpu")), Log(None))


def test_the_loss_of_a_pack_is_the_mean_over_its_images_each_at_its_own_size(recipe):
    words = ("loss.token_exponent=0.5", "loss.summary={type: sum, terms: [{loss: mse}]}", "heads.summary={type: ladder, hidden_dim: 8}")
    run = build(recipe(PACKED, *words, "regularize.self_distillation={}", "engine.ema=0.9", "normalize.batches=1"))
    context, stage = run.context, run.context.stages[0]
    run.calibration.measure(stage)
    task, group = context.task, stage.groups[0]
    batch, (partition,) = next(context.feeds.training(group, 0)), stage.partitions(0)
    assert batch.sizes == tuple(group.drawn_sizes.numbers(group.seed, 0, range(8)))
    parts = parts_of(batch, partition)
    assert [part.partition.size for part in parts] == [(32, 32), (32, 48), (40, 40)]
    assert sorted(row for part in parts for row in part.rows) == list(range(8))
    assert stage.num_tokens(0, 8) == sum(len(part.rows) * part.partition.size[0] * part.partition.size[1] // 64 for part in parts)
    mean = sum(len(part.rows) * part.partition.map_weight for part in parts) / 8
    assert mean == pytest.approx(1)
    outputs, gradients = [], []
    for is_packed in (True, False):
        task.zero_grad()
        if is_packed:
            outputs.append(task(batch, partition, measure=True))
            loss = outputs[0].loss
        else:
            outputs += [task(part.batch, part.partition, measure=True) for part in parts]
            loss = sum(output.loss * len(part.rows) for output, part in zip(outputs[1:], parts, strict=True)) / 8
        loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in task.network.named_parameters()})
    torch.testing.assert_close(outputs[0].loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    for name in ("sam/spatial/loss", "clip/summary/loss", "dino/spatial/standardized_cosine", "self_distillation/loss"):
        expected = sum(output.metrics[name] * len(part.rows) for output, part in zip(outputs[1:], parts, strict=True)) / 8
        torch.testing.assert_close(outputs[0].metrics[name], expected, rtol=1e-4, atol=1e-6)


def test_every_valid_cell_counts_alike_where_maps_weigh_by_their_number(recipe, monkeypatch):
    """`loss.token_exponent=1` over sizes, shifts and canvases: the error summed over valid cells, over the cells of a mean map."""
    words = ("loss.token_exponent=1.0", "loss.grid=smaller", "teachers.dino=null", "normalize.batches=1")
    run = build(recipe(PACKED.replace("dino: [28, 42]", "sam: 64"), *words))
    context, stage = run.context, run.context.stages[0]
    task, pairs = context.task, []
    pairs_of = task.pairs
    monkeypatch.setattr(task, "pairs", lambda *given: (pairs.append(pair) or pair for pair in pairs_of(*given)))
    (partition,) = stage.partitions(0)
    metrics = task(next(context.feeds.training(stage.groups[0], 0)), partition).metrics
    maps = [pair for pair in pairs if pair.name == "sam/spatial"]
    assert len(maps) == 3
    pixels = sum(len(pair.target) * part.size[0] * part.size[1] for pair, part in zip(maps, partition.packed, strict=True)) / 8
    total = 0.0
    for pair, part in zip(maps, partition.packed, strict=True):
        assert not pair.valid.all()
        errors = (pair.prediction - pair.target).square().mean(-1)[pair.valid].sum()
        total += errors * part.size[0] * part.size[1] / pair.valid[0].numel() / pixels / 8
    torch.testing.assert_close(metrics["sam/spatial/loss"], total)


def test_sizes_of_images_are_drawn_by_weight_whatever_the_process(recipe):
    group = build(recipe(PACKED)).context.stages[0].groups[0]
    sizes = group.drawn_sizes
    numbers = [number for step in range(100) for number in sizes.numbers(0, step, range(8))]
    assert Counter(numbers)[1] / 800 == pytest.approx(0.5, abs=0.06)
    assert sizes.numbers(0, 3, range(4, 8)) == sizes.numbers(0, 3, range(8))[4:]
    assert numbers[:8] == [0, 1, 2, 2, 0, 1, 0, 1], "a change would break the resume of runs that were begun before"
    assert not group.partition.packed, "held-out images"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{PACKED[:-4]}, mosaic: [sam]}}]}}]"], r"0\.packed: a mosaic has images of one size, and here each image has its own"),
        (["stages.0.partitions.0.packed=true"], r"0\.packed: all images have one size; give several in image_sizes"),
        ([PACKED, "regularize.windows={}"], r"stages\.0\.partitions\.0\.packed: a pack has no windows"),
        (
            [PACKED, "student={type: timm, model: test_efficientnet}"],
            r"0\.packed: a student of this kind takes images of one size at a time",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(recipe, words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        build(recipe(*words))
