"""Backbones of timm as students: the comparison's rows, levels, necks, summaries, sizes, weights, and what goes wrong."""

from pathlib import Path

import pydantic
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import amradio
from amradio.config import validate
from amradio.errors import UserError
from amradio.students import StudentRow
from amradio.students.timm import TimmStudent, survey
from amradio.students.timm_settings import WELL_KNOWN, TimmSettings

PYRAMIDS = ("test_resnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_byobnet", "test_mambaout")
MILLIONS = {
    "tf_efficientnetv2_s": 21,
    "resnetv2_101": 44,
    "regnety_064": 30,
    "convnext_base": 88,
    "dm_nfnet_f3": 254,
    "swinv2_small_window8_256": 49,
    "maxvit_base_tf_224": 119,
    "poolformerv2_m36": 56,
    "mvitv2_base": 51,
}
"""AM-RADIO, table 7, but for EfficientViT-L1, see there."""


def build(num_summaries: int = 2, **settings) -> TimmStudent:
    torch.manual_seed(0)
    return TimmSettings(**settings).build(num_summaries).eval()


def photo(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("row", WELL_KNOWN, ids=lambda row: row.size)
def test_the_rows_of_the_comparison_are_as_listed(row: StudentRow) -> None:
    with torch.device("meta"):
        student = TimmSettings(model=row.size).build(4)
    assert sum(p.numel() for p in student.parameters()) == row.parameters
    assert (student.patch_size, student.spatial_dim) == (row.patch_size, row.dim)
    if row.size in MILLIONS:
        assert row.parameters / 1e6 == pytest.approx(MILLIONS[row.size], rel=0.05)


@pytest.mark.slow
def test_efficientvit_is_the_papers_without_its_head() -> None:
    with torch.device("meta"):
        student = TimmSettings(model="efficientvit_l1", level=-1, summary="map").build(1)
    assert sum(p.numel() for p in student.parameters()) / 1e6 == pytest.approx(38, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("model", PYRAMIDS)
def test_every_level_is_what_timms_own_extractor_gives(model: str) -> None:
    images = photo()
    student = build(model=model)
    extractor = timm.create_model(model, features_only=True).eval()
    own = {name.replace("_", "."): tensor for name, tensor in student.trunk.state_dict().items()}  # stages.0 is stages_0 there
    extractor.load_state_dict({name: own[name.replace("_", ".")] for name in extractor.state_dict()})
    wanted = [found.permute(0, 3, 1, 2) if model == "test_mambaout" else found for found in extractor(student.condition(images))]
    for level, expected in enumerate(wanted):
        at_level = build(model=model, level=level)
        at_level.trunk.load_state_dict(student.trunk.state_dict())
        found = at_level(images)
        assert at_level.patch_size == extractor.feature_info.reduction()[level]
        torch.testing.assert_close(found.spatial, expected.permute(0, 2, 3, 1))
        cut = build(model=model, level=level, summary="map")
        cut.trunk.load_state_dict(student.trunk.state_dict(), strict=False)
        torch.testing.assert_close(cut(images).spatial, found.spatial)
        torch.testing.assert_close(cut(images).summary, expected.mean((2, 3)))
        assert sum(p.numel() for p in cut.parameters()) <= sum(p.numel() for p in at_level.parameters())
    torch.testing.assert_close(student(images).summary, student.trunk(student.condition(images)))
    assert student.patch_size == 16


def test_a_vit_gives_its_tokens() -> None:
    images = photo()
    student = build(model="test_vit", summary="token")
    tokens = student.trunk.forward_features(student.condition(images))
    found = student(images)
    torch.testing.assert_close(found.summary, tokens[:, 0])
    torch.testing.assert_close(found.spatial.flatten(1, 2), tokens[:, 1:])
    torch.testing.assert_close(build(model="test_vit")(images).summary, student.trunk(student.condition(images)))
    early = build(model="test_vit", level=0, summary="map").train()
    early(images).summary.sum().backward()
    assert [name for name, p in early.named_parameters() if p.grad is None] == []
    assert len(early.trunk.blocks) == 1


def test_the_neck_is_a_sum_of_projections_on_the_finest_grid() -> None:
    images = photo(96, 160)
    student = build(model="test_convnext", level=1, neck=True, neck_dim=20)
    assert (student.levels, student.patch_size, student.spatial_dim) == ((1, 2, 3), 8, 20)
    maps = [build(model="test_convnext", level=level)(images).spatial for level in (1, 2, 3)]
    total = torch.zeros(2, 12, 20, 20)
    for found, norm, project in zip(maps, student.neck.norms, student.neck.projections, strict=True):
        scaled = F.layer_norm(found, found.shape[-1:], norm.weight, norm.bias, norm.eps) @ project.weight[:, :, 0, 0].T + project.bias
        factor = 12 // found.shape[1]
        total += scaled.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    smooth = F.conv2d(total.permute(0, 3, 1, 2), student.neck.smooth.weight, student.neck.smooth.bias, padding=1, groups=20)
    torch.testing.assert_close(student(images).spatial, total + smooth.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    assert build(model="test_convnext", level=1, neck=True).spatial_dim == 64


def test_a_linear_layer_gives_each_teacher_a_summary() -> None:
    student = build(num_summaries=3, model="test_convnext", summaries="per_teacher")
    shared = build(num_summaries=3, model="test_convnext")
    assert (student.num_summaries, shared.num_summaries) == (3, 1)
    expected = F.linear(shared(photo()).summary, student.summarise.weight, student.summarise.bias)
    torch.testing.assert_close(student(photo()).summary, expected)


@pytest.mark.slow
def test_images_are_normalised_as_timm_says_for_the_weights() -> None:
    assert survey("convnext_base").mean == (0.485, 0.456, 0.406)
    assert survey("convnext_base.clip_laion2b").std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    for model in ("test_vit", "test_resnet"):
        config = timm.get_pretrained_cfg(model)
        student = build(model=model)
        assert tuple(student.mean.flatten().tolist()) == pytest.approx(config.mean)
        assert tuple(student.std.flatten().tolist()) == pytest.approx(config.std)


@pytest.mark.slow
def test_fixed_sizes_are_found_out() -> None:
    assert build(model="test_maxvit").nearest_size(70, 300) == (160, 160)
    small = build(model="test_maxvit", image_size=64)
    assert small.nearest_size(70, 300) == (64, 64)
    assert small(photo(64, 64)).spatial.shape == (2, 4, 4, 96)
    with pytest.raises(UserError, match="96x64 px is not a size this student takes; the nearest is 64x64 px"):
        small(photo(96, 64))
    assert build(model="test_vit").nearest_size(70, 300) == (64, 304)
    assert build(model="test_resnet").nearest_size(70, 300) == (64, 288)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size", "legal"), [("hiera_tiny_224", 224, (224, 224)), ("swin_tiny_patch4_window7_224", 64, (64, 96))])
def test_hierarchical_transformers_of_either_kind_of_size(model: str, size: int, legal: tuple[int, int]) -> None:
    with torch.device("meta"):
        student = TimmSettings(model=model, image_size=size).build(1).eval()
        found = student(torch.empty(1, 3, *legal))
    assert student.nearest_size(64, 96) == legal
    assert found.spatial.shape == (1, legal[0] // 16, legal[1] // 16, student.spatial_dim)


@pytest.mark.slow
def test_branches_are_merged_at_deployment() -> None:
    student, images = build(model="fastvit_t8"), photo(32, 64)
    before, count = student(images), sum(p.numel() for p in student.parameters())
    assert student.deploy() is student
    torch.testing.assert_close(student(images), before, rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in student.parameters()) < count


def test_no_decay_is_what_timm_says() -> None:
    assert build(model="test_vit").no_decay() == {"trunk.pos_embed", "trunk.cls_token"}
    assert build(model="test_resnet").no_decay() == set()


@pytest.mark.slow
def test_it_begins_with_the_weights_of_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = timm.create_model("test_vit")  # with a classifier, positions of 160 px
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    student = build(model="test_vit", start_from=str(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(student.trunk.blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)
    report = student.started_from
    assert report.left == ()
    assert {"head.weight", "head.bias"} <= set(report.unused)
    small = build(model="test_vit", image_size=64, start_from=str(tmp_path / "weights.safetensors"))
    assert small.started_from.changed == ("pos_embed",)
    assert small.trunk.pos_embed.shape[1] == 1 + 16
    again = build(model="test_vit", start_from=str(tmp_path / "weights.safetensors"), summaries="per_teacher")
    torch.testing.assert_close(again(photo()).spatial, student(photo()).spatial, rtol=0, atol=0)
    for wrong, said in (
        ("nothing.safetensors", "there is no such file"),
        ("convnext.bin", "give 'hub', a .safetensors file or"),
        ("", "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            build(model="test_vit", start_from=str(tmp_path / wrong) if wrong else str(tmp_path))
    half = {name: tensor for name, tensor in other.state_dict().items() if not name.startswith("blocks.5")}
    save_file(half, tmp_path / "half.safetensors")
    left = build(model="test_vit", start_from=str(tmp_path / "half.safetensors")).started_from.left
    assert len(left) > 5
    assert all(name.startswith("blocks.5") for name in left)
    save_file({"unknown": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"nothing in .* has a name and shape of this backbone"):
        build(model="test_vit", start_from=str(tmp_path))


@pytest.mark.slow
def test_it_begins_with_a_model_folder(recipe, tmp_path: Path) -> None:
    words = ("stages.0.steps=1", "evaluate.every=null")
    folder = amradio.distill(recipe(*words, "student={type: timm, model: test_efficientnet}"))
    student = build(model="test_efficientnet", start_from=str(folder / "model"))
    loaded = amradio.load(folder).network.student
    torch.testing.assert_close(student(photo()), loaded(photo()), rtol=0, atol=0)
    assert loaded.started_from is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "convnext_bas"}, "timm has no 'convnext_bas'; did you mean .*'convnext_base'"),
        ({"model": "convnext_base.fb_in22"}, "convnext_base has no tag 'fb_in22'; did you mean .*'convnext_base.fb_in22k'"),
        ({"model": "test_resnet", "neck_dim": 8}, "neck_dim sets a neck"),
        ({"model": "test_resnet", "level": 5}, r"level: 5 of 5; timm's test_resnet has levels of 2, 4, 8, 16, 32 px"),
        ({"model": "test_resnet", "image_size": 64}, "has no windows or positions of one size; leave it out"),
        ({"model": "test_resnet", "summary": "token"}, "test_resnet has no class token"),
        ({"model": "test_resnet", "level": -1, "neck": True}, "nothing coarser than level 4 .* give a finer level"),
        ({"model": "test_vit", "neck": True}, "nothing coarser than level 5 .* leave neck out"),
        ({"model": "test_maxvit", "image_size": 100}, "test_maxvit cannot be .*100"),
        ({"model": "inception_v3"}, "cannot be run on 64x96 px"),
        ({"model": "crossvit_9_240"}, "more than one branch"),
        ({"model": "levit_128"}, "no usable map: level 2 says 64 px a cell, but gives 4x4 cells of 224x224 px"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_said(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(TimmSettings, settings).build(1)


def test_batchnorm_wants_more_than_one_image() -> None:
    with pytest.raises(UserError, match="BatchNorm needs more than one image in training"):
        build(model="test_resnet").train()(photo()[:1])
    build(model="test_convnext").train()(photo()[:1])


@pytest.mark.parametrize("prefix", ["timm/", "hf-hub:timm/"])
def test_a_hub_name_is_the_name_in_timm(prefix: str) -> None:
    assert TimmSettings(model=f"{prefix}test_resnet") == TimmSettings(model="test_resnet")
    with pytest.raises(pydantic.ValidationError, match="resnet"):
        TimmSettings(model=f"{prefix}resnet5O")
