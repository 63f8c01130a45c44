"""Windows as augmentation: which steps have them, and what they change."""

import pytest
import torch

from amradio.distillation.random_windows import RandomWindows, Windowing
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.errors import UserError
from amradio.recipe import Recipe
from amradio.training import Trainer, load_teachers

ONE = ("teachers.dino=null", "teachers.sam=null", "normalize.batches=1", "student.position_dropout=0.0", "student.viewport=false")
WINDOWS = "regularize.windows={sizes: [2, 3], num_global: 1}"


def build(recipe: Recipe) -> Trainer:
    return Trainer(recipe, load_teachers(recipe, {}), Processes(torch.device("cpu")), Log(None))


def test_windows_are_drawn_from_seed_and_step_among_those_that_divide_the_map():
    windows = RandomWindows([2, 3, 4, 6], 0.25, 4, 16)
    assert [windows.fitting(size) for size in ((96, 96), (64, 64), (80, 96), (64, 128), (32, 32))] == [[2, 3], [2], [], [2, 4], []]
    drawn = [windows.drawn((96, 96), 0, step) for step in range(800)]
    assert set(drawn) == {None, Windowing(2, 4), Windowing(3, 4)}
    assert drawn.count(None) / 800 == pytest.approx(0.75, abs=0.05)
    assert drawn.count(Windowing(2, 4)) / 800 == pytest.approx(0.125, abs=0.04)
    assert [step for step in range(40) if drawn[step]] == [3, 8, 11, 22, 34], (
        "a change would break the resume of runs that were begun before"
    )
    assert drawn[:40] != [windows.drawn((96, 96), 1, step) for step in range(40)]
    assert not any(windows.drawn((80, 96), 0, step) for step in range(40))


def test_a_step_with_windows_is_that_of_a_student_in_windowed_mode(recipe):
    run = build(recipe(*ONE, WINDOWS, "student.depth=2"))
    context, stage = run.context, run.context.stages[0]
    run.calibration.measure(stage)
    modes = {step: stage.partitions(step)[0].windowing for step in range(8)}
    assert set(modes.values()) == {None, Windowing(2, 1)}, "3 does not divide the map of 4x4"
    batch = next(context.feeds.training(stage.groups[0], 0))
    task, student = context.task, context.task.network.student
    partitions = {mode: stage.partitions(step)[0] for step, mode in modes.items()}
    losses = {mode: task(batch, partition).loss.item() for mode, partition in partitions.items()}
    assert student.window_size is None
    student.set_windows(2, 1)
    assert task(batch, partitions[None]).loss.item() == losses[Windowing(2, 1)]
    student.set_windows(None)
    assert task(batch, partitions[None]).loss.item() == losses[None] != losses[Windowing(2, 1)]
    assert stage.groups[0].partition.windowing is None, "held-out images"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([WINDOWS], r"regularize\.windows: num_global 1: every one of 1 blocks would be global"),
        ([WINDOWS, "student={type: timm, model: test_efficientnet}"], r"regularize\.windows: .* no windowed mode"),
        (["regularize.windows={sizes: [3, 4], num_global: 1}", "student.depth=2"], r"windows\.sizes: no window divides a map of 4 patches"),
        (["regularize.windows={sizes: []}"], r"regularize\.windows\.sizes: should have at least 1 item"),
    ],
)
def test_windows_that_cannot_be_are_refused(recipe, words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        build(recipe(*ONE, *words))
