"""Which part of a student is trained: frozen bits, low-rank additions against their formula, and how they merge."""

import copy

import pytest
import torch
from torch import nn

from amradio.config import validate
from amradio.errors import UserError
from amradio.students.finetuning import LowRankLinear, merged, train_rows
from amradio.students.settings import TrainedSettings
from amradio.students.vit import Vit
from amradio.students.vit_settings import VitSettings

TINY = {"dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "num_registers": 2, "max_image_size": 64}


def make(train: dict) -> Vit:
    torch.manual_seed(0)
    settings = VitSettings.model_validate({**TINY, "train": train})
    vit = settings.build(2)
    settings.train.choose(vit, vit.blocks_in_order())
    return vit


def trained_names(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_all_is_the_default_and_freezes_nothing():
    vit = make({"type": "all"})
    assert trained_names(vit) == {name for name, _ in vit.named_parameters()}
    assert VitSettings().train.type == "all"


@pytest.mark.parametrize("count", [1, 3])
def test_the_last_blocks_are_counted_from_the_end(count: int):
    vit = make({"type": "last_blocks", "count": count})
    wanted = tuple(f"blocks.{number}." for number in range(3 - count, 3))
    assert trained_names(vit) == {name for name, _ in vit.named_parameters() if name.startswith(wanted)}


def test_low_rank_additions_are_on_every_linear_layer_of_the_blocks_and_nowhere_else():
    vit = make({"type": "lora", "rank": 4, "alpha": 8.0})
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert trained_names(vit) == {f"blocks.{n}.{layer}.lora_{m}" for n in range(3) for layer in layers for m in "ab"}
    plain = VitSettings.model_validate(TINY).build(2)
    assert {name for name in vit.state_dict() if "lora" not in name} == set(plain.state_dict()), "weights keep their names"


@torch.no_grad()
def test_a_student_with_additions_begins_as_the_one_without():
    with_, without = make({"type": "lora"}).eval(), make({"type": "all"}).eval()
    images = torch.rand(2, 3, 32, 40)
    assert torch.equal(with_(images).spatial, without(images).spatial)


@torch.no_grad()
def test_the_addition_is_alpha_over_rank_times_the_product():
    torch.manual_seed(1)
    linear = nn.Linear(7, 5)
    layer = LowRankLinear(copy.deepcopy(linear), rank=3, scale=8.0 / 3)
    layer.lora_b.normal_()
    x = torch.randn(2, 4, 7)
    wanted = x.double() @ (linear.weight.double() + 8 / 3 * layer.lora_b.double() @ layer.lora_a.double()).T + linear.bias.double()
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.merged()(x).double(), wanted, rtol=1e-5, atol=1e-5)
    assert type(layer.merged()) is nn.Linear
    bare = LowRankLinear(nn.Linear(7, 5, bias=False), 2, 1.0)
    assert bare.merged().bias is None


@torch.no_grad()
def test_merging_gives_a_plain_student_that_says_the_same_and_leaves_the_other_as_it_is():
    vit = make({"type": "lora", "rank": 4, "alpha": 4.0}).eval()
    for name, parameter in vit.named_parameters():
        if "lora_b" in name:
            parameter.normal_(std=0.05)
    images = torch.rand(2, 3, 32, 40)
    before = vit(images)
    plain = merged(vit)
    assert plain.state_dict().keys() == VitSettings.model_validate(TINY).build(2).state_dict().keys()
    torch.testing.assert_close(plain(images).spatial, before.spatial, rtol=0, atol=1e-5)
    torch.testing.assert_close(plain(images).summary, before.summary, rtol=0, atol=1e-5)
    assert not torch.allclose(make({"type": "all"}).eval()(images).spatial, before.spatial, atol=1e-2)
    assert torch.equal(vit(images).spatial, before.spatial)
    assert merged(plain) is plain, "nothing to merge, nothing copied"


def test_layers_that_are_derived_from_linear_are_left_alone():
    """`nn.MultiheadAttention` reads its output layer's weight itself: an addition there would be ignored."""
    block = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "out": nn.Linear(8, 8)})
    validate(TrainedSettings, {"train": "lora"}).train.choose(block, [block])
    assert trained_names(block) == {"out.lora_a", "out.lora_b"}


def test_rows_that_are_not_trained_keep_their_bits():
    torch.manual_seed(0)
    table, weight = nn.Parameter(torch.randn(5, 3), requires_grad=False), torch.randn(3, 3)
    train_rows(table, [1, 4])
    before = table.detach().clone()
    optimizer = torch.optim.AdamW([table], lr=0.1, weight_decay=0.0, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        (table @ weight).square().sum().backward()
        optimizer.step()
    changed = [not torch.equal(table[row], before[row]) for row in range(5)]
    assert changed == [False, True, False, False, True]
    none = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    train_rows(none, [])
    assert not none.requires_grad


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"type": "lora", "rank": 0}, r"train\.rank: .*greater than or equal to 1, found 0"),
        ({"type": "lora", "alpha": 0.0}, r"train\.alpha: .*greater than 0"),
        ({"type": "last_blocks"}, r"train\.count: this key is required"),
        ({"type": "last_blocks", "count": 0}, r"train\.count: .*greater than or equal to 1"),
        ({"type": "last_block", "count": 1}, "there is no type 'last_block'; did you mean 'last_blocks'"),
        ({"type": "lora", "rang": 1}, "there is no such key; did you mean 'rank'"),
    ],
)
def test_bad_settings_are_one_message(train: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        validate(TrainedSettings, {"train": train})
    assert len(caught.value.problems) == 1


def test_what_a_student_has_not_is_one_message():
    with pytest.raises(UserError, match="count: the last 4 blocks were asked for, the student has 3; give at most 3"):
        make({"type": "last_blocks", "count": 4})
    bare = nn.Linear(2, 2)
    with pytest.raises(UserError, match="the student has no; take train: all"):
        validate(TrainedSettings, {"train": {"type": "last_blocks", "count": 1}}).train.choose(bare, ())
    with pytest.raises(UserError, match="type: 'lora' adds to the linear layers of blocks, and the student has none"):
        validate(TrainedSettings, {"train": "lora"}).train.choose(bare, ())
