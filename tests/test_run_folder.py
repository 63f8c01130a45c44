"""Run folders: one process at a time; damage is one sentence that names the file; what a kill left undone is completed."""

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amradio import load
from amradio.__main__ import main
from amradio.engine.checkpoint import STATE, Checkpoints
from amradio.engine.lock import Lock
from amradio.engine.log import Log
from amradio.formats.model_folder import read_config
from amradio.training.saving import model_step
from processes import start
from runs import assert_same, files, metrics

WORDS = ("stages.0.steps=2", "engine.checkpoint_every=1", "evaluate.every=2", "teachers.dino=null", "teachers.sam=null")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run, made once."""
    return {"folder": tmp_path_factory.mktemp("finished") / "run"}


@pytest.fixture
def again(kept, recipe_file: Path, tmp_path: Path, capsys) -> Callable[..., tuple[int, str, str]]:
    """`again()`: the same command on a copy of a finished run, `tmp_path / "run"`; its exit code, output and errors."""
    if not kept["folder"].exists():
        assert main(["distill", str(recipe_file), *WORDS, f"out={kept['folder']}"]) == 0
        kept["recipe"] = kept["folder"].parent / "recipe.yaml"
        shutil.copy(recipe_file, kept["recipe"])
    shutil.copytree(kept["folder"], tmp_path / "run", symlinks=True)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["distill", str(kept["recipe"]), *WORDS, f"out={tmp_path / 'run'}", *words])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return code, printed.out, printed.err

    return run


# one run, one folder


@pytest.mark.slow
def test_a_folder_in_use_is_refused_with_its_holder_and_nothing_is_written(again, tmp_path):
    folder = tmp_path / "run"
    with Lock(folder / ".lock", "out") as lock:
        lock.take()
        before = files(folder)
        code, _, errors = again()
        assert code == 2
        assert errors.startswith(f"error: out: {folder} is in use by process {os.getpid()} on ")
        assert files(folder) == before
        assert main(["evaluate", str(folder), "evaluations={a: {type: agreement, data: {type: scenes, length: 8}}}"]) == 0
        assert again("--dry-run")[0] == 0
        assert files(folder) == before
    assert again()[0] == 0
    assert not (folder / ".lock").exists()


def test_what_a_killed_holder_left_is_no_lock(again, tmp_path):
    (tmp_path / "run" / ".lock").write_text('{"pid": 1, "host": "elsewhere", "since": "2020"}')
    assert again()[0] == 0


def test_a_file_system_without_locks_is_a_warning(again, monkeypatch):
    def refuse(handle: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    code, _, errors = again()
    assert code == 0
    assert "is on a file system without locks (No locks available); see that no other process uses it" in errors


def test_a_dry_run_writes_nothing(recipe_file, tmp_path):
    before = files(tmp_path)
    assert main(["distill", str(recipe_file), *WORDS, "--dry-run"]) == 0
    assert files(tmp_path) == before


# what a kill left undone


@pytest.mark.slow
def test_a_stale_or_missing_model_folder_is_written_again(again, tmp_path):
    folder = tmp_path / "run"
    wanted = load_file(folder / "model" / "model.safetensors")
    assert model_step(folder / "model") == 2
    assert read_config(folder / "model").training.step == 2

    def spoil_weights() -> None:
        save_file({key: value + 1 for key, value in wanted.items()}, folder / "model" / "model.safetensors", {"step": "1"})

    def spoil_config() -> None:
        file = folder / "model" / "config.json"
        content = json.loads(file.read_text())
        content["training"]["step"] = 1
        file.write_text(json.dumps(content))

    for spoil in (
        spoil_weights,
        spoil_config,
        lambda: shutil.rmtree(folder / "model"),
        lambda: (folder / "model" / "README.md").unlink(),
        lambda: (folder / "model" / "model.safetensors").write_bytes(b"cut"),
    ):
        spoil()
        assert model_step(folder / "model") is None or spoil is spoil_weights
        code, output, _ = again()
        assert code == 0
        assert "missing or not of step 2; written again" in output
        found = load_file(folder / "model" / "model.safetensors")
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
        assert model_step(folder / "model") == 2
    load(folder)


@pytest.mark.slow
def test_a_missing_last_evaluation_and_calibration_are_made(again, kept, tmp_path):
    folder = tmp_path / "run"
    shutil.rmtree(folder / "calibration")
    shutil.rmtree(folder / "evaluations" / "step_000000002")
    checkpoints = Checkpoints(folder / "checkpoints", 2)
    found = checkpoints.load()
    checkpoints.note(2, found.state | {"evaluated": 0})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert "val/clip" in lines[-1]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines[:-1]))
    code, output, _ = again()
    assert code == 0
    assert "stage_0: incomplete; written again" in output
    assert_same(kept["folder"], folder)
    for name in ("calibration/stage_0/clip_summary.safetensors", "evaluations/step_000000002/held_out.json"):
        assert (folder / name).read_bytes() == (kept["folder"] / name).read_bytes()
    assert checkpoints.load().state == found.state
    before = metrics(folder)
    assert "All 2 steps were done" in again()[1]
    assert metrics(folder) == before


# damage


def other_shapes(file: Path) -> None:
    tensors = load_file(file)
    key = min(tensors)
    tensors[key] = tensors[key][None].contiguous()
    save_file(tensors, file)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "flipped": flip_a_bit,
    "emptied": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", ["task.safetensors", "optimizer.pt", STATE])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_with_what_to_do(again, tmp_path, file, damage):
    place = tmp_path / "run" / "checkpoints" / "step_000000002"
    DAMAGE[damage](place / file)
    code, output, errors = again()
    if (file, damage) in ((STATE, "gone"),):  # then it is no checkpoint, and the one before it is the last
        assert code == 0
        assert "from step 1 of 2" in output
        return
    assert code == 2
    assert str(place / file) in errors
    assert errors.rstrip().endswith(f"delete the folder {place} to resume from step 1")
    assert "weights_only" not in errors
    shutil.rmtree(place)
    code, output, _ = again()
    assert code == 0
    assert "from step 1 of 2" in output


def unsigned(place: Path) -> dict:
    """A checkpoint from before there were checksums."""
    content = json.loads((place / STATE).read_text())
    del content["sha256"]
    (place / STATE).write_text(json.dumps(content))
    return content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda place: (place / STATE).write_text("{}"), STATE),
        (lambda place: (place / STATE).write_text("[1]"), STATE),
        (lambda place: (place / STATE).write_text('{"step": 2}'), STATE),
        (lambda place: (place / STATE).write_bytes(b"\xff\xfe"), STATE),
        (lambda place: (place / STATE).write_text("[" * 100_000), STATE),
        (lambda place: other_shapes(place / "task.safetensors"), "task.safetensors"),
        (lambda place: (place / "task.safetensors").unlink(), "task.safetensors"),
        (lambda place: torch.save([1], place / "optimizer.pt"), "optimizer.pt"),
        (lambda place: torch.save({"optimizer": {}, "rng": 3}, place / "optimizer.pt"), "optimizer.pt"),
        (lambda place: torch.save({"optimizer": Path("x")}, place / "optimizer.pt"), "optimizer.pt"),
    ],
)
def test_a_checkpoint_of_something_else_is_named(again, tmp_path, spoil, named):
    place = tmp_path / "run" / "checkpoints" / "step_000000002"
    unsigned(place)
    spoil(place)
    code, _, errors = again()
    assert code == 2
    assert str(place / named) in errors
    assert "to resume from step 1" in errors
    assert "weights_only" not in errors


@pytest.mark.slow
def test_a_checkpoint_without_checksums_is_read_and_the_only_one_starts_again(again, tmp_path):
    place = tmp_path / "run" / "checkpoints" / "step_000000002"
    unsigned(place)
    assert again()[0] == 0
    shutil.rmtree(place.with_name("step_000000001"))
    (place / "task.safetensors").write_bytes(b"")
    assert again()[2].rstrip().endswith("to start again from step 0")


@pytest.mark.slow
def test_strangers_among_the_checkpoints_are_left_alone(again, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step_000000060.bak", "step_000000002 (copy)", "step_9", "step_0000000099", "step_00000000\u0662"):
        shutil.copytree(checkpoints / "step_000000002", checkpoints / name)
    (checkpoints / ".DS_Store").write_text("")
    (checkpoints / "step_000000005").write_text("a file")
    before = files(checkpoints)
    assert again()[0] == 0
    assert {name: content for name, content in files(checkpoints).items() if "step_000000002/" not in name} == {
        name: content for name, content in before.items() if "step_000000002/" not in name
    }


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[1, 2]\n", b'{"step": null}\n', b"[" * 50_000 + b"\n", b"\x00\n"])
def test_damaged_lines_of_the_numbers_are_set_aside_with_a_warning(again, tmp_path, damage):
    file = tmp_path / "run" / "metrics.jsonl"
    before = file.read_bytes()
    first, rest = before.split(b"\n", 1)
    file.write_bytes(first + b"\n" + damage + rest)
    code, output, _ = again()
    assert code == 0
    assert f"warning: {file}: 1 damaged lines" in output
    assert file.read_bytes() == before
    assert (file.parent / "metrics.damaged.txt").read_bytes() == damage


def test_other_images_than_before_are_named_and_a_damaged_record_is_written_anew(again, tmp_path):
    file = tmp_path / "run" / "data.json"
    facts = json.loads(file.read_text())
    code, output, _ = again()
    assert (code, "changed since the run was stopped" in output) == (0, False)
    file.write_text(json.dumps(facts | {"data.train": {"source": "12 images in photos", "fingerprint": "0123456789abcdef"}}))
    code, output, _ = again()
    assert code == 0
    assert (
        f"warning: data.train: the images changed since the run was stopped (12 images in photos; now {facts['data.train']['source']})"
        in output.replace("\n", " ")
    )
    file.write_text("{")
    assert again()[0] == 0
    assert json.loads(file.read_text()) == facts


def test_a_last_line_that_a_kill_cut_is_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    Log(tmp_path).forget_after(2)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert not (tmp_path / "metrics.damaged.txt").exists()
    file.write_text('{"step": 1}\n{"step": 2}')
    Log(tmp_path).forget_after(2)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "network.json"])
@pytest.mark.parametrize("content", [b"", b"# caf\xe9\n", b"[1]", b"[" * 100_000, b"\x00"])
def test_a_damaged_recipe_or_network_is_named(again, tmp_path, name, content):
    file = tmp_path / "run" / name
    file.write_bytes(content)
    before = files(tmp_path / "run")
    code, _, errors = again()
    assert code == 2
    assert str(file) in errors
    assert "restore" in errors
    assert files(tmp_path / "run") == before


# kills


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["model", "checkpoint"])
def test_kill_9_around_the_last_checkpoint_leaves_nothing_undone(again, kept, tmp_path, moment):
    """Right after the last checkpoint, before its model folder; and in the middle of it."""
    folder = tmp_path / "killed"
    words = ["distill", kept["recipe"], *WORDS, f"out={folder}"]
    ended = start(*words, folder=tmp_path / "printed", prelude={"model": die_before_model, "checkpoint": die_in_checkpoint}[moment]).wait()
    assert ended.code == -signal.SIGKILL
    assert main([str(word) for word in words]) == 0
    assert_same(kept["folder"], folder)
    assert not list((folder / "checkpoints").glob(".*"))


def die_before_model() -> None:
    from amradio.training.saving import Saving

    write = Saving.write_model
    Saving.write_model = lambda self, step, progress: os.kill(os.getpid(), signal.SIGKILL) if step == 2 else write(self, step, progress)


def die_in_checkpoint() -> None:
    from amradio.engine import checkpoint

    steps: list[int] = []
    signed = checkpoint._signed

    def dying(step: int, *rest: object) -> str:
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        steps.append(step)
        return signed(step, *rest)

    checkpoint._signed = dying
