"""What every student promises; a new one is tested by being listed in STUDENTS and given a tiny form here."""

import copy
from pathlib import Path

import pytest
import torch

import amradio
from amradio.config import Settings, one_of, to_yaml, validate
from amradio.errors import UserError
from amradio.formats.model_folder import write_folder
from amradio.heads import LinearHeadSettings
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students import STUDENTS, Student, StudentSettings, catalogue
from amradio.yaml12 import parse_yaml

TINY = {
    "vit": {"dim": 48, "depth": 2, "num_heads": 4, "patch_size": 8, "num_registers": 2, "max_image_size": 64},
    # at 32 x 64 px the optimal window would be one cell, in which attention has nothing to choose from
    "eradio": {"dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [2, 4], "neck_dim": 24, "window_size": 2, "window": "fixed"},
    "radio1d": {"dim": 48, "depth": 3, "num_heads": 4, "patch_size": 8, "max_image_size": 64, "decoder_depth": 2, "filler_side": 3},
    "timm": {"model": "test_convnext"},
    "timm, a summary per teacher": {"model": "test_vit", "summaries": "per_teacher"},
    "timm, neck": {"model": "test_efficientnet", "level": 2, "neck": True, "neck_dim": 24, "summary": "map"},
}
"""Tiny forms of every type; the type is the name up to a comma."""


class Box(Settings):
    student: one_of(STUDENTS)  # type: ignore[valid-type]


TYPES = {kind.model_fields["type"].default for kind in STUDENTS}


@pytest.fixture(params=TINY)
def settings(request: pytest.FixtureRequest) -> StudentSettings:
    return validate(Box, {"student": {"type": request.param.partition(",")[0], **TINY[request.param]}}).student


@pytest.fixture
def student(settings: StudentSettings) -> Student:
    torch.manual_seed(0)
    return settings.build(num_summaries=3)


def looks_at_the_batch(student: Student) -> bool:
    """Whether in training what an image gives depends on the others (BatchNorm)."""
    return any(isinstance(module, torch.nn.BatchNorm2d) for module in student.modules())


def images_for(student: Student, batch: int = 2, height: int = 40, width: int = 70) -> torch.Tensor:
    return torch.rand(batch, 3, *student.nearest_size(height, width), generator=torch.Generator().manual_seed(1))


def test_every_type_has_a_tiny_form():
    assert {name.partition(",")[0] for name in TINY} | {"custom"} == TYPES  # an object of the user: tests/students/test_students_custom.py


@pytest.mark.slow
def test_shapes_are_as_promised(settings: StudentSettings, student: Student):
    images = images_for(student)
    features = student.eval()(images)
    assert student.num_summaries == (1 if settings.shares_summary else 3)
    assert features.summary.shape == (2, student.num_summaries * student.summary_dim)
    height, width = (side // student.patch_size for side in images.shape[2:])
    assert features.spatial.shape == (2, height, width, student.spatial_dim)
    assert height != width


def test_any_legal_size_is_taken_and_no_other(student: Student):
    for asked in ((1, 1), (37, 250), (100, 53), (96, 96)):
        legal = student.nearest_size(*asked)
        assert student.nearest_size(*legal) == legal
        assert torch.isfinite(student.eval()(torch.rand(1, 3, *legal)).spatial).all()
    wrong = legal[0] + 1
    with pytest.raises(UserError, match=f"{wrong}x{legal[1]} px.*nearest is {legal[0]}x{legal[1]} px"):
        student(torch.rand(1, 3, wrong, legal[1]))
    with pytest.raises(UserError, match=r"give \[B, 3, H, W\]"):
        student(torch.rand(1, 1, *legal))


def test_evaluation_is_a_pure_function_of_each_image(student: Student):
    images = images_for(student, batch=3)
    student.eval()
    together, alone = student(images), student(images[1:2])
    torch.testing.assert_close(together.spatial[1:2], alone.spatial)
    torch.testing.assert_close(together.summary[1:2], alone.summary)
    torch.testing.assert_close(student(images, torch.rand(3, 8)).spatial, together.spatial, rtol=0, atol=0)


def test_training_is_a_pure_function_of_each_image_and_its_draws(student: Student):
    images, draws = images_for(student, batch=4), torch.rand(4, 8, generator=torch.Generator().manual_seed(2))
    student.train()
    together = student(images, draws)
    if not looks_at_the_batch(student):
        alone = student(images[2:3], draws[2:3])
        torch.testing.assert_close(together.spatial[2:3], alone.spatial)
        torch.testing.assert_close(together.summary[2:3], alone.summary)
    torch.testing.assert_close(student(images, draws).spatial, together.spatial, rtol=0, atol=0)
    torch.manual_seed(3)
    first = student(images)
    torch.manual_seed(3)
    torch.testing.assert_close(student(images).spatial, first.spatial, rtol=0, atol=0)


def test_gradients_reach_every_parameter(student: Student):
    features = student.train()(images_for(student), torch.full((2, 8), 0.5))
    (features.summary.square().sum() + features.spatial.square().sum()).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_no_decay_names_are_parameters(student: Student):
    assert student.no_decay() <= {name for name, _ in student.named_parameters()}


def test_images_are_normalised_by_the_student_itself(student: Student):
    images = images_for(student)
    torch.testing.assert_close(student.condition(images) * student.std + student.mean, images)
    assert not any(name.endswith(("mean", "std")) and "running" not in name for name in student.state_dict())


def test_float64_and_bf16(student: Student):
    images, draws = images_for(student), torch.full((2, 8), 0.3)
    student.train()
    reference = student(images, draws)
    with torch.autocast("cpu", torch.bfloat16):
        low = student(images, draws)
    assert torch.nn.functional.cosine_similarity(low.spatial.float(), reference.spatial, dim=-1).min() > 0.99
    half = copy.deepcopy(student).bfloat16()(images, draws)
    assert half.spatial.dtype == half.summary.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.spatial.float(), reference.spatial, dim=-1).min() > 0.98
    double = copy.deepcopy(student).double()(images.double(), draws.double())
    assert double.spatial.dtype == torch.float64
    torch.testing.assert_close(double.spatial.float(), reference.spatial, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_float16_inference(student: Student):
    images = images_for(student)
    reference, half = student.eval()(images), copy.deepcopy(student).half()(images.half())
    for found, wanted in zip(half, reference, strict=True):
        assert found.dtype == torch.float16
        assert torch.nn.functional.cosine_similarity(found.float(), wanted, dim=-1).min() > 0.99


@pytest.mark.slow
@torch.no_grad()
def test_it_is_one_graph_for_the_compiler(student: Student):
    images = images_for(student)
    torch.compiler.reset()
    compiled = torch.compile(student.eval(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), student(images))


def test_a_model_folder_keeps_it(settings: StudentSettings, tmp_path: Path):
    linear = HeadPart(head=LinearHeadSettings(), dim=6)
    heads = {name: HeadConfig(summary=linear, spatial=linear, slot=0 if settings.shares_summary else i) for i, name in enumerate("abc")}
    config = NetworkConfig(student=settings, num_summaries=1 if settings.shares_summary else 3, heads=heads, image_size=64)
    torch.manual_seed(0)
    network = config.build()
    network.train()(images_for(network.student))  # running statistics that matter
    write_folder(tmp_path, config, network, {"step": 1, "num_steps": 1, "data": "noise", "agreement": {}})
    model = amradio.load(tmp_path)
    images = images_for(network.student)
    found, wanted = model(images, heads=["a", "c"]), network.eval()(images, None, ["a", "c"])
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])  # to rounding: weights may lie in memory in another order
    state = network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.network.state_dict().items())


def test_settings_survive_yaml(settings: StudentSettings):
    box = Box(student=settings)
    assert validate(Box, parse_yaml(to_yaml(box), "here")) == box


def test_unknown_keys_are_refused(settings: StudentSettings):
    with pytest.raises(UserError, match="did you mean"):
        validate(Box, {"student": {**settings.model_dump(), "tpye": 1}})


def test_the_same_seed_gives_the_same_weights(settings: StudentSettings, student: Student):
    torch.manual_seed(0)
    again = settings.build(num_summaries=3)
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_catalogue_lists_every_student():
    rows = catalogue()
    assert {row.type for row in rows} == TYPES - {"custom"}
    assert all(row.parameters > 1e6 and (row.num_heads == 0 or row.dim % row.num_heads == 0) for row in rows)
    counts = {row.size: row.parameters / 1e6 for row in rows if row.type == "vit"}
    # what the published checkpoints hold, with 8 prefix tokens
    published = {"base": 98.2, "large": 319.9, "so400m": 431.2, "huge": 651.6, "giant": 1159.6}
    assert {size: round(counts[size], 1) for size in published} == published


@torch.no_grad()
def test_deployment_changes_rounding_only(student: Student):
    images = images_for(student)
    student.train()(images)  # running statistics that matter
    before = student.eval()(images)
    deployed = copy.deepcopy(student).deploy()
    assert not deployed.training
    torch.testing.assert_close(deployed(images), before, rtol=1e-4, atol=1e-4)
