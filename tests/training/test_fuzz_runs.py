"""Damaged run folders, teachers, shards and annotation files, drawn by seed, for `distill` and `evaluate`: refused with messages or read
rightly, nothing in them run, and nothing lost that was there.

AMRADIO_FUZZ_FILES (300) damages are tried in at most AMRADIO_FUZZ_SECONDS (30; 0 for all of them), from AMRADIO_FUZZ_FIRST (0) on.
"""

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import data_folders
import processes
import runs
import tiny
from amradio.yaml12 import write_yaml
from damage import Mark, damage, put_back
from evaluations import add_tokenizer

pytestmark = pytest.mark.slow

FILES = int(os.environ.get("AMRADIO_FUZZ_FILES", "300"))
SECONDS = float(os.environ.get("AMRADIO_FUZZ_SECONDS", "30"))
FIRST = int(os.environ.get("AMRADIO_FUZZ_FIRST", "0"))
LIMIT = 120.0
"""Seconds of one command on a busy machine."""
FLEETING = {"train.log", "environment.json", ".lock"}
"""Files of a run that a resume writes on."""
PARTS = ("run", "run", "teachers", "data", "labels")
"""What is damaged: one of a run's files as often as all others together is too seldom."""


class World(NamedTuple):
    """Everything that the commands read, in one folder, and a copy of it that stays as it is."""

    folder: Path
    original: Path
    finished: dict[str, torch.Tensor]
    """The tensors of the run when it is resumed from undamaged files."""

    @property
    def run(self) -> Path:
        return self.folder / "run"


def make_labels(folder: Path) -> None:
    """COCO captions and instances, maps of classes, and folders of classes, of the same few pictures."""
    draws = np.random.default_rng(0)
    for name in ("images", "labels", "classes/cat", "classes/dog"):
        (folder / name).mkdir(parents=True)
    images, captions, objects = [], [], []
    for number in range(6):
        name = f"{number}.png"
        picture = Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        picture.save(folder / "images" / name)
        picture.save(folder / "classes" / ("cat" if number % 2 else "dog") / name)
        Image.fromarray(draws.integers(0, 2, (32, 32), dtype=np.uint8)).save(folder / "labels" / name)
        images.append({"id": number, "file_name": name, "height": 32, "width": 32})
        captions.append({"id": number, "image_id": number, "caption": f"a photo of thing {number}"})
        corners = [4.0, 4.0, 20.0 + number, 4.0, 20.0 + number, 24.0, 4.0, 24.0]
        box = [4, 4, 16 + number, 20]
        objects.append(
            {"id": number, "image_id": number, "category_id": 1, "area": 320, "bbox": box, "iscrowd": 0, "segmentation": [corners]}
        )
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "classes.json").write_text(json.dumps({"classes": ["ground", "cat"], "ignore_index": 255}))
    labelled = {"type": "images_labels", "path": str(folder)}
    classes = {"type": "class_folder", "path": str(folder / "classes")}
    evaluations = {
        "k-NN": {"type": "knn", "database": classes, "queries": classes, "k": [1]},
        "words": {
            "type": "retrieval",
            "data": {"type": "coco_captions", "annotations": str(folder / "captions.json"), "images": str(folder / "images")},
        },
        "maps": {"type": "linear_segmentation", "train": labelled, "test": labelled, "schedule": {"type": "short", "steps": 2}},
        "masks": {
            "type": "promptable_segmentation",
            "data": {"type": "coco_instances", "annotations": str(folder / "instances.json"), "images": str(folder / "images")},
        },
    }
    (folder / "evaluation.yaml").write_text(write_yaml({"evaluations": evaluations, "device": "cpu"}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    pytest.importorskip("pycocotools")
    folder = tmp_path_factory.mktemp("world") / "now"
    folder.mkdir()
    teachers = {"clip": add_tokenizer(tiny.tiny_clip(folder / "teachers" / "clip")), "sam": tiny.tiny_sam(folder / "teachers" / "sam")}
    data_folders.make_shards(folder / "data", counts=(4, 4))
    make_labels(folder / "labels")
    recipe = {
        "data": {"train": {"type": "webdataset", "path": str(folder / "data" / "*.tar"), "shuffle_buffer": 4}, "num_workers": 0},
        "teachers": {name: {"type": name, "model": str(path)} for name, path in teachers.items()},
        "student": {"type": "vit", "dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "max_image_size": 64},
        "stages": [{"steps": 4, "partitions": [{"image_size": 32, "batch_size": 2}]}],
        "normalize": {"batches": 1},
        "evaluate": {"every": None},
        "engine": {"device": "cpu", "precision": "float32", "log_every": 1, "checkpoint_every": 2, "keep": 2, "ema": 0.9},
        "out": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(write_yaml(recipe))
    ended = command(folder, "distill", folder / "recipe.yaml")
    assert ended.code == 0, ended.errors
    finished = runs.state(folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "step_000000004")
    (folder / "run" / "checkpoints" / "last").unlink()
    (folder / "run" / "checkpoints" / "last").symlink_to("step_000000002")
    original = folder.parent / "original"
    put_back(original, folder)
    found = World(folder, original, finished)
    for resumed in (False, True):  # what is not damaged works
        ended = command(folder, *words_of("distill" if resumed else "evaluate", found))
        assert ended.code == 0, ended.errors
    assert same(runs.state(folder / "run"), finished)
    return found


def command(folder: Path, *words: object) -> processes.Ended:
    printed = folder.parent / "printed"
    return processes.start(*words, folder=printed, prelude=processes.limit_memory).wait(LIMIT)


def words_of(verb: str, world: World) -> list[object]:
    """evaluate: the run. distill: resumes the run. fresh: a new run."""
    if verb == "evaluate":
        return ["evaluate", world.run, world.folder / "labels" / "evaluation.yaml"]
    recipe = world.folder / "recipe.yaml"
    return ["distill", recipe] if verb == "distill" else ["distill", recipe, f"out={world.folder / 'fresh'}"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def fault(world: World, verb: str, part: str, hurt: Path, before: dict[str, bytes], ended: processes.Ended) -> str | None:
    """What is wrong with how a command ended. before: the files of the run, by their path in it."""
    if (world.folder.parent / "canary").exists():
        return "code of the file was run"
    if wrong := ended.fault():
        return wrong
    after = contents(world.run)
    if ended.code == 2 or verb != "distill":
        lost = [name for name, content in before.items() if after.get(name) != content and name not in FLEETING]
        if lost and not (verb == "distill" and set(lost) <= {str(hurt.relative_to(world.run)) if part == "run" else "", "metrics.jsonl"}):
            return f"changed or lost although it was refused, or only evaluated: {lost}"
    if ended.code == 0 and verb == "distill" and part == "run" and not same(runs.state(world.run), world.finished):
        return "it was resumed to another result"
    return None


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_mark_is_made_where_code_is_run(tmp_path: Path) -> None:
    torch.save({"state": Mark(tmp_path / "canary")}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "canary").is_dir()


def test_damaged_runs_teachers_and_data_are_refused_or_read(world: World) -> None:
    faults, codes, begun, done = [], {}, time.monotonic(), 0
    for number in range(FIRST, FIRST + FILES):
        draws = random.Random(f"runs/{number}")
        part = PARTS[number % len(PARTS)]
        verb = draws.choice({"run": ("distill", "evaluate"), "teachers": ("distill", "evaluate", "fresh")}.get(part, ("fresh", "distill")))
        verb = "evaluate" if part == "labels" else verb
        put_back(world.folder, world.original)
        file = draws.choice(sorted(path for path in (world.folder / part).rglob("*") if path.is_file() and path.name != "README.md"))
        how = damage(file, draws, world.folder.parent / "canary")
        what = f"{number}: {verb}, {how} of {file.relative_to(world.folder)}"
        before = contents(world.run)
        try:
            ended = command(world.folder, *words_of(verb, world))
            codes[verb, ended.code] = codes.get((verb, ended.code), 0) + 1
            found = fault(world, verb, part, file, before, ended)
        except AssertionError as error:  # it did not end
            found = str(error)
        if found:
            faults.append(f"{what}: {found}")
        done += 1
        if SECONDS and time.monotonic() - begun > SECONDS and done >= 5:
            break
    print(f"{done} damages in {time.monotonic() - begun:.0f} s, by command and exit code {codes}, {len(faults)} faults")
    assert not faults, "\n\n".join(faults)
