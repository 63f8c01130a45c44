"""The log of a run: what is printed while nothing is to be logged, and how broken images are counted."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import amradio
from amradio.batch import Batch
from amradio.engine import log as log_module
from amradio.engine.distributed import Processes
from amradio.engine.log import Clock, Log, read_records
from amradio.engine.monitor import Monitor
from amradio.recipe import Recipe
from amradio.teachers import Teacher
from data_folders import BROKEN, make_folder


@pytest.mark.slow
def test_a_step_that_takes_long_is_not_quiet(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log_module, "PERIOD", 0.1)
    forward, calls = Teacher.forward, []

    def slow(self: Teacher, images: torch.Tensor) -> object:
        calls.append(1)
        time.sleep(0.3 if len(calls) > 6 else 0)  # the first ones are the statistics
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", slow)
    amradio.distill(recipe("stages.0.steps=2", "engine.log_every=100", "evaluate.every=null", "normalize.batches=2"))
    lines = capsys.readouterr().out.splitlines()
    assert "the first step is being computed" in lines
    assert lines.count("step 1 of 2 done") >= 2  # during the second step, of three slow teachers
    assert lines[-1].startswith("Finished 2 steps")


@pytest.mark.slow
def test_a_line_comes_only_where_there_was_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(log_module, "PERIOD", 0.2)
    log = Log(aloud=True)
    with log.alive():
        for number in range(10):
            log.say(f"line {number}")
            log.progress(number, 10)
            time.sleep(0.05)
        with log.phase("a phase"):
            time.sleep(0.5)  # which has its lines
        time.sleep(0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:11] == [*(f"line {number}" for number in range(10)), "a phase"]
    assert set(lines[11:]) == {"step 9 of 10 done"}
    before = len(lines)
    time.sleep(0.3)
    assert capsys.readouterr().out == "", f"nothing after the last of {before} lines"


def monitor(folder: Path) -> Monitor:
    found = Monitor(Processes(torch.device("cpu")), Log(folder), Clock(torch.device("cpu")), lambda numbers: "")
    found.begin(10)
    return found


def test_a_broken_image_that_is_read_again_is_counted_once(tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    reads = [f"{number % 2}.jpg: not a picture" for number in range(6)]
    for step, reason in enumerate(reads, 1):
        batch = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ("a",), torch.zeros(1, 8), (reason,))
        watched.take(step, {"loss": torch.tensor(1.0)}, [batch], 0.1, 16)
    watched.flush(6)
    (record,) = read_records(tmp_path)
    assert record["tokens_per_second"] == pytest.approx(16 * record["images_per_second"])
    warning = next(line for line in (tmp_path / "train.log").read_text().splitlines() if "unreadable" in line)
    assert warning == "warning: 2 unreadable images were skipped (6 skips in all): 0.jpg: not a picture; 1.jpg: not a picture"
    many = tuple(f"{number % 7}.jpg: not a picture" for number in range(50))
    watched.take(
        7, {"loss": torch.tensor(1.0)}, [Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ("a",), torch.zeros(1, 8), many)], 0.1, 16
    )
    watched.flush(7)
    warning = (tmp_path / "train.log").read_text().splitlines()[-2]
    assert warning.startswith("warning: 7 unreadable images were skipped (56 skips in all): ")
    assert warning.endswith("; and 2 more")


@pytest.mark.slow
def test_the_log_of_a_run_counts_broken_images_once(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    make_folder(tmp_path / "photos", count=6, broken=(2,))
    assert BROKEN in {file.read_bytes() for file in (tmp_path / "photos").rglob("*.jpg")}
    words = (f"data.train.path={tmp_path / 'photos'}", "data.val=null", "evaluate.every=null", "engine.log_every=8")
    folder = amradio.distill(recipe(*words, "normalize.batches=1", "engine.checkpoint_every=8", "stages.0.steps=8"))
    (warning,) = [line for line in (folder / "train.log").read_text().splitlines() if "unreadable" in line]
    assert warning.startswith("warning: 1 unreadable image was skipped (")
    assert "more" not in warning
