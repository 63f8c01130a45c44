"""The students that come with the package."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import amradio
from amradio.data.scenes import CLASS_NAMES, Scenes
from amradio.formats.embedded_models import FOLDER, embedded_models
from amradio.formats.model_folder import write_folder
from amradio.licences import RESTRICTED
from amradio.network import NetworkConfig
from amradio.teachers import EmbeddedSettings, catalogue

NAME = "embedded/quickstart"
PHOTOS = "embedded/photos"
CALTECH = Path(__file__).parents[3] / "shared" / "data" / "caltech101"


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
    with pytest.raises(amradio.UserError, match=rf"{name}: the package has no such model; .*embedded/(quickstart|photos)"):
        amradio.load(name)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = NetworkConfig.model_validate({"student": {"type": "vit", "dim": 16, "depth": 1, "num_heads": 1}, "num_summaries": 1})
    write_folder(tmp_path / "embedded" / "quickstart", config, config.build(), {"step": 1, "num_steps": 1, "data": "scenes"})
    assert amradio.load(NAME).heads == ()


def test_the_student_for_photographs_is_small_and_a_teacher():
    model, teacher = amradio.load(PHOTOS), EmbeddedSettings(name="photos").build()
    assert PHOTOS in embedded_models()
    assert sum(path.stat().st_size for path in (FOLDER / "photos").iterdir()) < 8e6
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert [ancestor.licence for ancestor in model.config.distilled_from] == ["Apache-2.0"]
    assert "CC BY 4.0" in model.config.training.data
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    ours, theirs = model(images), teacher(images)
    assert torch.allclose(ours.summary, theirs.summary)
    (known,) = (row for row in catalogue() if (row.kind, row.model) == ("embedded", "photos"))
    assert (known.summary_dim, known.spatial_dim, known.patch_size) == (teacher.summary_dim, teacher.spatial_dim, teacher.patch_size)
    assert known.million_parameters == round(sum(p.numel() for p in teacher.network.student.parameters()) / 1e6, 2)
    assert known.licence == teacher.licence == "Apache-2.0"


@pytest.mark.slow
@pytest.mark.skipif(not CALTECH.is_dir(), reason="the photographs of caltech101 are not here")
def test_it_knows_photographs_that_it_was_not_trained_on(tmp_path):
    """Ten photographs of every fifth class to look up, three to ask about; chance is 5 %."""
    for part, count in (("train", 10), ("val", 3)):
        for folder in sorted((CALTECH / part).iterdir())[::5]:
            (tmp_path / part / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:count]:
                (tmp_path / part / folder.name / file.name).symlink_to(file)
    train, val = ({"type": "class_folder", "path": str(tmp_path / part)} for part in ("train", "val"))
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"image_size: 96\nevaluations: {{near: {{type: knn, database: {train}, queries: {val}, k: [5], models: [student]}}}}\n"
    )
    result = amradio.evaluate(PHOTOS, str(suite), "device=cpu", "num_workers=0")["near"]
    assert result.rows["student"]["k5"] > 65 > 1.5 * result.floors["k5"]
