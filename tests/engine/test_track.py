"""Loggers of other projects: numbers reach Weights & Biases as its client takes them, and nothing is imported before."""

import inspect
import sys

import pytest

from amradio.__main__ import main
from amradio.engine.log import Log
from amradio.engine.track import openers
from amradio.run_folder import RunFolder

STAND_IN = '''
"""wandb's calls with the signatures of its client (0.19 to 0.22): what it is given is kept."""

RUNS = []


class Run:
    def __init__(self, given):
        self.given, self.history, self.is_finished = given, {}, False

    def log(self, data, step=None, commit=None):
        last = max(self.history, default=-1)
        if step < last:
            return  # "Steps must be monotonically increasing, so this data will be ignored"
        self.history.setdefault(step, {}).update(data)

    def finish(self, exit_code=None, quiet=None):
        self.is_finished = True


def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None, config_exclude_keys=None,
         config_include_keys=None, allow_val_change=None, group=None, job_type=None, mode=None, force=None, reinit=None, resume=None,
         resume_from=None, fork_from=None, save_code=None, tensorboard=None, sync_tensorboard=None, monitor_gym=None, settings=None):
    RUNS.append(Run({name: value for name, value in locals().items() if value is not None}))
    return RUNS[-1]
'''


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield
    sys.modules.pop("wandb", None)


def test_numbers_go_to_every_logger_and_libraries_are_imported_with_the_first(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "trees")
    log = Log(tmp_path, openers(False, "offline"))
    log.say("a line")
    assert "wandb" not in sys.modules
    log.record({"step": 2, "loss": 1.5, "note": "a text"})
    log.record({"step": 2, "val/clip": 0.5})
    log.record({"step": 4, "loss": 1.25})
    log.close()
    (run,) = sys.modules["wandb"].RUNS
    assert run.history == {2: {"loss": 1.5, "val/clip": 0.5}, 4: {"loss": 1.25}}
    assert run.is_finished
    assert (run.given["mode"], run.given["project"], run.given["dir"]) == ("offline", "trees", str(tmp_path))
    assert len(inspect.signature(sys.modules["wandb"].init).parameters) == 24
    assert openers(False, None) == []


def test_a_resumed_run_is_the_same_run_there(wandb, tmp_path):
    for folder, last in ((tmp_path / "a", 1), (tmp_path / "a", 2), (tmp_path / "b", 1)):
        folder.mkdir(exist_ok=True)
        log = Log(folder, openers(False, "online"))
        log.forget_after(last - 1)
        log.record({"step": last, "loss": 1.0})
    first, resumed, other = (run.given for run in sys.modules["wandb"].RUNS)
    assert first["id"] == resumed["id"] != other["id"]
    assert resumed["resume"] == "allow"
    assert resumed["config"]["resumed_at"] == 1
    assert (first["name"], first["project"], first["mode"]) == ("a", "amradio", "online")


@pytest.mark.slow
def test_a_run_logs_all_its_numbers_to_weights_and_biases(wandb, recipe_file, tmp_path, capsys):
    words = ["distill", str(recipe_file), "stages.0.steps=2", "evaluate.every=2", "engine.wandb=offline", "engine.report=false"]
    assert main([*words, "teachers.dino=null", "teachers.sam=null"]) == 0
    (run,) = sys.modules["wandb"].RUNS
    recorded = {}
    for line in RunFolder(tmp_path / "run").records():
        recorded.setdefault(line["step"], {}).update({name: value for name, value in line.items() if name != "step"})
    assert repr(run.history) == repr(recorded), "NaN is not equal to itself"
    assert {0, 1, 2} == set(run.history)
    assert run.is_finished


def test_without_the_library_the_run_is_refused_before_it_starts(recipe_file, tmp_path, capsys):
    assert main(["distill", str(recipe_file), "engine.wandb=offline"]) == 2
    assert "engine.wandb: wandb is not installed; pip install 'amradio[wandb]', or leave the key out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
