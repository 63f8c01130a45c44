"""BatchNorm in training: running statistics are state; evaluation leaves them alone; all processes hold the same."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from amradio import distill as run_distill
from amradio import load
from amradio.engine.distributed import Processes
from amradio.students.eradio import EradioSettings
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
    assert {key.removeprefix("task/network.student.") for key in unmoved} == {"norm.running_mean", "norm.running_var"}


def test_averaged_statistics_are_handed_over_and_evaluated(recipe, tmp_path):
    folder = run_distill(recipe(*WORDS, "evaluate.every=6"))
    average, own = statistics(folder, "ema/student"), statistics(folder)
    model = load(folder).network.state_dict()
    for key, value in average.items():
        torch.testing.assert_close(model[key.removeprefix("ema/")], value, rtol=0, atol=0)
    assert not all(torch.equal(value, own[key.replace("ema/", "task/network.")]) for key, value in average.items())


def test_a_stopped_run_goes_on_bit_for_bit(recipe_file, amradio, tmp_path):
    stages = (
        "stages=[{steps: 3, partitions: [{image_size: 64, batch_size: 4}]}, {steps: 3, partitions: [{image_size: 64, batch_size: 4,"
        " teachers: [clip]}, {image_size: 96, batch_size: 2, teachers: [dino, sam]}]}]"
    )
    words = ("distill", recipe_file, *WORDS, stages, "engine.accumulate=1", "student.summaries=per_teacher")
    assert amradio(*words, f"out={tmp_path / 'whole'}").code == 0
    assert amradio(*words, f"out={tmp_path / 'cut'}", prelude=partial(at_step, 4, terminate_self)).code == 0
    assert max(losses(tmp_path / "cut")) == 4
    assert amradio(*words, f"out={tmp_path / 'cut'}").code == 0
    assert_same(tmp_path / "whole", tmp_path / "cut")


def save_own_statistics(folder: str) -> None:
    """Each process writes what it holds after the last step."""
    from amradio.engine.loop import Job

    init = Job.__init__

    def watched(self: Job, *positional, **named) -> None:
        init(self, *positional, **named)
        after_step = self.after_step

        def and_save() -> None:
            after_step()
            network = self.task.module.network
            torch.save({k: v for k, v in network.state_dict().items() if "running" in k}, f"{folder}/{self.processes.rank}.pt")

        self.after_step = and_save

    Job.__init__ = watched


def test_two_processes_hold_the_same_statistics_and_go_on_bit_for_bit(recipe_file, recipe, tmp_path):
    """And their losses are near those of one process: each normalises its own part of the batch, as docs/distributed.md says."""

    def run(name: str, preludes: dict | None = None) -> None:
        words = ("distill", recipe_file, *WORDS, "engine.log_every=2", f"out={tmp_path / name}")
        ended = [each.wait() for each in start_several(2, *words, folder=tmp_path / "printed", preludes=preludes)]
        assert [each.code for each in ended] == [0, 0], [each.errors for each in ended]

    save = partial(save_own_statistics, str(tmp_path))
    run("whole", {0: save, 1: save})
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) > 20
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=0)
        torch.testing.assert_close(state(tmp_path / "whole")[f"task/network.{key}"], value, rtol=0, atol=0)
    stop = partial(at_step, 2, terminate_self)
    run("cut", {0: stop, 1: stop})
    assert max(losses(tmp_path / "cut")) < 6
    run("cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    one = run_distill(recipe(*WORDS, "engine.log_every=2", f"out={tmp_path / 'one'}"))
    assert losses(tmp_path / "whole") == pytest.approx(losses(one), rel=0.1)


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
