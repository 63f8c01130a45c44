"""Vision-language models trained by two processes: the numbers of one, one that writes, and the same command resumes."""

import json
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

import vlms
from amradio.__main__ import main
from processes import at_step_of_vlm, start_several, terminate_self

for name in ("trl", "peft", "datasets"):
    pytest.importorskip(name)

SHORT = ("alignment.epochs=0.05", "alignment.batch_size=2", "instruction.batch_size=2", "instruction.epochs=1")
"""A step of captions and four of questions, two samples each."""


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(tmp_path: Path) -> None:
    """Each takes one of the two samples of a step. Half of the questions have no picture: they give the projector of their process no
    gradient, which DDP must expect, recomputed activations or not.
    """
    parts = vlms.write_student(tmp_path / "student"), vlms.write_language_model(tmp_path / "language_model"), tmp_path / "data"
    words = ["vlm", "train", *vlms.words(*parts[:2], vlms.write_conversations(parts[2])), *SHORT]
    words += ["engine.log_every=1", "engine.gradient_checkpointing=true"]
    questions = json.loads((parts[2] / "questions.json").read_text())
    chosen = [[row for row in questions if ("image" in row) == has_image][:4] for has_image in (True, False)]
    (parts[2] / "questions.json").write_text(json.dumps([row for pair in zip(*chosen, strict=True) for row in pair]))
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*words, f"out={one}"]) == 0
    stop = partial(at_step_of_vlm, "instruction", 2, terminate_self)
    stopped = [running.wait() for running in start_several(2, *words, f"out={two}", folder=tmp_path / "stopped", preludes={1: stop})]
    assert [ended.code for ended in stopped] == [143, 143], [ended.errors for ended in stopped]
    assert not (two / "model").exists()
    ended = [running.wait() for running in start_several(2, *words, f"out={two}", folder=tmp_path / "resumed")]
    assert [process.code for process in ended] == [0, 0], [process.errors for process in ended]
    assert "resuming" in ended[0].output
    assert ended[1].output == "", "one process prints"
    assert {file.relative_to(two) for file in two.rglob("*")} == {file.relative_to(one) for file in one.rglob("*")}
    assert [row.keys() for row in rows(two)] == [row.keys() for row in rows(one)]
    for mine, theirs in zip(rows(two), rows(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    alone, together = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    assert max(float((alone[key] - together[key]).abs().max()) for key in alone) < 1e-4
