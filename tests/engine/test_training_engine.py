"""The engine: schedule, decay, accumulation, averages; stopping, killing, resuming, full disks and numbers that are none."""

import copy
import errno
import json
import math
import os
import random
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from amradio import UserError
from amradio import distill as run_distill
from amradio.engine import checkpoint as checkpoint_module
from amradio.engine.checkpoint import Checkpoints
from amradio.engine.distributed import Processes
from amradio.engine.ema import Ema
from amradio.engine.log import Log
from amradio.engine.monitor import TooSlowError
from amradio.engine.optimizer import build_optimizer, learning_rate
from amradio.engine.prefetch import ahead
from amradio.engine.settings import OptimizerSettings
from amradio.features import Features
from amradio.run_folder import RunFolder
from amradio.teachers import Teacher
from amradio.training import Trainer, load_teachers
from amradio.training.startup_log import introduce
from amradio.yaml12 import parse_yaml
from processes import at_step, fill_disk, start, terminate_self
from runs import assert_same, files, losses, metrics, state

CPE = ("student.viewport=true", "student.position_dropout=0.3", "engine.ema=0.9")
"""The settings with the most random numbers and the most state."""


def training(recipe) -> Trainer:
    return Trainer(recipe, load_teachers(recipe, {}), Processes(torch.device("cpu")), Log(None))


# the optimizer


def test_schedule_is_linear_warm_up_then_cosine():
    settings = OptimizerSettings(learning_rate=2.0, final_learning_rate=0.5, warmup_steps=10)
    rates = [learning_rate(settings, step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10] == 2.0
    assert rates[10 + 50] == pytest.approx(1.25)
    assert rates[10 + 25] == pytest.approx(0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2)
    assert rates[-1] == pytest.approx(0.5 + 0.75 * (1 + math.cos(math.pi * 99 / 100)))
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_milestones_take_the_place_of_the_cosine():
    settings = OptimizerSettings(learning_rate=2.0, warmup_steps=10, milestones=[0.5, 0.9])
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert rates[10:50] == [2.0] * 40
    assert rates[50:90] == pytest.approx([0.2] * 40)
    assert rates[90:] == pytest.approx([0.02] * 10)


def test_warm_up_takes_at_most_a_tenth():
    settings = OptimizerSettings(learning_rate=1.0, warmup_steps=1000)
    assert learning_rate(settings, 1, 20) == 1.0
    assert learning_rate(settings, 0, 20) == 0.5
    assert learning_rate(settings, 0, 5) == 1.0


@pytest.mark.slow
def test_the_run_follows_the_schedule_and_each_stage_begins_anew(recipe, tmp_path):
    r = recipe(
        "stages=[{steps: 4, partitions: [{image_size: 32, batch_size: 2}]}, {steps: 3, partitions: [{image_size: 32, batch_size: 2}]}]",
        "evaluate.every=null",
    )
    folder = run_distill(r)
    rates = [row["learning_rate"] for row in metrics(folder)]
    wanted = [1e-3 * 0.5 * (1 + math.cos(math.pi * k / n)) for n in (4, 3) for k in range(n)]
    assert rates == pytest.approx(wanted)


@pytest.mark.slow
def test_only_matrices_decay(recipe):
    run = training(recipe("optimizer.weight_decay=0.3", "student.layer_scale=1e-5"))
    decay = {id(p): group["weight_decay"] for group in run.context.optimizer.param_groups for p in group["params"]}
    named = dict(run.context.task.named_parameters())
    assert {id(p) for p in named.values()} == decay.keys()
    linears = [module for module in run.context.task.modules() if isinstance(module, nn.Linear)]
    weights = {id(module.weight) for module in linears}
    for name, parameter in named.items():
        assert decay[id(parameter)] == (0.3 if id(parameter) in weights else 0.0), name
    spared = [name for name in named if decay[id(named[name])] == 0]
    for part in ("pos_embed", "cls_token", "gamma", "norm1.weight", "bias"):
        assert any(part in name for name in spared), part
    assert run.context.task.network.student.patch_generator.pos_embed.ndim > 1


def test_decay_reaches_the_weights():
    module = nn.Linear(3, 3)
    optimizer = build_optimizer(module, OptimizerSettings(learning_rate=0.1, weight_decay=0.5), ())
    before = copy.deepcopy(module.state_dict())
    module.zero_grad()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.weight, before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(module.bias, before["bias"], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulation_changes_memory_and_nothing_else(recipe, tmp_path, pieces):
    words = ("evaluate.every=null", "optimizer.clip=0.05", "loss.spatial=mse")
    whole = run_distill(recipe(*words))
    cut = run_distill(recipe(*words, f"engine.accumulate={pieces}", f"out={tmp_path / 'cut'}"))
    assert losses(cut) == pytest.approx(losses(whole), rel=2e-5)
    a, b = state(whole), state(cut)
    for key in a:
        if key.startswith("task/"):
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_clipping_bounds_the_gradient(recipe, tmp_path):
    """AdamW hides the scale, so this looks at the second moment after one step: (1 - beta2) g^2."""
    word = "stages=[{steps: 1, partitions: [{image_size: 32, batch_size: 4}]}]"
    found = {}
    for clip in ("null", "0.1"):
        folder = run_distill(recipe(word, "evaluate.every=null", f"optimizer.clip={clip}", f"out={tmp_path / clip}"))
        squares = [value.double().sum() for key, value in state(folder).items() if key.endswith("exp_avg_sq")]
        found[clip] = math.sqrt(sum(squares).item() / 1e-3)
        assert metrics(folder)[0]["gradient_norm"] == pytest.approx(found["null"], rel=1e-4)
    assert found["0.1"] == pytest.approx(0.1, rel=1e-3)
    assert found["null"] > 0.5


def test_average_of_weights_follows_its_formula():
    module = nn.BatchNorm1d(3)
    ema = Ema(module, 0.75)
    wanted = module.weight.detach().double().clone()
    for step in range(5):
        with torch.no_grad():
            module.weight.copy_(torch.randn(3, generator=torch.Generator().manual_seed(step)))
            module.num_batches_tracked.add_(1)
        ema.update(module)
        wanted = 0.75 * wanted + 0.25 * module.weight.detach().double()
    torch.testing.assert_close(ema.average.weight.double(), wanted, rtol=1e-6, atol=1e-6)
    assert ema.average.num_batches_tracked == 5
    assert not ema.average.weight.requires_grad


@pytest.mark.slow
def test_the_averaged_weights_are_handed_over(recipe):
    folder = run_distill(recipe("engine.ema=0.5"))
    average = load_file(folder / "checkpoints" / "last" / "ema.safetensors")
    own = load_file(folder / "checkpoints" / "last" / "task.safetensors")
    model = load_file(folder / "model" / "model.safetensors")
    key = "student.blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(model[key], average[key], rtol=0, atol=0)
    assert not torch.equal(average[key], own[f"network.{key}"])


# stopping and going on


@pytest.fixture
def forty(recipe_file, amradio, tmp_path) -> tuple[list[str], Path]:
    """Words of a run of 40 steps with all that is random, and its folder; every 17 steps a checkpoint, all kept."""
    words = [recipe_file, *CPE, "stages.0.steps=40", "evaluate.every=20", "engine.checkpoint_every=17", "engine.keep=9"]
    ended = amradio("distill", *words, f"out={tmp_path / 'whole'}")
    assert ended.code == 0, ended.errors
    return words, tmp_path / "whole"


@pytest.mark.slow
def test_40_steps_are_17_and_23_bit_for_bit(forty, amradio, tmp_path):
    words, whole = forty
    assert list(losses(whole)) == list(range(1, 41))

    copied = tmp_path / "copied"
    shutil.copytree(whole, copied, symlinks=True)
    for step in (34, 40):
        shutil.rmtree(copied / "checkpoints" / f"step_{step:09d}")
    ended = amradio("distill", *words, f"out={copied}")
    assert "from step 17 of 40" in ended.output
    assert_same(whole, copied)

    stopped = tmp_path / "stopped"
    ended = amradio("distill", *words, f"out={stopped}", prelude=partial(at_step, 17, terminate_self))
    assert ended.code == 143, ended.errors
    assert "Stopped (SIGTERM) at step 17 of 40" in ended.output
    assert "step 17 of 40" in ended.output
    assert Checkpoints(stopped / "checkpoints", 9).steps() == [17]
    assert amradio("distill", *words, f"out={stopped}", "engine.prepare_ahead=true").code == 0
    assert_same(whole, stopped)


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_bit(forty, amradio, tmp_path):
    words, whole = forty
    words = [*words, "engine.checkpoint_every=3"]
    killed, draws = tmp_path / "killed", random.Random()
    moments = []
    for number in range(4):
        running = start("distill", *words, f"out={killed}", folder=tmp_path / f"printed{number}")
        if number:
            running.wait_for("student vit")
        moments.append(draws.uniform(0, 0.8))
        time.sleep(moments[-1])
        running.process.kill()
        assert running.wait().code in (-signal.SIGKILL, 0)
    ended = amradio("distill", *words, f"out={killed}")
    assert ended.code == 0, (moments, ended.errors)
    a, b = state(whole), state(killed)
    assert not [key for key in a if not torch.equal(a[key], b[key])], moments
    assert metrics(whole) == metrics(killed), moments


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_from_outside_saves_and_ends_with_its_code(recipe_file, amradio, tmp_path, number):
    words = [recipe_file, "stages.0.steps=100000", "engine.checkpoint_every=100000", "evaluate.every=null"]
    running = start("distill", *words, folder=tmp_path / "printed")
    running.wait_for("step      3/100000")
    running.send(number)
    ended = running.wait()
    assert ended.code == 128 + number, ended.errors
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert ended.errors == f"{name}: stopping after this step; Ctrl-C again to stop now\n"
    (step,) = Checkpoints(tmp_path / "run" / "checkpoints", 1).steps()
    assert step >= 3
    assert f"Stopped ({name}) at step {step} of 100000. Run the same command to resume." in ended.output
    again = amradio("distill", *words, prelude=partial(at_step, step + 2, terminate_self))
    assert f"from step {step} of 100000" in again.output
    assert list(losses(tmp_path / "run")) == list(range(1, step + 3))


TWO_STAGES = (
    "stages=[{steps: 5, partitions: [{image_size: 32, batch_size: 4, teachers: [clip, dino]},"
    " {image_size: 48, batch_size: 2, teachers: [sam], weight: 0.5}]},"
    " {steps: 4, partitions: [{image_size: 40, batch_size: 2}, {image_size: 32, batch_size: 4, teachers: [clip]}]}]"
)


@pytest.mark.slow
def test_two_stages_of_two_partitions_stopped_at_the_boundary(recipe_file, amradio, tmp_path):
    words = [recipe_file, *CPE, TWO_STAGES, "engine.checkpoint_every=5", "engine.keep=9", "evaluate.every=3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    ended = amradio("distill", *words, f"out={whole}")
    assert ended.code == 0, ended.errors
    assert "stage 1 of 2" in ended.output
    assert "stage 2 of 2" in ended.output
    amradio("distill", *words, f"out={stopped}", prelude=partial(at_step, 5, terminate_self))
    assert Checkpoints(stopped / "checkpoints", 9).steps() == [5]
    assert amradio("distill", *words, f"out={stopped}").code == 0
    assert_same(whole, stopped)
    for stage in (0, 1):
        assert load_file(whole / f"calibration/stage_{stage}/clip_summary.safetensors")["std"].shape == (24,)
    assert {path.name for path in (whole / "images").iterdir()} == {
        "first_batch.png",
        *(f"first_batch_{n}.png" for n in ("0.1", "1.0", "1.1")),
        *(f"held_out_{teacher}.png" for teacher in ("clip", "dino", "sam")),
    }


@pytest.mark.slow
def test_the_loss_of_a_step_is_the_weighted_sum_of_its_partitions(recipe, tmp_path):
    folder = run_distill(recipe(TWO_STAGES, "evaluate.every=null"))
    first = metrics(folder)[0]
    losses = {name: first[f"{name}/loss"] for name in ("clip/summary", "clip/spatial", "dino/summary", "dino/spatial", "sam/spatial")}
    wanted = sum(value for name, value in losses.items() if not name.startswith("sam")) + 0.5 * losses["sam/spatial"]
    assert first["loss"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_the_last_evaluation_is_in_the_log_of_a_resumed_run_once(recipe, tmp_path):
    folder = run_distill(recipe())
    before = metrics(folder)
    assert run_distill(recipe()) == folder
    assert metrics(folder) == before
    assert [row["step"] for row in before if "val/clip/summary/cosine" in row] == [0, 6, 12]


@pytest.mark.slow
def test_an_evaluation_that_a_signal_put_off_is_made_up_for(recipe_file, amradio, tmp_path):
    """At the end of a stage, where the next one has other teachers and statistics."""
    one = "{steps: 4, partitions: [{image_size: 32, batch_size: 4, teachers: [clip]}]}"
    two = "{steps: 2, partitions: [{image_size: 40, batch_size: 4}]}"
    words = [recipe_file, f"stages=[{one}, {two}]", "evaluate.every=4", "engine.checkpoint_every=4"]
    assert amradio("distill", *words, f"out={tmp_path / 'whole'}").code == 0
    for step in (4, 6):
        stopped = tmp_path / f"stopped{step}"
        assert amradio("distill", *words, f"out={stopped}", prelude=partial(at_step, step, terminate_self)).code == 143
        assert amradio("distill", *words, f"out={stopped}").code == 0
        assert_same(tmp_path / "whole", stopped)
    rows = {row["step"]: row for row in metrics(tmp_path / "whole") if "val/clip/summary/cosine" in row}
    assert list(rows) == [0, 4, 6]
    assert "val/sam/spatial/cosine" not in rows[4]
    assert "val/sam/spatial/cosine" in rows[6]


@pytest.mark.slow
def test_the_newest_k_checkpoints_stay(recipe):
    folder = run_distill(recipe("engine.checkpoint_every=3", "engine.keep=2"))
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step_000000009", "step_000000012", "last"}
    assert (folder / "checkpoints" / "last").resolve().name == "step_000000012"


# a step ahead


def test_work_is_done_while_the_caller_has_the_item_before():
    begun = [threading.Event() for _ in range(4)]

    def work(number: int) -> tuple[int, str]:
        begun[number].set()
        return number * number, threading.current_thread().name

    found = []
    for number, future in ahead(range(4), work):
        if number < 3:
            assert begun[number + 1].wait(10), "the next item's work waits for the caller"
        found.append(future.result(10))
    assert [square for square, _ in found] == [0, 1, 4, 9]
    assert all(name.startswith("ahead") for _, name in found)


def test_work_ahead_halves_the_threads_until_it_is_closed(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    items = ahead(iter(range(100)), lambda number: number)
    assert next(items)[1].result() == 0
    assert chosen == [2, 2], "the caller's thread and the worker's"
    items.close()
    assert chosen[-1] == 4
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


@pytest.mark.slow
@pytest.mark.parametrize("word", ["engine.prepare_ahead=true", "engine.prepare_ahead=false"])
def test_what_fails_in_a_teacher_is_the_same_message_ahead_and_not(recipe, word):
    class Refusing(Failing):
        def encode(self, images):
            if self.calls == 2 + 3:
                raise UserError("teacher 'a test': no more")
            return super().encode(images)

    words = ("teachers.mine={type: custom}", "evaluate.every=null")
    with pytest.raises(UserError, match=r"^teacher 'a test': no more$"):
        run_distill(recipe(*words, word), teachers={"mine": Refusing(fails_at=-1)})


# what is refused


@pytest.mark.slow
def test_a_changed_recipe_is_refused_with_its_keys_and_free_keys_are_not(recipe):
    folder = run_distill(recipe())
    before = files(folder)
    with pytest.raises(UserError) as caught:
        run_distill(recipe("seed=3", "student.depth=2", "loss.spatial=cosine", "engine.keep=5"))
    (problem,) = caught.value.problems
    for words in ("seed: was 0, is now 3", "student.depth: was 1, is now 2", "loss.spatial.type: was 'mse', is now 'cosine'"):
        assert words in problem
    assert "engine.keep" not in problem
    assert files(folder) == before
    run_distill(recipe("engine.keep=5", "engine.log_every=2", "engine.checkpoint_every=6", "data.num_workers=1", "engine.threads=1"))


@pytest.mark.slow
def test_a_run_from_before_a_key_existed_goes_on_and_one_with_a_key_that_is_gone_is_refused(recipe):
    folder = run_distill(recipe())
    config = folder / "config.yaml"
    written = parse_yaml(config.read_text(), "config.yaml")
    del written["engine"]["prepare_ahead"], written["optimizer"]["epsilon"], written["balance"]
    config.write_text(json.dumps(written))
    assert run_distill(recipe()) == folder
    assert parse_yaml(config.read_text(), "config.yaml")["optimizer"]["epsilon"] == 1e-8
    config.write_text(json.dumps(written | {"mosaic": 4}))
    with pytest.raises(UserError, match=r"mosaic: was 4, is now not set"):
        run_distill(recipe())


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_untouched(recipe, tmp_path):
    used = tmp_path / "run"
    used.mkdir()
    (used / "thesis.tex").write_text("years of work")
    before = files(tmp_path)
    with pytest.raises(UserError, match="is not empty and not a run folder"):
        run_distill(recipe())
    with pytest.raises(UserError, match="is a file"):
        run_distill(recipe(f"out={used / 'thesis.tex'}"))
    with pytest.raises(UserError, match=r"thesis\.tex"):
        run_distill(recipe(f"out={used / 'thesis.tex' / 'run'}"))
    assert files(tmp_path) == before


@pytest.mark.slow
def test_what_a_kill_leaves_in_the_first_moment_is_no_obstacle(recipe, tmp_path):
    """A run that died while its config.yaml was being written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.part").write_text("data: {tr")
    run_distill(recipe("stages.0.steps=1", "evaluate.every=null"))
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_message(recipe, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        run_distill(recipe(f"out={closed / 'run'}"))


# disks and numbers


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_last_checkpoint_is_whole(recipe_file, amradio, tmp_path):
    ended = amradio("distill", recipe_file, prelude=partial(at_step, 6, fill_disk))
    assert ended.code == 2
    assert len(ended.errors.splitlines()) == 1
    assert ended.errors.startswith("error: ")
    assert "cannot write" in ended.errors
    assert "Traceback" not in ended.output
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).load().step == 4
    assert amradio("distill", recipe_file).code == 0
    reference = amradio("distill", recipe_file, f"out={tmp_path / 'reference'}")
    assert reference.code == 0
    assert_same(tmp_path / "reference", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("written", ["write_tensors", "torch.save", "write_text"])
def test_no_space_while_a_checkpoint_is_written(recipe, monkeypatch, tmp_path, written):
    def full(*rest, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saved: list[int] = []
    save = Checkpoints.save

    def second_fails(self, step, *rest):
        if saved:
            with monkeypatch.context() as patch:
                place = {
                    "write_tensors": (checkpoint_module, "write_tensors"),
                    "torch.save": (torch, "save"),
                    "write_text": (Path, "write_text"),
                }
                patch.setattr(*place[written], full)
                return save(self, step, *rest)
        saved.append(step)
        return save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", second_fails)
    with pytest.raises(UserError, match="No space left on device"):
        run_distill(recipe())
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", 2)
    assert checkpoints.steps() == [4]
    assert checkpoints.load().step == 4
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == "step_000000004"


@pytest.mark.slow
@pytest.mark.parametrize("file", ["task.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut short", "emptied", "overwritten"])
def test_a_damaged_checkpoint_is_one_message(recipe, file, damage):
    folder = run_distill(recipe("stages.0.steps=1", "evaluate.every=null"))
    path = folder / "checkpoints" / "last" / file
    content = path.read_bytes()
    path.write_bytes({"cut short": content[: len(content) // 2], "emptied": b"", "overwritten": b"\x93 this is something else"}[damage])
    with pytest.raises(UserError, match="this checkpoint cannot be read"):
        Checkpoints(folder / "checkpoints", 2).load()


class Failing(Teacher):
    """Gives NaN for the map at its call number `fails_at`, counted over calibration (2), evaluation and steps."""

    def __init__(self, fails_at: int):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, patch_size=8, dims=(4, 5), input_size=None, licence="none", source="a test")
        self.fails_at, self.calls = fails_at, 0

    def encode(self, images):
        self.calls += 1
        cells = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1).repeat(1, 1, 1, 2)[..., :5].clone()
        if self.calls == self.fails_at:
            cells[0, 0, 0, 0] = float("nan")
        return Features(images.mean((2, 3)).repeat(1, 2)[:, :4], cells)


@pytest.mark.slow
def test_a_nan_stops_the_run_with_teacher_step_and_images_named(recipe, tmp_path):
    words = ("teachers.mine={type: custom}", "evaluate.every=null", "engine.log_every=5", "engine.checkpoint_every=5")
    with pytest.raises(UserError) as caught:
        run_distill(recipe(*words), teachers={"mine": Failing(fails_at=2 + 7)})
    (problem,) = caught.value.problems
    assert problem.startswith("step 7: not a finite number: ")
    assert "mine/spatial/loss" in problem
    assert "clip" not in problem.split(";")[0]
    named = problem.split("images of that step: ")[1].split(";")[0].split(", ")
    assert len(named) == 4
    assert all(name.endswith(".jpg") for name in named)
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).steps() == [5]
    run_distill(recipe(*words), teachers={"mine": Failing(fails_at=-1)})
    assert list(losses(tmp_path / "run")) == [5, 10, 12]


@pytest.mark.slow
def test_a_nan_in_the_statistics_stops_at_the_first_step(recipe):
    with pytest.raises(UserError, match=r"step 1: not a finite number: .*mine/spatial"):
        run_distill(recipe("teachers.mine={type: custom}", "evaluate.every=null"), teachers={"mine": Failing(fails_at=1)})


# precision


@pytest.mark.slow
@pytest.mark.parametrize("hardware", [True, False])
def test_teachers_take_the_precision_of_the_run_and_emulation_is_named(recipe, monkeypatch, hardware, tmp_path):
    monkeypatch.setattr("amradio.devices.computes_bfloat16", lambda device: hardware)
    words = ("stages.0.steps=1", "evaluate.every=null")
    automatic = training(recipe(*words, "engine.precision=auto"))
    expected = torch.bfloat16 if hardware else torch.float32
    assert {teacher.compute_dtype for teacher in automatic.context.task.teachers.values()} == {expected}
    exact = training(recipe(*words))  # engine.precision: float32
    assert {teacher.compute_dtype for teacher in exact.context.task.teachers.values()} == {torch.float32}

    words = (*words, "engine.precision=bfloat16", "teachers.clip.precision=bfloat16")
    r = recipe(*words)
    trainer = Trainer(r, load_teachers(r, {}), Processes(torch.device("cpu")), Log(tmp_path))
    introduce(trainer.context, trainer.initial.notes)
    shown = (tmp_path / "train.log").read_text()
    assert "bfloat16, licence" in shown
    for key in ("engine.precision", "teachers.clip.precision"):
        assert (f"{key}: cpu emulates bfloat16" in shown) is not hardware


# how long it will take


LONG = (
    "stages.0.steps=40",
    "stages.0.partitions.0.batch_size=2",
    "evaluate.every=null",
    "engine.log_every=40",
    "engine.checkpoint_every=40",
)


@pytest.mark.slow
def test_the_first_steps_say_how_long_the_run_will_take(recipe):
    folder = run_distill(recipe(*LONG), within=1e6)
    lines = [line for line in (folder / "train.log").read_text().splitlines() if "estimate after" in line]
    assert len(lines) == 1
    assert "other 15" in lines[0]


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended_before_anything_is_saved_and_can_be_discarded(recipe, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TooSlowError, match="for the other 15, more than the 0:00 that are planned") as caught:
        run_distill(recipe(*LONG), within=1e-3)
    assert caught.value.fits == 1
    assert folder.num_steps() == 40
    assert folder.checkpoints.steps() == []
    with folder.lock() as lock:
        folder.discard(lock)
    assert folder.check(recipe(*LONG, "stages.0.steps=2")) == []
    run_distill(recipe(*LONG, "stages.0.steps=2"))
    assert folder.num_steps() == 2
    run_distill(recipe(*LONG, "stages.0.steps=2"), within=1e-9)  # there is nothing left to do
    with folder.lock() as lock, pytest.raises(UserError, match="holds a checkpoint; resume that run"):
        folder.discard(lock)
    assert folder.model.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("batches", "warned"), [(1, True), (50, False)])
def test_statistics_from_few_images_are_named(recipe, batches, warned):
    folder = run_distill(recipe(f"normalize.batches={batches}", "stages=[{steps: 1, partitions: [{image_size: 32, batch_size: 2}]}]"))
    assert ("statistics from few images (" in (folder / "train.log").read_text()) is warned
