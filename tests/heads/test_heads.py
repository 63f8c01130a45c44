"""Heads: the exact folding of a normaliser, and what every entry of HEADS promises."""

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from amradio.affine import Affine
from amradio.config import Settings, one_of, to_yaml, validate
from amradio.errors import UserError
from amradio.features import Features
from amradio.heads import (
    HEADS,
    AttentionHeadSettings,
    Head,
    HeadSettings,
    LadderHead,
    LadderHeadSettings,
    LinearHeadSettings,
    MlpHeadSettings,
    MlpV1HeadSettings,
    StudentShape,
    TransformerHead,
    TransformerHeadSettings,
    final_linear,
)
from amradio.yaml12 import parse_yaml

TINY = {
    "mlp": {"num_inner": 1},
    "attention": {"num_heads": 4},
    "linear": {},
    "transformer": {"num_heads": 4, "depth": 2},
    "ladder": {"hidden_dim": 6},
    "mlp_v1": {"hidden_dim": 16, "num_inner": 1},
}
IN, OUT = 24, 10
SHAPE = StudentShape(other_dim=16, num_blocks=3)


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


def other(batch: int = 2) -> torch.Tensor:
    """A summary of other channels."""
    return torch.randn(batch, 16, generator=torch.Generator().manual_seed(2))


def said(head: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What a head predicts of one tensor; a ladder gets it in three forms."""
    return head([inputs, inputs.flip(-1), 0.5 - inputs]) if isinstance(head, LadderHead) else head(inputs)


# what every head promises


def test_shapes_on_maps_and_on_summaries(settings: HeadSettings):
    head = settings.build(IN, OUT, SHAPE)
    assert said(head, spatial()).shape == (2, 3, 5, OUT)
    if "summary" in settings.kinds:
        assert said(head, spatial()[:, 0, 0]).shape == (2, OUT)
    else:
        with pytest.raises(UserError, match="take an 'mlp' head for summaries"):
            said(head, spatial()[:, 0, 0])


def test_each_image_is_on_its_own(settings: HeadSettings):
    head = randomised(settings.build(IN, OUT, SHAPE))
    torch.testing.assert_close(said(head, spatial(3))[1:2], said(head, spatial(3)[1:2]))


def test_the_last_layer_is_found_and_its_bias_begins_at_zero(settings: HeadSettings):
    linear = final_linear(settings.build(IN, OUT, SHAPE))
    assert linear.out_features == OUT
    assert (linear.bias == 0).all()


def test_gradients_reach_every_parameter(settings: HeadSettings):
    head = settings.build(IN, OUT, SHAPE)
    (head(spatial(), other()) if isinstance(head, TransformerHead) else said(head, spatial())).square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_settings_survive_yaml(settings: HeadSettings):
    box = Box(head=settings)
    assert validate(Box, parse_yaml(to_yaml(box), "here")) == box
    with pytest.raises(UserError, match="no such key"):
        validate(Box, {"head": {**settings.model_dump(), "num_inners": 1}})


@pytest.mark.parametrize("matrix", [False, True])
def test_an_affine_map_is_folded_exactly(settings: HeadSettings, matrix: bool):
    check_fold(randomised(settings.build(IN, OUT, SHAPE)).double(), matrix)


@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_an_affine_map_is_folded_into_each_cell_of_an_upsampling_head(kind: str, matrix: bool):
    settings = validate(Box, {"head": {"type": kind, **TINY[kind], "upsample_factor": 3}}).head
    check_fold(randomised(settings.build(IN, OUT, SHAPE)).double(), matrix)


def test_an_affine_map_is_folded_exactly_beside_the_other_kind():
    head = randomised(TransformerHeadSettings(num_heads=4).build(IN, OUT, SHAPE)).double()
    wanted = 3 * head(spatial().double(), other().double()) + 1
    Affine(torch.full((OUT,), 3.0), torch.ones(OUT)).fold(final_linear(head))
    torch.testing.assert_close(head(spatial().double(), other().double()), wanted, rtol=1e-12, atol=1e-12)


def check_fold(head: nn.Module, matrix: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    scale = torch.randn(OUT, OUT, generator=generator, dtype=torch.float64)
    scale = scale if matrix else 50 * scale[0]
    shift = 10 * torch.randn(OUT, generator=generator, dtype=torch.float64)
    inputs = spatial().double()
    before = said(head, inputs)
    expected = (before @ scale.T if matrix else before * scale) + shift
    Affine(scale, shift).fold(final_linear(head))
    torch.testing.assert_close(said(head, inputs), expected, rtol=1e-10, atol=1e-10)
    Affine(scale, shift).inverse().fold(final_linear(head))
    torch.testing.assert_close(said(head, inputs), before, rtol=1e-9, atol=1e-9)


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


# the projectors of DUNE and UNIC


@torch.no_grad()
def test_the_transformer_head_equals_its_blocks_on_all_tokens():
    head = randomised(TransformerHeadSettings(num_heads=4, depth=2).build(IN, OUT, SHAPE))
    assert isinstance(head, TransformerHead)
    tokens = torch.cat([spatial().reshape(2, 15, IN), head.other(other())[:, None]], 1)  # type: ignore[misc]
    for block in head.blocks:
        assert block.norm1.eps == block.norm2.eps == 1e-6
        tokens = block(tokens)
    torch.testing.assert_close(head(spatial(), other()), head.final(tokens[:, :15]).reshape(2, 3, 5, OUT))
    summary = randomised(TransformerHeadSettings(num_heads=4).build(16, OUT, StudentShape(IN)))
    tokens = summary.blocks[0](torch.cat([other()[:, None], summary.other(spatial().reshape(2, 15, IN))], 1))  # type: ignore[operator]
    torch.testing.assert_close(summary(other(), spatial()), summary.final(tokens[:, 0]))  # type: ignore[operator]
    assert TransformerHeadSettings().build(IN, OUT, StudentShape(IN)).other is None
    names = {name for name, _ in TransformerHeadSettings(num_heads=4).build(IN, OUT, StudentShape(IN)).named_parameters()}
    assert {"blocks.0.attn.qkv.bias", "final.weight", "final.bias"} < names


@torch.no_grad()
def test_the_ladder_equals_a_sum_of_projectors():
    """UNIC's: Linear, GELU, Linear on each block, added up."""
    head = randomised(LadderHeadSettings(hidden_dim=6, last_hidden_dim=9).build(IN, OUT, SHAPE))
    assert isinstance(head, LadderHead)
    blocks = [spatial(), spatial() + 1, spatial() * 2]
    total, start = head.final.bias.double(), 0
    for step, block in zip(head.steps, blocks, strict=True):
        hidden = nn.functional.gelu(block.double() @ step.weight.double().T + step.bias.double())
        total = total + hidden @ head.final.weight[:, start : start + hidden.shape[-1]].double().T
        start += hidden.shape[-1]
    assert [step.out_features for step in head.steps] == [6, 6, 9]
    torch.testing.assert_close(head(blocks), total.float())
    assert LadderHeadSettings().build(IN, OUT, SHAPE).steps[-1].out_features == 4 * IN
    assert abs(LadderHeadSettings().build(IN, OUT, SHAPE).final.weight.std() - 0.02) < 0.002


def test_what_the_student_lacks_is_said():
    with pytest.raises(UserError, match="a head of type 'ladder' reads the blocks of a student of type 'vit'"):
        LadderHeadSettings().build(IN, OUT)
    with pytest.raises(UserError, match="num_heads 7 does not divide the student's 24 channels"):
        TransformerHeadSettings(num_heads=7).build(IN, OUT)
    assert TransformerHeadSettings().build(384, OUT).blocks[0].attn.num_heads == 6
    assert TransformerHeadSettings().build(200, OUT).blocks[0].attn.num_heads == 2
    assert TransformerHeadSettings().build(IN, OUT).blocks[0].attn.num_heads == 1


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


def test_heads_read_their_slot_of_the_summary_the_other_kind_and_all_blocks():
    features = Features(torch.randn(2, 12), spatial())
    blocks = [Features(features.summary * k, features.spatial * k) for k in (0.5, 2.0, 1.0)]
    shape = StudentShape(IN, 3)
    ladder = Head(randomised(LadderHeadSettings().build(4, 3, shape)), randomised(LadderHeadSettings().build(IN, OUT, shape)), 1, 4)
    assert ladder.reads_blocks
    found = ladder(features, blocks)
    torch.testing.assert_close(found.summary, ladder.summary([block.summary[:, 4:8] for block in blocks]))
    torch.testing.assert_close(found.spatial, ladder.spatial([block.spatial for block in blocks]))
    kinds = TransformerHeadSettings(num_heads=2).build(4, 3, shape), TransformerHeadSettings(num_heads=2).build(IN, OUT, StudentShape(4))
    both = Head(*map(randomised, kinds), 2, 4)
    assert not both.reads_blocks
    torch.testing.assert_close(both(features).summary, both.summary(features.summary[:, 8:], features.spatial))
    torch.testing.assert_close(both(features).spatial, both.spatial(features.spatial, features.summary[:, 8:]))


# each setting


CHANGES: dict[type[HeadSettings], dict[str, object]] = {
    MlpHeadSettings: {"hidden_dim": 7, "num_inner": 2, "upsample_factor": 2},
    AttentionHeadSettings: {"depth": 1, "num_heads": 2, "hidden_dim": 7, "upsample_factor": 2},
    LinearHeadSettings: {},
    TransformerHeadSettings: {"depth": 2, "num_heads": 3},
    LadderHeadSettings: {"hidden_dim": 5, "last_hidden_dim": 7},
    MlpV1HeadSettings: {"hidden_dim": 7, "num_inner": 2},
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CHANGES.items() for name in names])
def test_each_setting_changes_the_outcome(kind: type[HeadSettings], name: str):
    base = {"num_heads": 4} if kind is AttentionHeadSettings else {}

    def outcome(given: dict[str, object]) -> tuple[dict[str, tuple[int, ...]], torch.Tensor]:
        head = randomised(kind.model_validate({**base, **given}).build(IN, OUT, SHAPE))
        return {k: tuple(t.shape) for k, t in head.state_dict().items()}, said(head, spatial())

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
