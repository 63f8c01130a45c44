"""What the two recipes named after AM-RADIO say of themselves, and what the documents say of the sizes that teachers see."""

import pytest
import torch

import tiny
from amradio.batch import Batch
from amradio.distillation.balance import FixedSettings
from amradio.distillation.task import Distillation, Objective
from amradio.distillation.views import Partition
from amradio.recipe import Recipe
from amradio.recipes import shipped
from amradio.teachers import Dinov2Settings
from amradio.training.initialization import preferred_size

FILES = {found.path.stem: found.path for found in shipped() if found.kind == "recipe"}


@pytest.fixture(params=["am_radio_paper", "am_radio_vits16"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return Recipe.load(str(FILES[request.param]))


def test_targets_losses_and_weights_are_the_papers(recipe: Recipe) -> None:
    assert (recipe.normalize.summary.type, recipe.normalize.spatial.type) == ("none", "none"), "raw teacher features"
    assert recipe.loss.summary.type == "cosine"
    spatial = recipe.loss.spatial
    assert (spatial.type, spatial.cosine, spatial.smooth_l1, recipe.loss.grid) == ("match", 0.9, 0.1, "larger")
    assert {name: weight for name, weight in recipe.weights().items() if weight != 1} == {"sam/summary": 0}
    assert recipe.balance.type == "fixed"
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (1e-3, 0.02)


def test_the_papers_stages() -> None:
    recipe = Recipe.load(str(FILES["am_radio_paper"]))
    first, second = recipe.stages
    assert (first.steps, second.steps) == (300_000, 300_000)
    assert [(each.image_size, each.batch_size) for each in first.partitions] == [(256, 1024)]
    assert [(each.image_size, each.batch_size, each.weight) for each in second.partitions] == [(432, 1024, 0.5), (1024, 128, 0.5)]
    assert first.partitions[0].weight == sum(each.weight for each in second.partitions) == 1, "a mean over partitions, as DDP makes it"
    assert second.partitions[1].teachers == ["sam"]
    assert recipe.teachers["dino"].input_size == 224
    assert recipe.data.crop_ratio == (1.0, 1.0)
    assert recipe.data.flip == 0
    assert (recipe.student.size, recipe.student.patch_size) == ("huge", 16)
    assert recipe.heads.spatial.hidden_dim == recipe.heads.summary.hidden_dim == 1536


def test_the_papers_model_prefers_the_size_of_its_table() -> None:
    """AM-RADIO, Table 1: RADIO-ViT-H/16 is measured at 432 px, though SAM's partition is of 1024 px."""
    recipe = Recipe.load(str(FILES["am_radio_paper"]))

    class Head:
        def __init__(self, summary: object):
            self.summary = summary

    heads = {name: Head(None if name == "sam" else "there") for name in recipe.teachers}
    assert preferred_size(recipe.stages, heads) == 432  # type: ignore[arg-type]


def test_what_differs_stands_at_the_top() -> None:
    words = {
        "am_radio_paper": (
            "spectral",
            "ViTDet",
            "mirroring",
            "beta",
            "weight 0.5",
            "clipping",
            "clipped",
            "position",
            "at random",
            "restarted",
        ),
        "am_radio_vits16": ("raw targets", "spectral", "ViTDet", "mirroring", "beta", "clipping", "random weights", "1024 px", "378"),
    }
    for name, expected in words.items():
        head = "\n".join(line for line in FILES[name].read_text().splitlines() if line.startswith("#"))
        assert [word for word in expected if word not in head] == [], name


@pytest.mark.parametrize(("recipe_name", "image_size", "sees"), [("am_radio_vits16", 432, 434), ("local_teachers", 256, 252)])
def test_a_teacher_of_several_sizes_sees_the_one_nearest_to_the_student(recipe_name, image_size, sees, tmp_path) -> None:
    """Beside SAM, whose 1024 px the crops are read at: in training, in the pictures of the first batch and in the text of the recipe."""
    teacher = Dinov2Settings(model=str(tiny.tiny_dinov2(tmp_path))).build()
    text = FILES[recipe_name].read_text()
    assert f"{sees} px" in text
    assert Recipe.load(str(FILES[recipe_name])).stages[0].partitions[0].image_size == image_size
    seen: list[tuple[int, ...]] = []
    teacher.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[-2:])))
    network = torch.nn.Module()
    network.heads = torch.nn.ModuleDict()
    network.student = torch.nn.Module()
    network.student.patch_size = 16
    task = Distillation(network, {"dino": teacher}, Objective({}, FixedSettings().build({})))
    images = torch.zeros(1, 3, 1024, 1024, dtype=torch.uint8)
    partition = Partition("0.0", ("dino",), (image_size, image_size))
    task.prepare(Batch(images, (), torch.zeros(len(images), 8)), partition)
    assert seen == [(sees, sees)]
    assert task.views.of(images, partition).teachers["dino"].images.shape[-2:] == (sees, sees)
