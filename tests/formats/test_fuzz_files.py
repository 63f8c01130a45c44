"""Damaged files, drawn by seed: each is refused with one message or read rightly, in bounded time and memory, and nothing in it is run.

AMRADIO_FUZZ_FILES (40) files are tried in at most AMRADIO_FUZZ_SECONDS (60; 0 for all of them), each in a fork of this process.
"""

import contextlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import tarfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

import amradio
import data_folders
import tiny
from amradio.__main__ import main
from amradio.config import validate
from amradio.errors import UserError
from amradio.formats.model_folder import write_folder
from amradio.heads import MlpHeadSettings
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students import VitSettings
from amradio.teachers import TEACHERS
from damage import damage

pytestmark = pytest.mark.slow

FILES = int(os.environ.get("AMRADIO_FUZZ_FILES", "40"))
SECONDS = float(os.environ.get("AMRADIO_FUZZ_SECONDS", "60"))
LIMIT = 60.0
"""Seconds for one file on a busy machine."""
MEMORY = 4 << 30
"""Bytes that a fork may map beyond what this process has."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, its checkpoint, teachers and a shard of pictures."""
    path = tmp_path_factory.mktemp("originals")
    head = HeadConfig(summary=HeadPart(head=MlpHeadSettings(hidden_dim=8), dim=8))
    student = VitSettings(dim=32, depth=2, num_heads=2, patch_size=8, max_image_size=64)
    config = NetworkConfig(student=student, num_summaries=1, heads={"clip": head}, image_size=32)
    write_folder(path / "model", config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    with contextlib.redirect_stdout(io.StringIO()):
        amradio.export(path / "model", "torchhub", path / "torchhub" / "m.pth.tar")
        amradio.export(path / "model", "hf", path / "hf")
        amradio.export(path / "model", "transformers", path / "transformers")
        amradio.export(path / "model", "timm", path / "timm_file" / "m.safetensors")
    for kind in ("clip", "dinov2", "sam", "timm", "open_clip"):
        tiny.BUILDERS[kind][0](path / "teachers" / kind)
    data_folders.make_folder(path / "pictures", count=6)
    (path / "shards").mkdir()
    with tarfile.open(path / "shards" / "a.tar", "w") as shard:
        for number, file in enumerate(sorted(path.glob("pictures/**/*.jpg"))):
            shard.add(file, f"{number:03d}.jpg")
    return path


def use(folder: Path, name: str) -> None:
    """Loads, embeds with, or starts to distil from what was damaged."""
    images = torch.rand(1, 3, 32, 32)
    if name == "shards":
        words = [
            "embed",
            str(folder.parent / "whole"),
            str(folder / "a.tar"),
            "--out",
            str(folder / "out.safetensors"),
            "--num-workers",
            "0",
        ]
        code = main(words)
    elif name.startswith("teachers/"):
        kind = name.split("/")[1]
        settings = next(each for each in TEACHERS if each.model_fields["type"].default == kind)
        teacher = validate(settings, {"model": str(folder)}).build()
        teacher(teacher.prepare(images))
        code = 0
    else:
        path = folder if (folder / "config.json").exists() or name in ("model", "hf", "transformers") else next(folder.iterdir())
        model = amradio.load(path)
        model(torch.rand(1, 3, *model.nearest_size(32, 32)), heads=model.heads)
        code = 0
    if code not in (0, 2):
        raise AssertionError(f"exit code {code}")


def child(pipe: Connection, folder: Path, name: str) -> None:
    """Runs in a fork: sends what became of it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            use(folder, name)
        pipe.send("" if "Traceback" not in said.getvalue() else said.getvalue())
    except UserError as error:
        pipe.send("" if 0 < len(str(error)) < 6000 else f"a message of {len(str(error))} characters")
    except BaseException:
        pipe.send(traceback.format_exc())


def outcome(folder: Path, name: str, run: Callable[[Connection, Path, str], None]) -> str:
    """Empty where all went well; else the traceback, or that it did not end."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(theirs, folder, name))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(LIMIT) else f"no end within {LIMIT:.0f} s"
    except EOFError:
        return f"it ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python's about forks of a process with threads
def test_damaged_files_are_refused_or_read(originals: Path, tmp_path: Path):
    draws = random.Random(20260)
    names = ["model", "torchhub", "hf", "transformers", "timm_file", "shards"]
    names += [f"teachers/{kind}" for kind in ("clip", "dinov2", "sam", "timm", "open_clip")]
    shutil.copytree(originals / "model", tmp_path / "whole")
    failed, begun, tried = {}, time.monotonic(), 0
    for number in range(FILES):
        name = names[number % len(names)]
        folder = tmp_path / "damaged"
        shutil.copytree(originals / name, folder)
        file = draws.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"))
        how = damage(file, draws)
        found = outcome(folder, name, child)
        if found:
            failed[f"{number}: {name}, {how} of {file.name}"] = found
        shutil.rmtree(folder)
        tried += 1
        if SECONDS and time.monotonic() - begun > SECONDS:
            break
    assert tried >= min(FILES, 5)
    assert not failed, "\n\n".join(f"{key}\n{value[-1500:]}" for key, value in failed.items())
