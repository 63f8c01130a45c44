"""A student of one's own: a module with one line of adapter is trained, resumed, saved, loaded and evaluated; what goes wrong is said."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import amradio
from amradio import UserError
from amradio.features import Features
from amradio.students import CustomStudent, Student
from runs import assert_same, losses

WORDS = ("student={type: custom}", "stages.0.steps=4", "evaluate.every=null", "engine.checkpoint_every=2")


def convolutions(width: int = 12) -> nn.Module:
    """Cells of 8 px, 12 channels."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.GELU(), nn.Conv2d(width, 12, 2, 2))


class Interruption:
    """Stops the training at one of its forward passes."""

    def __init__(self, at: int):
        self.left = at

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.left -= module.training
        if self.left == 0:
            raise RuntimeError("interrupted")


class Pair(nn.Module):
    """Two summaries of 5 channels, and a map of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 8, 8)
        self.summarise = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.layer(images)
        return self.summarise(cells.mean((2, 3))), cells


class Mine(Student):
    """A subclass, for those who need all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.summary_dim, self.spatial_dim, self.num_summaries = 16, 4, 4, 1
        self.layer = nn.Conv2d(3, 4, 16, 16)

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        return max(16, height // 16 * 16), max(16, width // 16 * 16)

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        cells = self.layer(self.condition(images)).permute(0, 2, 3, 1)
        return Features(cells.mean((1, 2)), cells)


def test_a_module_is_a_student() -> None:
    module = convolutions()
    student = CustomStudent(module, patch_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert (student.summary_dim, student.spatial_dim, student.num_summaries) == (12, 12, 1)
    assert student.nearest_size(50, 3) == (48, 8)
    assert module.training  # looking at it left it as it was
    assert torch.equal(module[1].running_mean, torch.zeros(12))
    images = torch.rand(2, 3, 16, 24)
    found, wanted = student.eval()(images), module((images - 0.5) / 0.25)
    torch.testing.assert_close(found.spatial, wanted.permute(0, 2, 3, 1))
    torch.testing.assert_close(found.summary, wanted.mean((2, 3)))
    with pytest.raises(UserError, match="17x24 px is not a size this student takes; the nearest is 16x24 px"):
        student(torch.rand(1, 3, 17, 24))
    found = CustomStudent(Pair(), patch_size=8, num_summaries=2)(images)
    assert found.summary.shape == (2, 10)
    assert CustomStudent(Pair(), patch_size=8, step=32).nearest_size(50, 3) == (64, 32)


def test_a_module_that_does_not_answer_as_it_should_is_refused() -> None:
    with pytest.raises(UserError, match=r"the module's map is \[1, 12, 4, 6\]; with patch_size 16 it has to be \[1, D, 2, 3\]"):
        CustomStudent(convolutions(), patch_size=16)
    with pytest.raises(UserError, match=r"has to be .1, S. with S a multiple of num_summaries 3"):
        CustomStudent(Pair(), patch_size=8, num_summaries=3)
    with pytest.raises(UserError, match=r"the module failed on images .*answers with a map"):
        CustomStudent(nn.Linear(3, 4), patch_size=8)
    with pytest.raises(UserError, match="step 12 is no multiple of patch_size 8"):
        CustomStudent(convolutions(), patch_size=8, step=12)


@pytest.mark.slow
def test_it_is_trained_in_place_resumed_saved_and_loaded(recipe, tmp_path) -> None:
    settings = recipe(*WORDS)
    student = CustomStudent(convolutions(), patch_size=8)
    before = copy.deepcopy(student.state_dict())
    folder = amradio.distill(settings, student=student)
    assert not torch.equal(student.module[0].weight, before["module.0.weight"])
    assert sorted(losses(folder)) == [1, 2, 3, 4]

    with pytest.raises(UserError, match=r"student: a student of type 'custom' is an object .* amradio.load\(path, student="):
        amradio.load(folder)
    fresh = CustomStudent(convolutions(), patch_size=8)
    model = amradio.load(folder, student=fresh)
    assert model.network.student is fresh
    images = torch.rand(2, 3, 32, 40)
    torch.testing.assert_close(model(images), student.eval()(images), rtol=0, atol=0)
    assert model(images, heads=["sam"])["sam"].spatial.shape[:3] == (2, 4, 5)
    with pytest.raises(UserError, match=r"wrong shape: student\.module"):
        amradio.load(folder, student=CustomStudent(convolutions(width=16), patch_size=8))

    again = recipe(*WORDS, f"out={tmp_path / 'again'}")
    interrupted = CustomStudent(convolutions(), patch_size=8)
    interrupted.module.register_forward_pre_hook(Interruption(at=3))
    with pytest.raises(RuntimeError, match="interrupted"):
        amradio.distill(again, student=interrupted)
    assert_same(folder, amradio.distill(again, student=CustomStudent(convolutions(), patch_size=8)))


@pytest.mark.slow
def test_it_is_evaluated(recipe, tmp_path) -> None:
    folder = amradio.distill(recipe(*WORDS), student=Mine())
    scenes = {"type": "scenes", "length": 8, "seed": 1}
    (tmp_path / "evaluation.yaml").write_text(json.dumps({"evaluations": {"agreement": {"type": "agreement", "data": scenes}}}))
    found = amradio.evaluate(folder, str(tmp_path / "evaluation.yaml"), "device=cpu", student=Mine())
    assert {"student/clip", "student/dino", "student/sam"} <= set(found["agreement"].rows)


@pytest.mark.slow
def test_a_summary_for_each_teacher(recipe) -> None:
    words = (*WORDS, "student={type: custom, summaries: per_teacher}", "stages.0.steps=1")
    folder = amradio.distill(recipe(*words), student=CustomStudent(Pair(), patch_size=8, num_summaries=2))
    model = amradio.load(folder, student=CustomStudent(Pair(), patch_size=8, num_summaries=2))
    assert [model.config.heads[name].slot for name in ("clip", "dino")] == [0, 1]
    assert model.summary_dim == 10


@pytest.mark.slow
def test_an_object_and_its_place_belong_together(recipe, tmp_path) -> None:
    with pytest.raises(UserError, match=r"student: a student of type 'custom' is an object that only Python can pass"):
        amradio.distill(recipe(*WORDS))
    with pytest.raises(UserError, match="an object was passed, but the student is of type 'vit'"):
        amradio.distill(recipe(), student=Mine())
    with pytest.raises(UserError, match=r"found Sequential; wrap a module as amradio.students.CustomStudent\(module"):
        amradio.distill(recipe(*WORDS), student=convolutions())
    with pytest.raises(UserError, match="the object has 2 summaries, the recipe wants 1"):
        amradio.distill(recipe(*WORDS), student=CustomStudent(Pair(), patch_size=8, num_summaries=2))
    with pytest.raises(UserError, match="the object has 1 summaries, the recipe wants 2, one per teacher"):
        amradio.distill(recipe(*WORDS, "student.summaries=per_teacher"), student=CustomStudent(Pair(), patch_size=8))
    assert not (tmp_path / "run").exists()
