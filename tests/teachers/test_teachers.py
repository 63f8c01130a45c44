"""What every kind of teacher promises, whatever library it comes from."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import amradio
import tiny
from amradio.config import one_of, validate
from amradio.errors import UserError
from amradio.features import Features
from amradio.teachers import TEACHERS, Teacher, TeacherSettings
from amradio.teachers.precision import cast
from amradio.teachers.sam_settings import SamSettings
from amradio.teachers.settings import ClipSettings, CustomSettings, EmbeddedSettings, ModelSettings
from model_folders import layer_scale_vit

NOT_FROM_FILES = ("embedded", "custom", "model", "labels")
"""Tested elsewhere: by the files that the package ships, by what raises, and in test_labels.py."""


def kind_of(settings: type[TeacherSettings]) -> str:
    return settings.model_fields["type"].default


CASES = [(settings, build) for settings in TEACHERS if kind_of(settings) in tiny.BUILDERS for build in tiny.BUILDERS[kind_of(settings)]]
NAMES = [f"{kind_of(settings)}-{i}" for i, (settings, _) in enumerate(CASES)]


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[type[TeacherSettings], str]:
    settings, build = request.param
    return settings, str(build(tmp_path_factory.mktemp("teacher")))


@pytest.fixture(scope="module")
def teacher(case: tuple[type[TeacherSettings], str]) -> Teacher:
    settings, folder = case
    return validate(settings, {"model": folder}).build()


def legal_images(teacher: Teacher, batch: int = 2) -> Tensor:
    height, width = teacher.size_for(2 * teacher.patch_size, 3 * teacher.patch_size)
    return tiny.photo(height, width, batch) / 255


def present(features: Features) -> list[Tensor]:
    return [each for each in features if each is not None]


def test_every_kind_is_tested() -> None:
    assert {kind_of(settings) for settings in TEACHERS} <= {*tiny.BUILDERS, *NOT_FROM_FILES}
    assert len({kind_of(settings) for settings in TEACHERS}) == len(TEACHERS)


@pytest.mark.slow
def test_shapes_are_the_promised_dims(teacher: Teacher) -> None:
    images = legal_images(teacher)
    summary, spatial = teacher(images)
    assert (summary is None) == (teacher.summary_dim is None)
    if summary is not None:
        assert summary.shape == (2, teacher.summary_dim)
    assert spatial is not None
    assert spatial.shape == (2, images.shape[2] // teacher.patch_size, images.shape[3] // teacher.patch_size, teacher.spatial_dim)
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in (summary, spatial) if each is not None)


def test_maps_are_row_major(teacher: Teacher) -> None:
    """What changes in the lower left corner of the image changes the lower left corner of the map the most.

    In attention every cell sees every other, but each sees its own pixels the most.
    """
    images = torch.full_like(legal_images(teacher, 1), 0.5)
    marked = images.clone()
    marked[..., -teacher.patch_size :, : teacher.patch_size] += 0.4 * torch.randn(3, teacher.patch_size, teacher.patch_size).sign()
    before, after = teacher(images).spatial, teacher(marked).spatial
    assert before is not None
    assert after is not None
    change = (after - before).norm(dim=-1)[0]
    assert change.shape[0] == 1 or change[-1, 0] == change.max()


def test_frozen_and_always_in_evaluation_mode(teacher: Teacher) -> None:
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    features = teacher(legal_images(teacher).requires_grad_())
    assert not any(each.requires_grad or each.is_inference() for each in present(features))


def test_a_loss_may_save_the_features(teacher: Teacher) -> None:
    for each in present(teacher(legal_images(teacher))):
        prediction = torch.zeros_like(each, requires_grad=True)
        (prediction * each).sum().backward()
        assert prediction.grad is not None


def test_deterministic_and_independent_of_the_batch(teacher: Teacher) -> None:
    images = legal_images(teacher)
    for whole, again, alone in zip(teacher(images), teacher(images), teacher(images[1:]), strict=True):
        if whole is not None:
            assert torch.equal(whole, again)
            assert torch.allclose(whole[1:], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near(case: tuple[type[TeacherSettings], str], teacher: Teacher, precision: str) -> None:
    settings, folder = case
    half = validate(settings, {"model": folder, "precision": precision}).build()
    images = legal_images(teacher)
    assert half.compute_dtype == getattr(torch, precision)
    for found, expected in zip(present(half(images)), present(teacher(images)), strict=True):
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.99
        assert not torch.equal(found, expected)


def test_size_for_is_legal_and_idempotent(teacher: Teacher) -> None:
    for size in ((1, 1), (63, 200), (224, 224)):
        legal = teacher.size_for(*size)
        assert teacher.size_for(*legal) == legal
        if teacher.input_size is None:
            assert all(side % teacher.patch_size == 0 for side in legal)
            assert all(
                abs(side - wanted) <= max(teacher.patch_size - 1, teacher.patch_size / 2) for side, wanted in zip(legal, size, strict=True)
            )
        else:
            assert legal == (teacher.input_size, teacher.input_size)


def test_an_illegal_size_is_refused(teacher: Teacher) -> None:
    height, width = teacher.size_for(64, 64)
    with pytest.raises(UserError, match=rf"images of {height + 1} x {width} px.*resize to {height} x {width} px"):
        teacher(torch.rand(1, 3, height + 1, width))


@pytest.mark.parametrize("size", [(100, 75), (31, 150), (7, 9)])
def test_prepare_gives_a_legal_size_in_range(teacher: Teacher, size: tuple[int, int]) -> None:
    prepared = teacher.prepare(tiny.photo(*size) / 255)
    assert teacher.size_for(*prepared.shape[-2:]) == tuple(prepared.shape[-2:])
    assert prepared.min() >= 0
    assert prepared.max() <= 1
    teacher(prepared)


def test_licence_and_source_are_stated(case: tuple[type[TeacherSettings], str], teacher: Teacher) -> None:
    assert teacher.source == case[1]
    assert teacher.licence


@pytest.mark.slow
def test_an_input_size_of_the_users_own(case: tuple[type[TeacherSettings], str], teacher: Teacher) -> None:
    settings, folder = case
    if "input_size" not in settings.model_fields:
        return
    wanted = 5 * teacher.patch_size if teacher.patch_size < 32 else 96
    other = validate(settings, {"model": folder, "input_size": wanted}).build()
    assert other.input_size == wanted
    assert other.prepare(tiny.photo() / 255).shape == (2, 3, wanted, wanted)
    spatial = other(torch.rand(1, 3, wanted, wanted)).spatial
    assert spatial is not None
    assert spatial.shape[1:3] == (wanted // teacher.patch_size, wanted // teacher.patch_size)
    with pytest.raises(UserError, match=f"input_size {wanted + 1} .*{wanted}"):
        validate(settings, {"model": folder, "input_size": wanted + 1}).build()


def test_a_model_folder_is_a_teacher(tmp_path: Path) -> None:
    folder, images = layer_scale_vit(tmp_path / "model"), tiny.photo(64, 64) / 255
    model = amradio.load(folder)
    wanted = model(images, heads=["dino"])
    for head, name in ((None, "backbone"), ("dino", "dino")):
        teacher = ModelSettings(path=str(folder), head=head).build()
        found = teacher(images)
        assert (teacher.summary_dim, teacher.spatial_dim) == (found.summary.shape[-1], found.spatial.shape[-1])
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=0)
    assert ModelSettings(path=str(folder), head="sam").build().summary_dim is None
    assert ModelSettings(path=str(folder), input_size=48).build().size_for(64, 64) == (48, 48)
    with pytest.raises(UserError, match="there is no head 'dinoo'; did you mean 'dino'"):
        ModelSettings(path=str(folder), head="dinoo").build()


# --- precision


def test_cast_keeps_norms_and_positions_in_float32() -> None:
    class MyNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return x / x.norm(dim=1, keepdim=True) * self.scale[:, None, None]

    class RotaryTable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("angles", torch.rand(3))

    model = nn.Sequential(nn.Conv2d(3, 4, 1), MyNorm(), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)).eval()
    model.register_buffer("table", torch.rand(3))
    model.register_buffer("index", torch.arange(3))
    holder = nn.ModuleDict({"model": model, "rope": RotaryTable()})
    assert cast(holder, "bfloat16") == torch.bfloat16
    assert model[0].weight.dtype == model.table.dtype == torch.bfloat16
    assert model.index.dtype == torch.int64
    assert holder["rope"].angles.dtype == torch.float32
    assert all(each.dtype == torch.float32 for module in model[1:] for each in module.state_dict().values() if each.is_floating_point())
    assert model(torch.rand(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_float32_norms_are_what_keeps_half_precision_near() -> None:
    """The reason for `cast`: a LayerNorm of a large mean loses its signal in bfloat16."""
    torch.manual_seed(0)
    x = 100 + torch.randn(64, 32)
    exact = nn.LayerNorm(32)(x)
    kept = nn.Sequential(nn.LayerNorm(32))
    cast(kept, "bfloat16")
    assert torch.cosine_similarity(kept(x).float(), exact, dim=-1).mean() > 0.99
    assert torch.cosine_similarity(nn.LayerNorm(32).bfloat16()(x.bfloat16()).float(), exact, dim=-1).mean() < 0.99


# --- settings and one's own


def test_settings_are_chosen_by_type() -> None:
    import pydantic

    from amradio.config import Settings

    class Holder(Settings):
        teacher: one_of(TEACHERS)  # pyright: ignore[reportInvalidTypeForm]

    assert isinstance(Holder(teacher={"type": "clip", "model": "a/b"}).teacher, ClipSettings)
    with pytest.raises(pydantic.ValidationError):
        Holder(teacher={"type": "clip", "model": "a/b", "inputsize": 3})


def test_every_setting_has_its_help() -> None:
    for settings in TEACHERS:
        for name, field in settings.model_fields.items():
            assert name == "type" or field.description, f"{settings.__name__}.{name}"


def test_own_teachers_are_passed_in_python() -> None:
    with pytest.raises(UserError, match=r"amradio\.distill\(recipe, teachers="):
        CustomSettings().build()


def test_a_teacher_of_ones_own() -> None:
    class Mine(Teacher):
        def __init__(self) -> None:
            super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, patch_size=4, dims=(3, 3), input_size=None, licence="mine", source="a test")
            self.layer = nn.Conv2d(3, 3, 4, 4)
            self.freeze()

        def encode(self, images: Tensor) -> Features:
            spatial = self.layer(images).permute(0, 2, 3, 1)
            return Features(spatial.mean((1, 2)), spatial)

    mine = Mine()
    prepared = mine.prepare(torch.rand(2, 3, 13, 15))
    summary, spatial = mine(prepared)
    assert summary is not None
    assert spatial is not None
    assert (summary.shape, spatial.shape) == ((2, 3), (2, 3, 4, 3))


@pytest.mark.parametrize("name", ["clip", "dino", "sam"])
def test_embedded(name: str) -> None:
    teacher = EmbeddedSettings(name=name).build()
    assert teacher.source == f"embedded {name}"
    features = teacher(teacher.prepare(tiny.photo() / 255))
    assert (features.summary is None) == (name == "sam")
    assert all(each.isfinite().all() for each in present(features))


# --- precision auto


def test_auto_precision_is_that_of_the_models_beside_the_teacher() -> None:
    from amradio.teachers.settings import EmbeddedSettings

    settings = EmbeddedSettings(name="clip")
    assert settings.precision == "auto"
    assert settings.at(None).precision == "float32"
    assert settings.at(torch.bfloat16).precision == "bfloat16"
    assert settings.at(torch.bfloat16).build().compute_dtype == torch.bfloat16
    assert settings.build().compute_dtype == torch.float32
    fixed = EmbeddedSettings(name="clip", precision="float16")
    assert fixed.at(None) is fixed


@pytest.mark.slow
def test_relative_positions_are_read_once_and_anew_after_a_change(tmp_path: Path):
    """The remembered tables give the original's answer, also with gradients, after new weights and in other precisions."""
    folder = tiny.tiny_sam(tmp_path / "sam")
    teacher = SamSettings(model=str(folder)).build()
    layers = [layer for layer in teacher.modules() if hasattr(layer, "get_rel_pos")]
    assert len(layers) == 2

    def original(images: torch.Tensor) -> torch.Tensor:
        kept = [layer.__dict__.pop("get_rel_pos") for layer in layers]
        answer = teacher(images).spatial
        for layer, reader in zip(layers, kept, strict=True):
            layer.get_rel_pos = reader
        return answer

    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        first = teacher(images).spatial
    reads: list[tuple[int, int]] = []
    for layer in layers:
        layer.get_rel_pos.read = lambda q, k, table, read=layer.get_rel_pos.read: reads.append((q, k)) or read(q, k, table)
    images.requires_grad_()
    assert torch.equal(teacher(images).spatial, first)
    assert not reads, "a table was read again"
    assert torch.equal(original(images), first)
    with torch.no_grad():
        for layer in layers:
            layer.rel_pos_h.mul_(3)
    changed = teacher(images).spatial
    assert not torch.equal(changed, first)
    assert torch.equal(original(images), changed)
    assert len(reads) == 2, "each layer has two tables, of which one was changed"
    copied = copy.deepcopy(teacher)
    assert torch.equal(copied(images).spatial, changed)
