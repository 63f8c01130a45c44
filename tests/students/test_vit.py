"""The ViT against independent implementations: transformers, timm, and the slow obvious form."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from transformers import RadioConfig, RadioModel

from amradio.config import validate
from amradio.errors import UserError
from amradio.students.vit import Vit
from amradio.students.vit_settings import SIZES, VitSettings

TINY = {"dim": 48, "depth": 2, "num_heads": 4, "patch_size": 16, "num_registers": 5, "max_image_size": 256}
SIZES_PX = [(64, 96), (160, 32), (256, 256), (32, 288)]


def make(num_summaries: int = 3, seed: int = 0, **changes: object) -> Vit:
    """A tiny ViT all of whose weights matter."""
    torch.manual_seed(seed)
    vit = VitSettings.model_validate({**TINY, **changes}).build(num_summaries)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (1 if "norm" in name and name.endswith("weight") else 0))
            elif "blocks" in name:
                parameter.mul_(5)
    return vit.eval()


def images(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def to_transformers(vit: Vit) -> RadioModel:
    config = RadioConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=16,
        max_img_size=256,
        num_cls_tokens=3,
        num_registers=5,
        summary_idxs=[0, 1, 2],
    )
    model = RadioModel(config).eval()
    own, theirs = vit.state_dict(), {}
    theirs["embeddings.patch_projection.weight"] = own.pop("patch_generator.embedder.weight")
    theirs["embeddings.position_embedding"] = own.pop("patch_generator.pos_embed")
    theirs["embeddings.cls_register_token"] = own.pop("patch_generator.cls_token.token")
    for name, tensor in own.items():
        layer = name.replace("blocks.", "encoder.layer.").replace("attn.proj.", "attention.o_proj.")
        layer = layer.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        if "attn.qkv" in name:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                theirs[layer.replace("attn.qkv", f"attention.{part}_proj")] = chunk
        else:
            theirs[layer] = tensor
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert all(key.startswith(("input_conditioner", "summary_idxs")) or "lambda1" in key for key in missing)
    return model


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("size", SIZES_PX)
@torch.no_grad()
def test_equals_transformers_radio(size: tuple[int, int], layer_scale: float | None):
    vit = make(layer_scale=layer_scale)
    expected = to_transformers(vit)(images(*size))
    found = vit(images(*size))
    torch.testing.assert_close(found.summary, expected.summary, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.spatial.flatten(1, 2), expected.features, rtol=0, atol=1e-5)


def timm_arguments() -> dict[str, object]:
    return {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, "init_values": 0.1, "reg_tokens": 7, "final_norm": False}


def radio_layout(vit: Vit) -> dict[str, torch.Tensor]:
    return {f"radio_model.model.{name}": tensor for name, tensor in vit.state_dict().items()}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES_PX)
@torch.no_grad()
def test_equals_timm_radio(size: tuple[int, int], align_corners: bool):
    vit = make(layer_scale=0.1, align_corners=align_corners)
    normalised = vit.condition(images(*size))
    fixed = VisionTransformer(img_size=size, num_classes=0, no_embed_class=True, **timm_arguments())
    weights = checkpoint_filter_fn(radio_layout(vit), fixed, interpolation="bilinear", antialias=False, align_corners=align_corners)
    fixed.load_state_dict(weights)
    found = vit(images(*size))
    tokens = torch.cat([found.summary.unflatten(1, (3, 48)), found.spatial.flatten(1, 2)], 1)
    expected = fixed.eval().forward_features(normalised)
    torch.testing.assert_close(tokens, torch.cat([expected[:, :3], expected[:, 8:]], 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@torch.no_grad()
def test_equals_timm_naflex_radio(align_corners: bool):
    vit = make(layer_scale=0.1, align_corners=align_corners)
    config = NaFlexVitCfg(
        class_token=True,
        global_pool="token",
        pos_embed_grid_size=(16, 16),
        pos_embed_interp_mode="bilinear",
        pos_embed_ar_preserving=True,
        pos_embed_antialias=False,
        pos_embed_align_corners=align_corners,
        **timm_arguments(),
    )
    model = NaFlexVit(config, num_classes=0)
    own = vit.state_dict()
    tokens = own["patch_generator.cls_token.token"][None]
    weights = {name: tensor for name, tensor in own.items() if name.startswith("blocks.")}
    weights |= {"embeds.cls_token": tokens[:, :1], "embeds.reg_token": tokens[:, 1:], "embeds.proj.bias": torch.zeros(48)}
    # NaFlex flattens a patch as (y, x, channel)
    weights["embeds.proj.weight"] = own["patch_generator.embedder.weight"].reshape(48, 3, 16, 16).permute(0, 2, 3, 1).flatten(1)
    weights["embeds.pos_embed"] = own["patch_generator.pos_embed"].reshape(1, 16, 16, 48)
    model.load_state_dict(weights)
    for size in SIZES_PX:
        expected = model.eval().forward_features(vit.condition(images(*size)))
        torch.testing.assert_close(vit(images(*size)).spatial.flatten(1, 2), expected[:, 8:], rtol=0, atol=1e-5)


def slow_viewport(table: torch.Tensor, grid: tuple[int, int], draw: torch.Tensor, dropout: float) -> torch.Tensor:
    """One sample's positions [h, w, D], by grid_sample over the table [R, R, D]."""
    scale = math.sqrt(0.1) + (1 - math.sqrt(0.1)) * draw[0].item()
    aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draw[1].item())
    across, down = min(scale * aspect, 1.0), min(scale / aspect, 1.0)
    x = torch.linspace(0, 1, grid[1]) * across + draw[2].item() * (1 - across)
    y = torch.linspace(0, 1, grid[0]) * down + draw[3].item() * (1 - down)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].to(table.dtype) * 2 - 1
    found = F.grid_sample(table.permute(2, 0, 1)[None], places, mode="bilinear", padding_mode="zeros", align_corners=True)
    return found[0].permute(1, 2, 0) * (draw[4].item() >= dropout)


@pytest.mark.parametrize("grid", [(4, 6), (9, 2), (16, 5), (1, 1), (3, 20)])
def test_training_positions_equal_the_slow_form(grid: tuple[int, int]):
    generator = make(position_dropout=0.3).patch_generator
    draws = torch.rand(12, 8, generator=torch.Generator().manual_seed(5))
    draws[0, :4], draws[1, :4] = 0, 0.99999994
    found = generator.positions(grid, draws)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(6))
    (gradient,) = torch.autograd.grad((found * weight).sum(), generator.pos_embed)
    table = generator.pos_embed.detach().clone().requires_grad_()
    slow = torch.stack([slow_viewport(table.reshape(16, 16, 48), grid, draw, 0.3) for draw in draws]).flatten(1, 2)
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-5)
    (expected,) = torch.autograd.grad((slow * weight).sum(), table)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    dropped = draws[:, 4] < 0.3
    assert 0 < dropped.sum() < 12
    assert (found[dropped] == 0).all()


def test_a_grid_as_large_as_the_table_is_read_whole_in_training_too():
    generator = make(position_dropout=0.0).patch_generator
    torch.testing.assert_close(generator.positions((16, 16), torch.rand(2, 8)), generator.pos_embed.expand(2, -1, -1), rtol=0, atol=0)


def test_positions_of_a_long_strip_follow_the_longer_side():
    generator = make().patch_generator
    table = generator.pos_embed.reshape(1, 16, 16, 48).permute(0, 3, 1, 2)
    expected = F.interpolate(table, (40, 40), mode="bilinear", align_corners=False)[:, :, :2]
    torch.testing.assert_close(generator.positions((2, 40), None), expected.flatten(2).transpose(1, 2))


def outcome(vit: Vit, draws: torch.Tensor) -> tuple[object, ...]:
    calls: list[int] = []
    for block in vit.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    evaluated = vit.eval()(images(96, 144)).spatial
    trained = vit.train()(images(96, 144), draws).spatial
    trained.sum().backward()
    return {k: tuple(t.shape) for k, t in vit.state_dict().items()}, evaluated.detach(), trained.detach(), len(calls)


CHANGES: dict[str, object] = {
    "patch_size": 12,
    "dim": 32,
    "depth": 1,
    "num_heads": 2,
    "mlp_dim": 100,
    "mlp": "swiglu",
    "final_norm": True,
    "num_registers": 6,
    "max_image_size": 128,
    "layer_scale": 0.5,
    "align_corners": True,
    "position_dropout": 0.9,
    "viewport": False,
    "viewport_scale": (0.2, 0.5),
    "gradient_checkpointing": True,
}


def test_every_setting_is_tried():
    assert set(CHANGES) == set(VitSettings.model_fields) - {"type", "size", "start_from", "train"}  # test_vit_start, test_trained


@pytest.mark.slow
def test_each_size_is_its_own_shape_until_overridden():
    assert len({VitSettings.model_validate({"size": size}).shape() for size in SIZES}) == len(SIZES) == 7
    for size, shape in SIZES.items():
        assert VitSettings.model_validate({"size": size}).shape() == shape
    assert VitSettings(size="so400m", depth=2).shape() == (1152, 2, 16, 4304)
    assert VitSettings(size="so400m", dim=64).shape() == (64, 27, 16, 256)
    assert VitSettings(size="tiny", dim=1152, mlp_dim=4304, depth=1).build(1).blocks[0].mlp.fc1.out_features == 4304


@pytest.mark.parametrize("name", CHANGES)
def test_each_setting_changes_the_outcome(name: str):
    draws = torch.rand(2, 8, generator=torch.Generator().manual_seed(7))
    before, after = outcome(make(), draws), outcome(make(**{name: CHANGES[name]}), draws)
    same_numbers = all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(before[1:3], after[1:3], strict=True))
    assert before[0] != after[0] or not same_numbers or before[3] != after[3]


def test_gradient_checkpointing_gives_the_same_numbers():
    draws, found = torch.rand(2, 8, generator=torch.Generator().manual_seed(7)), []
    for checkpointing in (False, True):
        vit = make(gradient_checkpointing=checkpointing).train()
        features = vit(images(64, 96), draws)
        (features.spatial.square().mean() + features.summary.square().mean()).backward()
        found.append([features.spatial, *(p.grad for p in vit.parameters())])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=0)


@torch.no_grad()
def test_intermediates_end_at_the_output_and_keep_the_order():
    vit = make(depth=3)
    first, last, again = vit.intermediates(images(64, 96), [0, -1, -3])
    torch.testing.assert_close(last.spatial, vit(images(64, 96)).spatial, rtol=0, atol=0)
    torch.testing.assert_close(first.summary, again.summary, rtol=0, atol=0)
    assert not torch.allclose(first.spatial, last.spatial)
    with pytest.raises(UserError, match="no block 3; this student has 3"):
        vit.intermediates(images(64, 96), [3])


def test_under_autocast_the_residual_stream_keeps_the_dtype_of_the_weights():
    with torch.autocast("cpu", torch.bfloat16):
        assert make()(images(64, 96)).spatial.dtype == torch.float32


@pytest.mark.slow
def test_compiles():
    vit = make().train()
    draws = torch.rand(2, 8, generator=torch.Generator().manual_seed(8))
    compiled = torch.compile(vit, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(64, 96), draws).spatial, vit(images(64, 96), draws).spatial)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 50}, "num_heads 6 does not divide dim 50"),
        ({"max_image_size": 4}, "holds no patch of 16 px"),
        ({"viewport_scale": [0.5, 0.2]}, "is not .least, greatest."),
        ({"size": "smal"}, "size"),
        ({"layer_scale": 0.0}, "layer_scale"),
    ],
)
def test_bad_settings_are_one_message(settings: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        validate(VitSettings, settings)
