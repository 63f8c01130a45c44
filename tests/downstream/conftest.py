"""A tiny student, a detector that was trained on it, photographs with objects, and a tiny vision-language model with its data."""

from pathlib import Path

import pytest
import torch

import amradio
import data_folders
import vlms
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


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> vlms.Parts:
    """A ViT, a language model, and conversations on pictures of one colour."""
    folder = tmp_path_factory.mktemp("vlm")
    written = vlms.write_student(folder / "student"), vlms.write_language_model(folder / "language_model")
    return vlms.Parts(*written, vlms.write_conversations(folder / "data"))


@pytest.fixture
def vlm(parts: vlms.Parts):
    """The two put together; its projector has random weights."""
    from amradio.downstream.vlm.assembly import assemble

    torch.manual_seed(0)
    return assemble(amradio.load(parts.student), None, 64, str(parts.language_model))
