"""BatchNorm in training: running statistics are state; evaluation leaves them alone; all processes hold the same."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from amradio import distill as run_distill
from amradio import load
from amradio.engine.batch_norm import share_statistics
from amradio.engine.distributed import Processes
from amradio.students.eradio_settings import EradioSettings
from processes import at_step, start_several, terminate_self
from runs import assert_same, losses, state

STUDENT = {"type": "eradio", "dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [2, 4], "neck_dim": 16, "cpb_hidden_dim": 16}
WORDS = ("stages.0.steps=6", "engine.ema=0.9", "engine.checkpoint_every=2", "engine.keep=9", "evaluate.every=null")


@pytest.fixture
def base(base: dict) -> dict:
    """The recipe of all tests with an E-RADIO at 64 px."""
    return base | {"student": STUDENT, "stages": [{"steps": 6, "partitions": [{"image_size": 64, "batch_size": 4}]}]}


def statistics(folder: Path, part: str = "task/network.student") -> dict[str, torch.Tensor]:
    return {key: value for key, value in state(folder).items() if key.startswith(part) and "running" in key}


@pytest.mark.slow
def test_an_evaluation_changes_nothing(recipe, tmp_path):
    without, often = (
        run_distill(recipe(*WORDS, f"out={tmp_path / name}", word)) for name, word in (("a", "seed=0"), ("b", "evaluate.every=1"))
    )
    assert losses(without) == losses(often)
    a, b = state(without), state(often)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(statistics(without)) > 20
    initial = {"running_mean": 0.0, "running_var": 1.0}
    unmoved = [key for key, value in statistics(without).items() if (value == initial[key.rsplit(".", 1)[1]]).all()]
    assert unmoved == []


@pytest.mark.slow
def test_averaged_statistics_are_handed_over_and_evaluated(recipe, tmp_path):
    folder = run_distill(recipe(*WORDS, "evaluate.every=6"))
    average, own = statistics(folder, "ema/student"), statistics(folder)
    model = load(folder).network.state_dict()
    for key, value in average.items():
        torch.testing.assert_close(model[key.removeprefix("ema/")], value, rtol=0, atol=0)
    assert not all(torch.equal(value, own[key.replace("ema/", "task/network.")]) for key, value in average.items())


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(recipe_file, amradio, tmp_path):
    stages = (
        "stages=[{steps: 3, partitions: [{image_size: 64, batch_size: 4}]}, {steps: 3, partitions: [{image_size: 64, batch_size: 4,"
        " teachers: [clip]}, {image_size: 96, batch_size: 2, teachers: [dino, sam]}]}]"
    )
    words = ("distill", recipe_file, *WORDS, stages, "engine.accumulate=1", "student.summaries=per_teacher")
    assert amradio(*words, f"out={tmp_path / 'whole'}").code == 0
    assert amradio(*words, f"out={tmp_path / 'cut'}", prelude=partial(at_step, 4, terminate_self)).code == 143
    assert max(losses(tmp_path / "cut")) == 4
    assert amradio(*words, f"out={tmp_path / 'cut'}").code == 0
    assert_same(tmp_path / "whole", tmp_path / "cut")


def save_own_statistics(folder: str) -> None:
    """Each process writes what it holds after the last step."""
    from amradio.training.optimization import Optimization

    update = Optimization.update

    def and_save(self: Optimization, *positional, **named) -> dict:
        metrics = update(self, *positional, **named)
        network = self.context.task.network
        torch.save({k: v for k, v in network.state_dict().items() if "running" in k}, f"{folder}/{self.context.processes.rank}.pt")
        return metrics

    Optimization.update = and_save


@pytest.mark.slow
def test_two_processes_hold_the_same_statistics_and_go_on_bit_for_bit(recipe_file, recipe, tmp_path):
    """And their losses are those of one process: batches are normalised as a whole."""

    def run(name: str, preludes: dict | None = None) -> None:
        words = ("distill", recipe_file, *WORDS, "engine.log_every=2", f"out={tmp_path / name}")
        ended = [each.wait() for each in start_several(2, *words, folder=tmp_path / "printed", preludes=preludes)]
        assert [each.code for each in ended] == [143 if preludes == stopped else 0] * 2, [each.errors for each in ended]

    stopped = dict.fromkeys((0, 1), partial(at_step, 2, terminate_self))
    save = partial(save_own_statistics, str(tmp_path))
    run("whole", {0: save, 1: save})
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) > 20
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=0)
        torch.testing.assert_close(state(tmp_path / "whole")[f"task/network.{key}"], value, rtol=0, atol=0)
    run("cut", stopped)
    assert max(losses(tmp_path / "cut")) < 6
    run("cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    one = run_distill(recipe(*WORDS, "engine.log_every=2", f"out={tmp_path / 'one'}"))
    assert losses(tmp_path / "whole") == pytest.approx(losses(one), abs=1e-4)


def test_on_several_gpus_batch_norm_is_that_of_all_processes():
    student = EradioSettings.model_validate(STUDENT).build(1)
    keys = student.state_dict().keys()
    norms = [name for name, module in student.named_modules() if isinstance(module, nn.BatchNorm2d)]
    processes = Processes(torch.device("cpu"))
    processes.share_batch_statistics(student)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in student.modules())
    processes.world_size, processes.device = 2, torch.device("cuda", 0)
    processes.share_batch_statistics(student)
    assert [name for name, module in student.named_modules() if isinstance(module, nn.SyncBatchNorm)] == norms
    assert student.state_dict().keys() == keys
    assert student.eval()(torch.rand(1, 3, 64, 64)).spatial.shape == (1, 4, 4, 16)


def _gradients(student: nn.Module, images: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    student.zero_grad()
    images.grad = None
    (student(images) * weights).sum().backward()
    return [images.grad.clone(), *(parameter.grad.clone() for parameter in student.parameters())]


@pytest.mark.parametrize(
    "norm", [lambda: nn.BatchNorm2d(5), lambda: BatchNormAct2d(5), lambda: nn.BatchNorm2d(5, momentum=None, affine=False)]
)
def test_batch_norm_of_our_own_equals_torchs(norm, monkeypatch):
    """On one process: output, gradients of input and parameters, running statistics; the sums over processes are the test of gloo's."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    theirs = norm()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 1.0)
    ours = copy.deepcopy(theirs)
    share_statistics(ours)
    assert isinstance(ours, type(theirs))
    for seed in range(3):
        images = (3 + 2 * torch.randn(4, 5, 3, 2, generator=torch.Generator().manual_seed(seed))).requires_grad_()
        weights = torch.randn(4, 5, 3, 2, generator=torch.Generator().manual_seed(9 + seed))
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
        for mine, wanted in zip(_gradients(ours, images, weights), _gradients(theirs, images, weights), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))
    torch.testing.assert_close(copy.deepcopy(ours)(images), theirs(images))
