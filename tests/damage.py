"""Damaged files, drawn by seed; and a pickle that leaves a mark where it is run."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from amradio.yaml12 import parse_yaml, write_yaml

ODD = [None, -1, 0, 10**9, 10**30, 1e308, "x", "", [], {}, [[]], True, "../../../etc/passwd", "é" * 300]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
WITH_KEYS = (".json", ".yaml")


class Mark:
    """Makes the folder `canary` where it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.canary,)


def damage(file: Path, draws: random.Random, canary: Path | None = None) -> str:
    """Damages a file in place; says how. canary: what `Mark` makes; None for no files with code in them."""
    content = file.read_bytes()
    kinds = ["cut", "flip", "zero", "swap", "empty", "lfs", *(["value", "key"] if file.suffix in WITH_KEYS else ["flip", "header"])]
    kinds += ["code", "code in torch.save", "gone", "folder", "nowhere"] if canary else []
    how = draws.choice(kinds)
    changed = bytearray(content)
    if not content and how in ("cut", "flip", "header", "zero", "swap"):
        how = "lfs"
    if how in ("gone", "folder", "nowhere"):
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "nowhere":
            file.symlink_to("nowhere-at-all")
        return how
    if how == "code in torch.save":
        assert canary is not None
        torch.save({"state": Mark(canary)}, file)
        return how
    if how == "cut":
        changed = changed[: draws.randrange(len(changed))]
    elif how == "flip":
        for _ in range(draws.choice([1, 1, 8])):
            changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    elif how == "header":
        changed[draws.randrange(min(len(changed), 600))] = draws.randrange(256)
    elif how == "zero":
        start = draws.randrange(len(changed))
        changed[start : start + 64] = bytes(len(changed[start : start + 64]))
    elif how == "swap":
        middle = draws.randrange(len(changed))
        changed = changed[middle:] + changed[:middle]
    elif how in ("empty", "lfs"):
        changed = bytearray(b"" if how == "empty" else LFS)
    elif how == "code":
        assert canary is not None
        changed = bytearray(pickle.dumps(Mark(canary)))
    else:
        changed = bytearray(_changed_text(file, how, draws))
    file.write_bytes(bytes(changed))
    return how


def _changed_text(file: Path, how: str, draws: random.Random) -> bytes:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return json.dumps(_mutated(json.loads(text), how, draws)).encode()
    return write_yaml(_mutated(parse_yaml(text, str(file)), how, draws)).encode()


def _mutated(value: object, how: str, draws: random.Random) -> object:
    """A value with one leaf replaced, or one key dropped."""
    if isinstance(value, dict) and value:
        key = draws.choice(sorted(value))
        if how == "key" and (not isinstance(value[key], dict) or draws.random() < 0.3):
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: _mutated(value[key], how, draws)}
    if isinstance(value, list) and value and draws.random() < 0.7:
        place = draws.randrange(len(value))
        return [*value[:place], _mutated(value[place], how, draws), *value[place + 1 :]]
    return draws.choice(ODD)


def put_back(folder: Path, original: Path) -> None:
    """Makes a folder what the original is, links included."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder, symlinks=True)
