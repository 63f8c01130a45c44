"""A tiny student, a detector that was trained on it, and photographs with objects, for all tests of this folder."""

from pathlib import Path

import pytest
import torch

import data_folders
from amradio.__main__ import main
from amradio.formats.model_folder import write_folder
from amradio.network import NetworkConfig
from detectors import VIT, WORDS


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    config = NetworkConfig(student=VIT, num_summaries=1)
    write_folder(folder, config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    return folder


@pytest.fixture(scope="session")
def trained(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with low-rank additions, from the command line."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    assert main(["detect", "train", f"model={student}", *WORDS, "backbone=lora", f"out={out}"]) == 0
    return out


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`instances.json` and `images/`: three pictures with objects of two categories, and one without."""
    return data_folders.make_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def coco_of_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes on which `trained` was scored, in the same layout."""
    return data_folders.make_coco_of_scenes(tmp_path_factory.mktemp("coco_of_scenes"))
