"""Which part of a student is trained: all of it, its last blocks, or low-rank additions to its blocks (LoRA)."""

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, TypeVar

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Depth, Settings, Width
from ..errors import UserError

Module = TypeVar("Module", bound=nn.Module)


class AllSettings(Settings):
    """The whole student."""

    type: Literal["all"] = "all"

    def choose(self, student: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Changes nothing."""
        del student, blocks


class LastBlocksSettings(Settings):
    """The last blocks; what stands before them keeps its bits."""

    type: Literal["last_blocks"] = "last_blocks"
    count: Depth
    """How many blocks."""

    def choose(self, student: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Freezes all but the last `count` of `blocks`; UserError where there are fewer."""
        if self.count > len(blocks):
            way_out = f"give at most {len(blocks)}" if blocks else "take train: all"
            raise UserError(f"count: the last {self.count} blocks were asked for, the student has {len(blocks) or 'no'}; {way_out}")
        student.requires_grad_(False)
        for block in blocks[-self.count :]:
            block.requires_grad_(True)


class LoraSettings(Settings):
    """Low-rank additions to the linear layers of all blocks (LoRA, Hu et al. 2021); a model folder holds them merged into the weights."""

    type: Literal["lora"] = "lora"
    rank: Width = 16
    """Columns of the two matrices whose product is added to a weight."""
    alpha: Annotated[float, pydantic.Field(gt=0, le=1e6)] = 32.0
    """The product is scaled by alpha / rank before it is added."""

    def choose(self, student: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Freezes the student and adds to each linear layer of `blocks`; UserError where there is none."""
        found = [(block, *pair) for block in blocks for pair in _linears(block)]
        if not found:
            raise UserError("type: 'lora' adds to the linear layers of blocks, and the student has none; take train: all")
        student.requires_grad_(False)
        for block, name, linear in found:
            _replace(block, name, LowRankLinear(linear, self.rank, self.alpha / self.rank))


TRAINED = (AllSettings, LastBlocksSettings, LoraSettings)


class LowRankLinear(nn.Linear):
    """A frozen linear layer and a trained low-rank addition: y = W x + b + scale B A x (LoRA, Hu et al. 2021, section 4.1, eq. 3).

    `lora_a` [rank, in] is drawn from a normal distribution, `lora_b` [out, rank] is zero, so that it begins as the layer it replaces.
    `weight` and `bias` keep their names, and are that layer's own parameters.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        """linear: the layer to add to; it is frozen."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = scale
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if linear.bias is not None:
            linear.bias.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, self.in_features).to(self.weight) * self.in_features**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank).to(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(input, self.weight, self.bias) + self.scale * F.linear(F.linear(input, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer that says the same: W + scale B A, summed in float64."""
        weight = self.weight.double() + self.scale * self.lora_b.double() @ self.lora_a.double()
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")  # draws no random numbers
        plain.weight = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        return plain


def merged(student: Module) -> Module:
    """The student as it is handed over: without low-rank additions itself, else a copy with these merged into the weights."""
    names = [name for name, module in student.named_modules() if isinstance(module, LowRankLinear)]
    if not names:
        return student
    plain = copy.deepcopy(student)
    for name in names:
        added = plain.get_submodule(name)
        assert isinstance(added, LowRankLinear)
        _replace(plain, name, added.merged())
    return plain


def train_rows(parameter: nn.Parameter, rows: Sequence[int]) -> None:
    """Trains these rows of a parameter and no others: the gradient of the others is zero, so that they keep their bits without decay."""
    if not rows:
        return
    mask = torch.zeros(len(parameter), *[1] * (parameter.ndim - 1))
    mask[list(rows)] = 1
    parameter.requires_grad_(True)
    parameter.register_hook(lambda gradient: gradient * mask.to(gradient))


def _linears(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Plain ones only: layers derived from it may read their weight elsewhere (`nn.MultiheadAttention`)."""
    return ((name, module) for name, module in block.named_modules() if type(module) is nn.Linear)


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, new)
