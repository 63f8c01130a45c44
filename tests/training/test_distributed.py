"""Several processes and one: the same losses and weights; going on with another number of them; a NaN on one of them."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from amradio.engine.checkpoint import Checkpoints
from processes import Ended, at_step, poison, start_several, terminate_self
from runs import assert_same, losses, metrics, state

pytestmark = pytest.mark.slow

WORDS = (
    "student.position_dropout=0.3",
    "stages.0.steps=20",
    "engine.checkpoint_every=20",
    "engine.ema=0.9",
    "evaluate.every=10",
    "loss.spatial=mse",
)


def run(count: int, *words: object, folder: Path, preludes=None) -> list[Ended]:
    return [running.wait() for running in start_several(count, *words, folder=folder, preludes=preludes)]


def assert_near(first: Path, second: Path) -> None:
    """Losses within 1e-5; weights as near as AdamW lets rounding be (an element without gradient moves by its sign)."""
    a, b = metrics(first), metrics(second)
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            if key.endswith(("loss", "cosine")):
                assert one[key] == pytest.approx(other[key], abs=1e-5 * max(1, abs(one[key]))), (one["step"], key)
    weights = [{key: value for key, value in state(folder).items() if key.startswith(("task/", "ema/"))} for folder in (first, second)]
    moved = total = 0
    for key, value in weights[0].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-3)
            moved += int(((value - weights[1][key]).abs() > 1e-5 + 1e-4 * value.abs()).sum())
            total += value.numel()
    assert moved < total / 1000


def test_two_processes_and_one_give_the_same_losses_and_weights(recipe_file, amradio, tmp_path):
    two = run(2, "distill", recipe_file, *WORDS, "engine.prepare_ahead=true", f"out={tmp_path / 'two'}", folder=tmp_path / "printed")
    assert [ended.code for ended in two] == [0, 0], [ended.errors for ended in two]
    assert "2 x cpu" in two[0].output
    assert two[1].output == "", "only the first process prints"
    one = amradio("distill", recipe_file, *WORDS, f"out={tmp_path / 'one'}")
    assert one.code == 0, one.errors
    assert list(losses(tmp_path / "one")) == list(range(1, 21))
    assert_near(tmp_path / "one", tmp_path / "two")


def test_partitions_and_accumulation_on_two_processes(recipe_file, amradio, tmp_path):
    stages = (
        "stages=[{steps: 6, partitions: [{image_size: 32, batch_size: 4, teachers: [clip]},"
        " {image_size: 48, batch_size: 8, teachers: [dino, sam], weight: 0.5}]},"
        " {steps: 4, partitions: [{image_size: 32, batch_size: 4}]}]"
    )
    words = (recipe_file, stages, "engine.accumulate=2", "evaluate.every=null", "loss.spatial=mse")
    assert amradio("distill", *words, f"out={tmp_path / 'one'}").code == 0
    assert [ended.code for ended in run(2, "distill", *words, f"out={tmp_path / 'two'}", folder=tmp_path / "printed")] == [0, 0]
    assert_near(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("part", ["{type: lora, rank: 2}", "{type: last_blocks, count: 1}"])
def test_a_model_goes_on_with_frozen_parts_on_two_processes_as_on_one(recipe_file, amradio, tmp_path, part):
    """With a head and a summary that are new, and a teacher whose head is dropped."""
    finished, words = tmp_path / "finished", (recipe_file, "student.depth=2", "stages.0.steps=4", "evaluate.every=null", "loss.spatial=mse")
    assert amradio("distill", *words, "teachers.clip=null", f"out={finished}").code == 0
    going_on = (f"student={{type: model, path: {finished}, train: {part}}}", "teachers.dino=null", "stages.0.steps=6")
    two = run(2, "distill", *words[:1], *words[2:], *going_on, f"out={tmp_path / 'two'}", folder=tmp_path / "printed")
    assert [ended.code for ended in two] == [0, 0], [ended.errors for ended in two]
    one = amradio("distill", *words[:1], *words[2:], *going_on, f"out={tmp_path / 'one'}")
    assert one.code == 0, one.errors
    assert_near(tmp_path / "one", tmp_path / "two")
    old, new = state(finished), state(tmp_path / "two")
    frozen = [key for key in old if key.startswith("model/student.blocks.0.") and "lora" not in part]
    assert len(frozen) == (0 if "lora" in part else 12)
    assert all(torch.equal(old[key], new[key]) for key in frozen)
    key = "task/network.student.blocks.0.mlp.fc1.weight"
    assert torch.equal(old[key], new[key])


def test_a_run_stopped_on_two_goes_on_on_one_and_on_two(recipe_file, amradio, tmp_path):
    words = (*WORDS, "stages.0.steps=8", "evaluate.every=8", "engine.log_every=2", "engine.checkpoint_every=4", "engine.keep=9")
    both = partial(at_step, 4, terminate_self)
    folders = {name: tmp_path / name for name in ("whole", "one", "two")}
    run(2, "distill", recipe_file, *words, f"out={folders['whole']}", folder=tmp_path / "whole printed")
    for name in ("one", "two"):  # a cluster signals all of them
        ended = run(2, "distill", recipe_file, *words, f"out={folders[name]}", folder=tmp_path / "stopped", preludes={0: both, 1: both})
        assert [each.code for each in ended] == [143, 143], [each.errors for each in ended]
        assert Checkpoints(folders[name] / "checkpoints", 9).steps() == [4]
    run(2, "distill", recipe_file, *words, f"out={folders['two']}", folder=tmp_path / "again")
    assert_same(folders["whole"], folders["two"])
    ended = amradio("distill", recipe_file, *words, f"out={folders['one']}")
    assert "from step 4 of 8" in ended.output
    assert_near(folders["whole"], folders["one"])


def test_a_signal_to_one_process_stops_both(recipe_file, tmp_path):
    words = (recipe_file, *WORDS, "engine.log_every=4")
    ended = run(2, "distill", *words, folder=tmp_path / "printed", preludes={1: partial(at_step, 6, terminate_self)})
    assert [each.code for each in ended] == [143, 143], [each.errors for each in ended]
    assert Checkpoints(tmp_path / "run" / "checkpoints", 9).steps() == [8], "at the next log step, where processes agree"


def test_a_nan_on_one_process_ends_both_with_teacher_step_and_its_images(recipe_file, tmp_path):
    words = (recipe_file, *WORDS, "engine.log_every=5")
    ended = run(2, "distill", *words, folder=tmp_path / "printed", preludes={1: partial(poison, "clip", 2 + 1 + 3)})
    assert [each.code for each in ended] == [2, 2], [each.errors for each in ended]
    (message,) = ended[0].errors.splitlines()
    assert "step 3: not a finite number: clip/" in message
    assert len(message.split("images of that step: ")[1].split(";")[0].split(", ")) == 2, "those of the process that met it"
    assert Checkpoints(tmp_path / "run" / "checkpoints", 9).steps() == []


def test_a_batch_that_cannot_be_shared_out(recipe_file, tmp_path):
    ended = run(2, "distill", recipe_file, "stages.0.partitions.0.batch_size=5", folder=tmp_path / "printed")
    assert [each.code for each in ended] == [2, 2]
    (message,) = ended[0].errors.splitlines()
    assert "stages.0.partitions.0.batch_size: batch_size 5 cannot be shared out to 2 processes" in message
    assert not (tmp_path / "run").exists()


def test_what_stands_against_a_run_ends_both(recipe_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    ended = run(2, "distill", recipe_file, folder=tmp_path / "printed")
    assert [each.code for each in ended] == [2, 2]
    assert "not empty and not a run folder" in ended[0].errors
    assert ended[1].errors == ""


def test_torchrun_runs_the_same_command(recipe_file, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), "-m", "amradio"]
    words = ["distill", str(recipe_file), "stages.0.steps=2", "evaluate.every=null"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert list(losses(tmp_path / "run")) == [1, 2]


ERADIO = (
    "student={type: eradio, dim: 8, stem_dim: 8, depths: [1, 1, 1, 1], num_heads: [2, 4], neck_dim: 16, cpb_hidden_dim: 16}",
    "stages=[{steps: 20, partitions: [{image_size: 64, batch_size: 12}]}]",
    "engine.checkpoint_every=20",
    "engine.accumulate=2",
    "engine.ema=0.9",
    "evaluate.every=20",
    "loss.spatial=mse",
)


def test_batch_norm_is_of_the_whole_batch_on_one_two_and_three_processes(recipe_file, amradio, tmp_path):
    """Losses within 1e-4 over 20 steps, held-out agreement included, and running variances, with each batch cut into two pieces."""
    one = tmp_path / "one"
    assert amradio("distill", recipe_file, *ERADIO, f"out={one}").code == 0
    for count in (2, 3):
        several = tmp_path / str(count)
        ended = run(count, "distill", recipe_file, *ERADIO, f"out={several}", folder=tmp_path / "printed")
        assert [each.code for each in ended] == [0] * count, [each.errors for each in ended]
        worst = max(abs(losses(one)[step] - losses(several)[step]) for step in range(1, 21))
        assert worst < 1e-4, worst
        ours, theirs = (
            row for folder in (one, several) for row in metrics(folder) if "val/clip/summary/cosine" in row and row["step"] == 20
        )
        assert ours == pytest.approx(theirs, abs=1e-3)
        # Means follow biases that have no gradient (a BatchNorm comes behind them), which AdamW moves by the sign of the rounding.
        statistics = {key: value for key, value in state(one).items() if "running_var" in key}
        assert len(statistics) > 20
        for key, value in statistics.items():
            torch.testing.assert_close(state(several)[key], value, rtol=1e-2, atol=1e-3)
