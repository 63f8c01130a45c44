"""ViTs with SwiGLU, with a norm in their MLPs and with a final norm: against the formulas, and against the plain ViT."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amradio.students.vit import Vit, make_block
from amradio.students.vit_settings import SIZES, VitSettings, VitShape, known_size

SHAPE = VitShape(32, 2, 4, 24)


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def vit(**keys: object) -> Vit:
    settings = VitSettings.model_validate({"dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "max_image_size": 64, **keys})
    return randomised(settings.build(2))


def slow_mlp(mlp: nn.Module, kind: str, x: Tensor) -> Tensor:
    weights = {name: tensor.double() for name, tensor in mlp.state_dict().items()}
    if kind == "swiglu":
        a, b = (x @ weights["w12.weight"].T + weights["w12.bias"]).split(SHAPE.mlp_dim, dim=-1)
        return (a * torch.sigmoid(a) * b) @ weights["w3.weight"].T + weights["w3.bias"]
    hidden = F.gelu(x @ weights["fc1.weight"].T + weights["fc1.bias"])
    if kind == "gelu_norm":
        centred = hidden - hidden.mean(-1, keepdim=True)
        hidden = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights["norm.weight"] + weights["norm.bias"]
    return hidden @ weights["fc2.weight"].T + weights["fc2.bias"]


@pytest.mark.parametrize("kind", ["gelu", "gelu_norm", "swiglu"])
def test_mlps_are_their_formulas_with_gradients(kind: str) -> None:
    block = randomised(make_block(SHAPE, None, kind)).double()
    x = torch.randn(2, 5, 32, dtype=torch.float64, requires_grad=True)
    fast, slow = block.mlp(x), slow_mlp(block.mlp, kind, x)
    torch.testing.assert_close(fast, slow)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (fast, slow)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["gelu", "gelu_norm", "swiglu"])
def test_parameters_are_counted(kind: str) -> None:
    settings = VitSettings(dim=32, depth=2, num_heads=4, mlp=kind, final_norm=True, layer_scale=0.1, max_image_size=64)
    assert settings.count_parameters(3) == sum(parameter.numel() for parameter in settings.build(3).parameters())


def test_hidden_channels_of_swiglu() -> None:
    """Two thirds of those of another MLP, in multiples of 8: 4096 for DINOv2-g."""
    assert VitSettings(size="giant", mlp="swiglu").shape().mlp_dim == 4096
    assert VitSettings(dim=48, num_heads=4, mlp="swiglu").shape().mlp_dim == 128
    assert VitSettings(dim=48, num_heads=4, mlp="swiglu", mlp_dim=20).shape().mlp_dim == 20
    assert known_size(VitShape(1536, 40, 24, 4096), "swiglu") == "giant"
    assert known_size(SIZES["giant"], "swiglu") is None


@pytest.mark.parametrize("windows", [None, 2])
def test_the_final_norm_is_on_all_tokens_and_not_between(windows: int | None) -> None:
    plain, normed = vit(), vit(final_norm=True)
    normed.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(2, 3, 32, 48)
    for student in (plain, normed):
        student.set_windows(windows, num_global=1)
    raw, found = plain(images), normed(images)
    norm = normed.norm
    wanted = F.layer_norm(raw.spatial, (32,), norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(found.spatial, wanted)
    tokens = F.layer_norm(raw.summary.unflatten(1, (2, 32)), (32,), norm.weight, norm.bias, 1e-6)
    torch.testing.assert_close(found.summary, tokens.flatten(1))
    last, blocks = normed.forward_blocks(images)
    assert torch.equal(last.spatial, found.spatial)
    assert torch.equal(blocks[-1].spatial, raw.spatial)
    assert torch.equal(normed.intermediates(images, [-1])[0].spatial, raw.spatial)
    if windows is None:
        (packed,) = normed.pack([images[1]])
        torch.testing.assert_close(packed.spatial, found.spatial[1:])
