"""Reading a run folder, and what makes two runs the same."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from amradio.engine.checkpoint import Checkpoints
from amradio.run_folder import RunFolder


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, less what a clock measured."""
    timing = ("_share", "images_per_second", "tokens_per_second", "memory_gib")
    return [{key: value for key, value in line.items() if not key.endswith(timing)} for line in RunFolder(folder).records()]


def losses(folder: Path) -> dict[int, float]:
    """Loss by step; each step once."""
    rows = [row for row in metrics(folder) if "loss" in row]
    assert len({row["step"] for row in rows}) == len(rows), "a step is logged twice"
    return {row["step"]: row["loss"] for row in rows}


def state(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint, the optimizer's included, and of the model folder."""
    found = Checkpoints(folder / "checkpoints", 1).load()
    assert found is not None
    flat = {f"{file}/{key}": value for file, values in found.tensors.items() for key, value in values.items()}
    for number, moments in found.other["optimizer"]["state"].items():
        flat |= {f"optimizer/{number}/{key}": value for key, value in moments.items()}
    return flat | {f"model/{key}": value for key, value in load_file(folder / "model" / "model.safetensors").items()}


def assert_same(first: Path, second: Path) -> None:
    """Bit for bit: weights, averages, optimizer, handed-over model, and every logged number."""
    a, b = state(first), state(second)
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, first {different[0]}"
    assert metrics(first) == metrics(second)
    assert len(list((first / "checkpoints").glob("step_*"))) == len(list((second / "checkpoints").glob("step_*")))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name, time and content of every file, to see that nothing was touched."""
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}
