"""Heads: the exact folding of a normaliser, and what every entry of HEADS promises."""

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from amradio.affine import Affine
from amradio.config import Settings, one_of, to_yaml, validate
from amradio.errors import UserError
from amradio.features import Features
from amradio.heads import HEADS, AttentionHeadSettings, Head, HeadSettings, LinearHeadSettings, MlpHeadSettings, final_linear
from amradio.yaml12 import parse_yaml

TINY = {"mlp": {"num_inner": 1}, "attention": {"num_heads": 4}, "linear": {}}
IN, OUT = 24, 10


class Box(Settings):
    head: one_of(HEADS)  # type: ignore[valid-type]


@pytest.fixture(params=HEADS, ids=lambda kind: kind.model_fields["type"].default)
def settings(request: pytest.FixtureRequest) -> HeadSettings:
    type_ = request.param.model_fields["type"].default
    return request.param.model_validate({"type": type_, **TINY[type_]})


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def spatial(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 5, IN, generator=torch.Generator().manual_seed(1))


# what every head promises


def test_shapes_on_maps_and_on_summaries(settings: HeadSettings):
    head = settings.build(IN, OUT)
    assert head(spatial()).shape == (2, 3, 5, OUT)
    if "summary" in settings.kinds:
        assert head(spatial()[:, 0, 0]).shape == (2, OUT)
    else:
        with pytest.raises(UserError, match="take an 'mlp' head for summaries"):
            head(spatial()[:, 0, 0])


def test_each_image_is_on_its_own(settings: HeadSettings):
    head = randomised(settings.build(IN, OUT))
    torch.testing.assert_close(head(spatial(3))[1:2], head(spatial(3)[1:2]))


def test_the_last_layer_is_found_and_its_bias_begins_at_zero(settings: HeadSettings):
    linear = final_linear(settings.build(IN, OUT))
    assert linear.out_features == OUT
    assert (linear.bias == 0).all()


def test_gradients_reach_every_parameter(settings: HeadSettings):
    head = settings.build(IN, OUT)
    head(spatial()).square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_settings_survive_yaml(settings: HeadSettings):
    box = Box(head=settings)
    assert validate(Box, parse_yaml(to_yaml(box), "here")) == box
    with pytest.raises(UserError, match="no such key"):
        validate(Box, {"head": {**settings.model_dump(), "num_inners": 1}})


@pytest.mark.parametrize("matrix", [False, True])
def test_an_affine_map_is_folded_exactly(settings: HeadSettings, matrix: bool):
    check_fold(randomised(settings.build(IN, OUT)).double(), matrix)


@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_an_affine_map_is_folded_into_each_cell_of_an_upsampling_head(kind: str, matrix: bool):
    settings = validate(Box, {"head": {"type": kind, **TINY[kind], "upsample_factor": 3}}).head
    check_fold(randomised(settings.build(IN, OUT)).double(), matrix)


def check_fold(head: nn.Module, matrix: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    scale = torch.randn(OUT, OUT, generator=generator, dtype=torch.float64)
    scale = scale if matrix else 50 * scale[0]
    shift = 10 * torch.randn(OUT, generator=generator, dtype=torch.float64)
    inputs = spatial().double()
    before = head(inputs)
    expected = (before @ scale.T if matrix else before * scale) + shift
    Affine(scale, shift).fold(final_linear(head))
    torch.testing.assert_close(head(inputs), expected, rtol=1e-10, atol=1e-10)
    Affine(scale, shift).inverse().fold(final_linear(head))
    torch.testing.assert_close(head(inputs), before, rtol=1e-9, atol=1e-9)


def test_folding_in_float32_rounds_only_once():
    head = randomised(LinearHeadSettings().build(IN, OUT))
    weight, bias = head.final.weight.detach().double(), head.final.bias.detach().double()
    scale, shift = torch.linspace(1e-3, 1e3, OUT), torch.linspace(-1e4, 1e4, OUT)
    Affine(scale, shift).fold(final_linear(head))
    torch.testing.assert_close(head.final.weight, (weight * scale.double()[:, None]).float(), rtol=0, atol=0)
    torch.testing.assert_close(head.final.bias, (bias * scale.double() + shift.double()).float(), rtol=0, atol=0)
    assert head.final.weight.dtype == torch.float32
    assert head.final.weight.requires_grad


# the published layout


def test_names_of_the_published_layout():
    names = {name for name, _ in MlpHeadSettings(num_inner=2, hidden_dim=16).build(IN, OUT).named_parameters()}
    layers = ["fc1", "blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "final.0", "final.2"]
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    attention = {name for name, _ in AttentionHeadSettings(num_heads=4).build(IN, OUT).named_parameters()}
    assert {"blocks.0.ls1.gamma", "blocks.1.attn.qkv.weight", "mlp.fc1.weight", "mlp.final.2.bias"} < attention
    assert "blocks.0.attn.qkv.bias" not in attention


@torch.no_grad()
def test_upsampling_equals_the_slow_form():
    head = randomised(MlpHeadSettings(upsample_factor=2).build(IN, OUT))
    found, flat = head(spatial()), head.final(head.fc1(spatial()))
    assert found.shape == (2, 6, 10, OUT)
    for row in range(6):
        for column in range(10):
            cell = (row % 2) * 2 + column % 2
            torch.testing.assert_close(found[:, row, column], flat[:, row // 2, column // 2, cell * OUT : (cell + 1) * OUT])
    with pytest.raises(UserError, match="only a spatial head upsamples"):
        head(spatial()[:, 0, 0])


@torch.no_grad()
def test_the_attention_head_equals_its_blocks_and_mlp():
    head = randomised(AttentionHeadSettings(num_heads=4).build(IN, OUT))
    tokens = spatial().reshape(2, 15, IN)
    for block in head.blocks:
        assert isinstance(block, Block)
        assert block.norm1.eps == block.norm2.eps == 1e-6
        tokens = block(tokens)
    torch.testing.assert_close(head(spatial()), head.mlp(tokens).reshape(2, 3, 5, OUT))
    moved = spatial()
    moved[:, 0, 0, 0] += 5
    assert not torch.allclose(head(moved)[:, 2, 4], head(spatial())[:, 2, 4]), "a cell must see the others"


def test_layer_scale_begins_small():
    assert all(
        (b.ls1.gamma == 1e-5).all() and (b.ls2.gamma == 1e-5).all() for b in AttentionHeadSettings(num_heads=4).build(IN, OUT).blocks
    )


# one teacher's head


def test_a_head_reads_its_own_slot_and_predicts_what_it_has():
    part, mapped = randomised(LinearHeadSettings().build(4, 3)), randomised(LinearHeadSettings().build(IN, OUT))
    features = Features(torch.randn(2, 12), spatial())
    both = Head(part, mapped, slot=2, summary_dim=4)(features)
    torch.testing.assert_close(both.summary, part(features.summary[:, 8:12]))
    torch.testing.assert_close(both.spatial, mapped(features.spatial))
    assert Head(None, mapped, 0, 4)(Features(None, features.spatial)).summary is None
    assert Head(part, None, 0, 4)(Features(features.summary, None)).spatial is None
    with pytest.raises(AssertionError, match="no summary for this slot"):
        Head(part, None, slot=3, summary_dim=4)(features)


# each setting


CHANGES: dict[type[HeadSettings], dict[str, object]] = {
    MlpHeadSettings: {"hidden_dim": 7, "num_inner": 2, "upsample_factor": 2},
    AttentionHeadSettings: {"depth": 1, "num_heads": 2, "hidden_dim": 7, "upsample_factor": 2},
    LinearHeadSettings: {},
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CHANGES.items() for name in names])
def test_each_setting_changes_the_outcome(kind: type[HeadSettings], name: str):
    base = {"num_heads": 4} if kind is AttentionHeadSettings else {}

    def outcome(given: dict[str, object]) -> tuple[dict[str, tuple[int, ...]], torch.Tensor]:
        head = randomised(kind.model_validate({**base, **given}).build(IN, OUT))
        return {k: tuple(t.shape) for k, t in head.state_dict().items()}, head(spatial())

    before, after = outcome({}), outcome({name: CHANGES[kind][name]})
    assert before[0] != after[0] or not torch.equal(before[1], after[1])


def test_every_head_and_setting_is_tried():
    assert tuple(CHANGES) == HEADS
    for kind, names in CHANGES.items():
        assert set(names) == set(kind.model_fields) - {"type"}


def test_defaults():
    assert MlpHeadSettings().build(24, 10).fc1.out_features == 24
    assert MlpHeadSettings().build(24, 100).fc1.out_features == 100
    assert MlpHeadSettings().kinds == LinearHeadSettings().kinds == ("summary", "spatial")
    assert MlpHeadSettings(upsample_factor=2).kinds == AttentionHeadSettings().kinds == ("spatial",)
    with pytest.raises(UserError, match="num_heads 16 does not divide the student's 24 channels"):
        AttentionHeadSettings().build(24, 10)
