"""Ctrl-C, SIGTERM and consoles that go away, at any moment of any verb; and what is announced while work goes on."""

import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import amradio
from amradio import console
from amradio.__main__ import main
from amradio.console import Outliving, Phases, outlive_console
from amradio.engine.checkpoint import Checkpoints
from amradio.engine.monitor import Monitor
from amradio.interruption import BOUNCE, Stop
from processes import Running, start, start_several
from runs import assert_same

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
WORDS = ("stages.0.steps=4", "evaluate.every=2", "teachers.dino=null", "teachers.sam=null", "engine.checkpoint_every=2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to export, embed with and evaluate."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["data.train=scenes", "data.num_workers=0", "teachers={clip: {type: embedded, name: clip}}", "normalize.batches=1"]
    words += ["student={type: vit, size: tiny, depth: 1, max_image_size: 128}", "evaluate.every=null", "engine.device=cpu"]
    assert main(["distill", *words, "stages=[{steps: 1, partitions: [{image_size: 64, batch_size: 2}]}]", f"out={folder}"]) == 0
    return folder


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


def signal_in(place: str, number: int) -> None:
    """The signal comes when `place` (MODULE:CLASS.NAME or MODULE:NAME) is called; then it takes long."""
    import importlib

    module, _, path = place.partition(":")
    owner = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    real = getattr(owner, name)

    def interrupted(*positional, **named):
        os.kill(os.getpid(), number)
        time.sleep(0.05)  # the handler runs between two bytecodes
        return real(*positional, **named)

    setattr(owner, name, interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "place", "note", "number"),
    [
        ("export", "amradio.formats.model_folder:ModelFolder.write", "Nothing was written.", signal.SIGTERM),
        ("embed", "amradio.embedding.job:_write_part", "What is done is kept; run the same command to resume.", signal.SIGTERM),
        ("evaluate", "amradio.commands.evaluate:run_suite", "No results were written.", signal.SIGINT),
    ],
)
def test_a_signal_ends_a_command_at_once_with_one_line(finished, pictures, tmp_path, verb, place, note, number):
    out = tmp_path / "out"
    out.mkdir()
    words = {
        "export": ["export", finished, "--format", "amradio", "--out", out / "model"],
        "embed": ["embed", finished, pictures, "--out", out / "x.safetensors", "--num-workers", 0],
        "evaluate": ["evaluate", finished, "--json", out / "x.json"],
    }[verb]
    ended = start(*words, folder=tmp_path / "printed", prelude=partial(signal_in, place, number)).wait()
    assert ended.code == 128 + number, ended.errors
    assert [line for line in ended.errors.splitlines() if "top" in line] == [f"Stopped ({NAMES[number]}). {note}"]
    assert "Traceback" not in ended.errors
    assert not [path for path in out.iterdir() if path.name != "x.safetensors.parts"], "no unfinished file, no lock"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["amradio.commands.distill:check_data", "amradio.teachers.clip:ClipTeacher.__init__"])
def test_a_signal_while_a_run_is_loaded_ends_it_and_nothing_is_written(recipe_file, tmp_path, place):
    ended = start("distill", recipe_file, *WORDS, folder=tmp_path / "printed", prelude=partial(signal_in, place, signal.SIGINT)).wait()
    assert ended.code == 130, ended.errors
    assert ended.errors == "Stopped (Ctrl-C). Run the same command to resume.\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "step"),
    [("amradio.training.calibration:contact_sheet", 0), ("amradio.training.held_out:agreement", 0)],
    ids=["statistics", "held out"],
)
def test_a_signal_in_the_statistics_or_an_evaluation_is_followed_within_it(recipe_file, amradio, tmp_path, place, step):
    words = ["distill", recipe_file, *WORDS]
    ended = start(*words, folder=tmp_path / "printed", prelude=partial(signal_in, place, signal.SIGTERM)).wait()
    assert ended.code == 143, ended.errors
    assert ended.errors == "SIGTERM: stopping after this step; Ctrl-C again to stop now\n"
    assert f"Stopped (SIGTERM) at step {step} of 4. Run the same command to resume." in ended.output
    assert Checkpoints(tmp_path / "run" / "checkpoints", 1).steps() == []


def interrupt_the_last_evaluation() -> None:
    from amradio.training import held_out

    real = held_out.HeldOut.run

    def measure(self, step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        real(self, step)

    held_out.HeldOut.run = measure


@pytest.mark.slow
def test_a_signal_in_the_last_evaluation_and_the_same_command_makes_it(recipe_file, amradio, tmp_path):
    words = ["distill", recipe_file, *WORDS]
    ended = start(*words, folder=tmp_path / "printed", prelude=interrupt_the_last_evaluation).wait()
    assert ended.code == 130, ended.errors
    assert "Stopped (Ctrl-C) at step 4 of 4, before the last evaluation. Run the same command to resume." in ended.output
    assert amradio(*words).code == 0
    assert amradio("distill", recipe_file, *WORDS, f"out={tmp_path / 'whole'}").code == 0
    assert_same(tmp_path / "whole", tmp_path / "run")


def interrupt_the_first_step() -> None:
    from processes import at_step

    at_step(1, partial(signal_self, signal.SIGINT))


@pytest.mark.slow
def test_a_stopped_quickstart_evaluates_nothing(tmp_path):
    words = [
        "quickstart",
        "data.num_workers=0",
        "stages.0.steps=2",
        "stages.0.partitions.0.batch_size=4",
        "normalize.batches=1",
        "student.depth=1",
    ]
    words += ["evaluate.every=null", f"out={tmp_path / 'run'}"]
    ended = start(*words, folder=tmp_path / "printed", prelude=interrupt_the_first_step).wait()
    assert ended.code == 130, ended.errors
    assert ended.output.splitlines()[-1] == "Stopped (Ctrl-C) at step 1 of 2. Run the same command to resume."


def test_a_script_ends_where_a_signal_stops_its_run(recipe, monkeypatch):
    take = Monitor.take
    monkeypatch.setattr(Monitor, "take", lambda *rest: (take(*rest), signal_self(signal.SIGTERM)))
    with pytest.raises(SystemExit) as stopped:
        amradio.distill(recipe(*WORDS))
    assert stopped.value.code == 143


@pytest.mark.slow
def test_a_dry_run_begins_nothing_that_could_be_resumed(recipe_file, tmp_path):
    prelude = partial(signal_in, "amradio.commands.distill:check_data", signal.SIGINT)
    ended = start("distill", recipe_file, *WORDS, "--dry-run", folder=tmp_path / "printed", prelude=prelude).wait()
    assert ended.code == 130
    assert ended.errors.splitlines()[-1] == "Stopped (Ctrl-C). Nothing was written."


AT_EXIT = """
import atexit, os, signal, sys, time
import amradio.__main__ as command

sys.argv = ["amradio", "export", "m", "--format", "onnx", "--out", "x"]
command.call = lambda options: os.kill(os.getpid(), signal.SIGINT) if sys.stdin.read() == "stopped" else None
atexit.register(lambda: (time.sleep(0.3), os.kill(os.getpid(), signal.SIGINT), time.sleep(5)))
sys.exit(command.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "finished"])
def test_a_signal_while_the_interpreter_ends_leaves_no_traceback(how):
    ended = subprocess.run([sys.executable, "-c", AT_EXIT], input=how, capture_output=True, text=True)
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[1:] == (["Stopped (Ctrl-C). Nothing was written."] if how == "stopped" else [])


def twice() -> None:
    from processes import at_step

    def act() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(BOUNCE + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    at_step(2, act)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_run_now(recipe_file, tmp_path):
    ended = start("distill", recipe_file, *WORDS, folder=tmp_path / "printed", prelude=twice).wait()
    assert ended.code == 130
    first, second = ended.errors.splitlines()
    assert first == "Ctrl-C: stopping after this step; Ctrl-C again to stop now"
    assert second == "Stopped (Ctrl-C). Run the same command to resume."


def test_a_signal_that_comes_twice_at_once_counts_once():
    with Stop() as stop:
        for _ in range(2):
            signal_self(signal.SIGINT)
            time.sleep(0.01)
        assert stop.asked
        assert stop.name == "Ctrl-C"


# consoles that go away


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_closed_console_is_silent():
    stream = Outliving(Closed())
    print("lost", file=stream, flush=True)
    assert not stream.isatty()
    before = sys.stdout
    with outlive_console():
        assert isinstance(sys.stdout, Outliving)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert sys.stdout is before
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def break_the_console() -> None:
    """After the first step nobody reads what is printed, and the terminal hangs up."""
    from processes import at_step

    def act() -> None:
        read, write = os.pipe()
        os.close(read)
        for descriptor in (1, 2):
            os.dup2(write, descriptor)
        os.kill(os.getpid(), signal.SIGHUP)

    at_step(1, act)


@pytest.mark.slow
def test_a_run_outlives_its_console(recipe_file, tmp_path):
    ended = start("distill", recipe_file, *WORDS, folder=tmp_path / "printed", prelude=break_the_console).wait()
    assert ended.code == 0
    assert "step 2/4" not in ended.output
    log = (tmp_path / "run" / "train.log").read_text()
    assert "step 4/4" in log
    assert "Finished 4 steps in " in log


# a process of several dies


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_survivor_of_two_processes_says_how_to_resume(recipe_file, tmp_path):
    from processes import at_step

    preludes = {1: partial(at_step, 3, die)}
    running: list[Running] = start_several(2, "distill", recipe_file, *WORDS, folder=tmp_path / "printed", preludes=preludes)
    first, second = (each.wait() for each in running)
    assert second.code == -signal.SIGKILL
    assert first.code == 2, first.errors
    (message,) = [line for line in first.errors.splitlines() if not line.startswith("[")]  # gloo's own warnings
    assert message.startswith("error: another process of this run ended, or cannot be reached any more (")
    assert message.endswith("The last checkpoint is whole: run the same command to resume")
    assert Checkpoints(tmp_path / "run" / "checkpoints", 1).steps() == [2]


# announcements


@pytest.mark.slow
def test_the_lines_of_a_run_in_order(recipe_file, amradio):
    ended = amradio("distill", recipe_file, *WORDS)
    lines = iter(ended.output.splitlines())
    wanted = (
        "amradio distill: starting",
        "looking at the data",
        "loading teacher 1 of 1: clip",
        "opening the data",
        "stage 1 of 1: statistics of clip over 2 batches",
        "step 0: evaluating on held-out images",
        "step 1/4",
        "step 4: evaluating on held-out images",
        "Finished 4 steps in ",
    )
    for each in wanted:
        assert any(line.startswith(each) for line in lines), each
    assert ended.output.splitlines()[-1].split("Model: ")[1].split(" Next: ")[1].startswith("amradio evaluate ")


@pytest.mark.slow
def test_evaluate_names_each_evaluation_before_it_begins(finished, capsys):
    capsys.readouterr()
    data = "data: {type: scenes, length: 8}"
    assert main(["evaluate", str(finished), f"evaluations={{one: {{type: agreement, {data}}}, two: {{type: agreement, {data}}}}}"]) == 0
    lines = capsys.readouterr().err.splitlines()
    for each in ("amradio evaluate: starting", "loading teachers", "evaluation 1 of 2: one", "evaluation 2 of 2: two"):
        assert each in lines


def test_long_phases_show_signs_of_life(monkeypatch):
    monkeypatch.setattr(console, "PERIOD", 0.02)
    said: list[str] = []
    shown: list[str] = []
    phases = Phases(said.append, shown.append, "stderr")
    with phases.phase("counting"):
        for _ in phases.progress(range(3), "numbers", 3):
            time.sleep(0.05)
    assert said == ["counting"]
    assert any(line.startswith("counting: 1 of 3, 0:00 so far") for line in shown)
    with phases.still("saving", first=5.0):
        pass
    assert not any(line.startswith("saving") for line in shown)
