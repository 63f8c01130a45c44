"""What many tests share: one thread, a folder of pictures, tiny teachers in the original formats, and a recipe that runs in a second."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import data_folders
import processes
import tiny
from amradio.recipe import Recipe
from amradio.yaml12 import write_yaml

torch.set_num_threads(1)


MANY = 200


def pytest_runtest_setup() -> None:
    """No test sees the width of a terminal that it has not set: GNU readline, which pytest loads, writes it into the environment."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts the server of processes before many tests: a loader that came first would start one that has imported nothing."""
    if len(session.items) > MANY and not session.config.option.collectonly:
        processes.start_server()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small JPEGs in three folders."""
    path = tmp_path_factory.mktemp("pictures")
    data_folders.make_folder(path, count=24)
    return path


@pytest.fixture(scope="session")
def teacher_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random teachers of the original architectures, saved as on the hub: 32 px, any multiple of 14 px, 64 px."""
    path = tmp_path_factory.mktemp("teachers")
    return {"clip": tiny.tiny_clip(path / "clip"), "dino": tiny.tiny_dinov2(path / "dino"), "sam": tiny.tiny_sam(path / "sam")}


@pytest.fixture
def base(pictures: Path, teacher_folders: dict[str, Path], tmp_path: Path) -> dict:
    """A recipe as a mapping: three teachers, 12 steps of 4 images, no page at the end, which would be a quarter of a short run's time."""
    return {
        "data": {
            "train": {"type": "folder", "path": str(pictures)},
            "val": {"type": "folder", "path": str(pictures)},
            "num_workers": 0,
        },
        "teachers": {
            "clip": {"type": "clip", "model": str(teacher_folders["clip"])},
            "dino": {"type": "dinov2", "model": str(teacher_folders["dino"])},
            "sam": {"type": "sam", "model": str(teacher_folders["sam"]), "summary_weight": 0},
        },
        "student": {"type": "vit", "dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "max_image_size": 64, "num_registers": 1},
        "stages": [{"steps": 12, "partitions": [{"image_size": 32, "batch_size": 4}]}],
        "normalize": {"batches": 2},
        "evaluate": {"every": 6, "batches": 1},
        "engine": {"device": "cpu", "precision": "float32", "log_every": 1, "checkpoint_every": 4, "report": False},
        "out": str(tmp_path / "run"),
    }


@pytest.fixture
def recipe_file(base: dict, tmp_path: Path) -> Path:
    """`base` as a file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(write_yaml(base))
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Callable[..., Recipe]:
    """`recipe("seed=1", "out=...")`: the base recipe with some words."""
    return lambda *words: Recipe.load(str(recipe_file), *words)


@pytest.fixture
def amradio(tmp_path: Path) -> Callable[..., processes.Ended]:
    """Runs the command line in a process of its own: `amradio("distill", ...)`."""

    def run(*words: object, prelude: Callable[[], None] | None = None, **environment: str) -> processes.Ended:
        return processes.start(*words, folder=tmp_path / "printed", prelude=prelude, **environment).wait()

    return run
