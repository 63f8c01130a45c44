"""Images of several sizes in one sequence of tokens: the same numbers and gradients as one size after another, in float64."""

import pytest
import torch

from amradio.errors import UserError
from amradio.students import VitSettings
from amradio.students.drop_path import add_drop_path
from amradio.students.vit import Vit

SIZES = ((32, 32), (16, 32), (32, 16), (48, 16))
"""Of the second and third a pack has equally many tokens."""


def groups() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return [
        (torch.rand(count, 3, *size, generator=draws, dtype=torch.float64), torch.rand(count, 8, generator=draws))
        for count, size in zip((2, 1, 3, 2), SIZES, strict=True)
    ]


def student(**settings: object) -> Vit:
    shape = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "max_image_size": 64, "num_registers": 1, "layer_scale": 0.5}
    torch.manual_seed(0)
    vit = VitSettings.model_validate(shape | settings).build(2).double()
    add_drop_path(vit, 0.5)
    return vit.train()


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True, "final_norm": True, "mlp": "swiglu"}])
@pytest.mark.parametrize("fused", [True, False])
def test_packed_training_is_that_of_one_size_after_another(settings: dict, fused: bool):
    vit = student(**settings)
    vit.fuse_attention(fused)
    gradients, outputs = [], []
    for is_packed in (True, False):
        vit.zero_grad()
        vit.gradient_checkpointing = is_packed and settings.get("gradient_checkpointing", False)
        if is_packed:
            found = vit.forward_packed(groups(), blocks=True)
        else:
            found = []
            for images, draws in groups():
                vit.take_draws(draws)
                found.append(vit.forward_blocks(images, draws))
        features = [each for last, blocks in found for each in (last, *blocks)]
        loss = sum(each.spatial.square().mean((1, 2, 3)).sum() + each.summary.sin().sum() for each in features)
        loss.backward()
        outputs.append(features)
        gradients.append({name: parameter.grad.clone() for name, parameter in vit.named_parameters()})
    for packed, alone in zip(*outputs, strict=True):
        torch.testing.assert_close(packed.spatial, alone.spatial, rtol=0, atol=1e-12)
        torch.testing.assert_close(packed.summary, alone.summary, rtol=0, atol=1e-12)
    assert len(outputs[0]) == 3 * len(SIZES)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_a_pack_is_refused_in_windowed_mode_and_by_other_students():
    vit = student()
    vit.set_windows(2, 1)
    with pytest.raises(UserError, match="a student with windows takes images of one size at a time"):
        vit.forward_packed(groups())
    assert student().packs
    assert student().forward_packed([]) == []
