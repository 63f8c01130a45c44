"""The student that comes with the package."""

import pytest
import torch
import torch.nn.functional as F

import amradio
from amradio.data.scenes import CLASS_NAMES, Scenes
from amradio.formats.embedded_models import embedded_models
from amradio.formats.model_folder import write_folder
from amradio.licences import RESTRICTED
from amradio.network import NetworkConfig

NAME = "embedded/quickstart"


@pytest.fixture(scope="module")
def model():
    return amradio.load(NAME)


def test_it_knows_scenes_that_it_was_not_trained_on(model):
    scenes = [Scenes(40, seed=101).scene(number) for number in range(40)]
    summary = model.features([scene.image for scene in scenes], "clip")["clip"].summary
    texts = model.text("clip")([f"a photo of a {name} object" for name in CLASS_NAMES])
    answers = (F.normalize(summary, dim=1) @ texts.T).argmax(1)
    assert (answers == torch.tensor([scene.label for scene in scenes])).float().mean() > 0.85
    assert model.heads == ("clip", "dino", "sam")


def test_its_config_says_what_it_is(model):
    assert NAME in embedded_models()
    assert not {ancestor.implies for ancestor in model.config.distilled_from} & set(RESTRICTED)
    assert {ancestor.source for ancestor in model.config.distilled_from} == {"embedded clip", "embedded dino", "embedded sam"}
    assert model.config.training.step == model.config.training.num_steps


@pytest.mark.parametrize("name", ["embedded/quickstrat", "embedded/", "embedded/../embedded/quickstart", "embedded/nothing"])
def test_another_name_is_refused_with_those_that_there_are(name):
    with pytest.raises(amradio.UserError, match=rf"{name}: the package has no such model; .*embedded/quickstart"):
        amradio.load(name)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = NetworkConfig.model_validate({"student": {"type": "vit", "dim": 16, "depth": 1, "num_heads": 1}, "num_summaries": 1})
    write_folder(tmp_path / "embedded" / "quickstart", config, config.build(), {"step": 1, "num_steps": 1, "data": "scenes"})
    assert amradio.load(NAME).heads == ()
