"""Wrong input to vision-language models: images, lengths, checkpoints and folders, each answered with where, what and how to fix."""

import errno
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from amradio.errors import UserError
from vlms import Parts

for name in ("trl", "peft", "datasets"):
    pytest.importorskip(name)


def cut_photograph() -> bytes:
    """A JPEG with a whole header and two thirds of its pixels."""
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG", quality=95)
    return whole.getvalue()[: len(whole.getvalue()) * 2 // 3]


# --- training


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_breaks_off_is_named_when_its_turn_comes(
    num_workers: int, parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(parts.data, tmp_path / "data")
    (tmp_path / "data" / "5.png").write_bytes(cut_photograph())
    data = f"{{annotations: {parts.data}/captions.json, images: {tmp_path}/data}}"
    words = ("instruction=null", f"alignment.data={data}", f"num_workers={num_workers}")
    assert parts.run(tmp_path / "run", *words) == 2
    errors = capsys.readouterr().err
    assert f"error: {tmp_path}/data/5.png: the image cannot be read (damaged: image file is truncated" in errors
    assert "replace it or take it out" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "model").exists()


def test_images_without_a_header_are_named_before_anything_is_trained(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(parts.data, tmp_path / "data")
    (tmp_path / "data" / "5.png").write_bytes(b"")
    (tmp_path / "data" / "7.png").write_text("a text")
    assert parts.run(tmp_path / "run", f"alignment.data={{annotations: {parts.data}/captions.json, images: {tmp_path}/data}}") == 2
    errors = capsys.readouterr().err
    assert all(f"error: alignment.data: {tmp_path}/data/{number}.png: the image cannot be read" in errors for number in (5, 7))
    assert not (tmp_path / "run").exists()


def test_room_for_an_image_is_looked_for_before_anything_is_trained(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert parts.run(tmp_path / "run", "alignment.max_tokens=16", "instruction.max_tokens=32") == 2
    errors = capsys.readouterr().err
    assert "error: alignment.max_tokens: 16 tokens hold no image of 64 px, which takes 16; raise it to 17 or more" in errors
    assert "error: instruction.max_tokens: 32 tokens hold no image of 64 px, which takes 16 and the text around it 38; raise it" in errors
    assert not (tmp_path / "run").exists()


def test_a_text_of_the_system_takes_room_as_well(vlm) -> None:
    from amradio.downstream.vlm.conversations import Sample
    from amradio.downstream.vlm.lengths import missing_room

    turns = (("user", "what is it"), ("assistant", "red"))
    short, text = [Sample("a.png", turns)], [Sample(None, turns)]
    long = [Sample("a.png", (("system", "answer briefly " * 99), *turns))]
    assert missing_room(vlm, short, 64, is_chat=True) is None
    assert missing_room(vlm, long, 64, is_chat=True) is not None
    assert missing_room(vlm, text, 16, is_chat=True) is None


@pytest.mark.parametrize(("step", "should_save", "is_logged"), [(3, False, False), (3, True, True), (9, False, True)])
def test_the_loss_is_seen_before_anything_is_saved(step: int, should_save: bool, is_logged: bool) -> None:
    from amradio.downstream.vlm.settings import AlignmentSettings, ConversationsSettings
    from amradio.downstream.vlm.trainer import Reporter, Stage
    from amradio.engine.distributed import Processes
    from amradio.engine.log import Log
    from amradio.interruption import Stop

    settings = AlignmentSettings(data=ConversationsSettings(annotations="a", images="b"))
    reporter = Reporter(Stage("alignment", settings, [], 0, 9), Log(), Stop(), Processes(torch.device("cpu")))
    control = SimpleNamespace(should_save=should_save, should_training_stop=False, should_log=False)
    reporter.on_step_end(None, SimpleNamespace(global_step=step), control)
    assert control.should_log == is_logged


# --- checkpoints


def write_checkpoint(folder: Path) -> Path:
    from amradio.downstream.vlm.checkpoints import seal

    folder.mkdir(parents=True)
    (folder / "scheduler.pt").write_bytes(b"a scheduler")
    seal(folder)
    return folder


def test_a_checkpoint_that_was_not_written_to_its_end_is_none(tmp_path: Path) -> None:
    from amradio.downstream.vlm.checkpoints import newest, remove_unfinished, step_of

    assert newest(tmp_path) is None
    whole = write_checkpoint(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"half of")
    (tmp_path / "checkpoint-old").mkdir()
    assert newest(tmp_path) == whole
    assert step_of(whole) == 9
    assert remove_unfinished(tmp_path) == ["checkpoint-10"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-9", "checkpoint-old"]


@pytest.mark.parametrize("damage", ["cut", "gone", "list"])
def test_a_checkpoint_that_has_changed_is_refused(damage: str, tmp_path: Path) -> None:
    from amradio.downstream.vlm.checkpoints import newest

    write_checkpoint(tmp_path / "checkpoint-9")
    last = write_checkpoint(tmp_path / "checkpoint-10")
    file = last / ("sha256.json" if damage == "list" else "scheduler.pt")
    file.unlink() if damage == "gone" else file.write_bytes(file.read_bytes()[:5])
    message = rf"{file}: this checkpoint cannot be read: .*; delete the folder {last} to resume from checkpoint-9"
    with pytest.raises(UserError, match=message):
        newest(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-9")
    with pytest.raises(UserError, match="to start this stage again"):
        newest(tmp_path)


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_no_half_of_a_checkpoint(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*given: object, **rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    words = ("instruction=null", "alignment.epochs=0.3")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)  # that of the optimizer, after the weights
        assert parts.run(tmp_path / "run", *words) == 2
    assert f"error: {tmp_path}/run: cannot write (No space left on device); the disk is full: free some space" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "alignment").glob("checkpoint-*"))
    assert parts.run(tmp_path / "run", *words) == 0


# --- folders


def changed(**keys: Any) -> Callable[[Path], None]:
    """Other values in config.json; those of `vision` in its part of the tower."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        content = json.loads(file.read_text())
        content["vision_config"].update(keys.get("vision", {}))
        file.write_text(json.dumps(content | {key: value for key, value in keys.items() if key != "vision"}))

    return change


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["multi_modal_projector.linear_1.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def normalising(folder: Path) -> None:
    file = folder / "processor_config.json"
    content = json.loads(file.read_text())
    content["image_processor"]["do_normalize"] = True
    file.write_text(json.dumps(content))


FAULTS = [
    (normalising, "its processor normalises images; the vision tower does so by itself"),
    (not_a_number, "the weights have values that are no numbers, first in '.*projector.linear_1.bias'"),
    (lambda folder: (folder / "chat_template.jinja").write_text("{{ broken"), "its chat template cannot be used: .*; copy chat_template"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), "there is no chat template; copy chat_template.jinja there"),
    (changed(image_token_index=5), "image_token_index is 5 in config.json, and '<image>' is another token"),
    (changed(vision={"patch_size": 8}), "vision_config.patch_size is 8 in config.json, of this student it is 16"),
    (changed(vision={"packs": False}), "vision_config.packs is False in config.json"),
    (changed(vision={"hidden_size": 7}), "the weights have other shapes than config.json states, 1 of them, first '.*linear_1.weight'"),
    (changed(vision={"head": "clip"}), "vision_config.head: there is no 'clip'"),
    (changed(vision={"network": {}}), "config.json: vision_config.network.student: this key is required and missing"),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_folder_whose_parts_are_none_together_is_refused(damage: Callable[[Path], object], message: str, vlm, tmp_path: Path) -> None:
    from amradio.downstream.vlm.files import load_vlm, write_vlm

    folder = tmp_path / "folder"
    write_vlm(vlm, folder, "# A model")
    load_vlm(folder)
    damage(folder)
    with pytest.raises(UserError, match=rf"{folder}.*{message}"):
        load_vlm(folder)
