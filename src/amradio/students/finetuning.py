"""Which part of a student is trained: all of it, its last blocks, or low-rank additions to its blocks (LoRA)."""

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reparametrization import plain

Module = TypeVar("Module", bound=nn.Module)


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
    """The student as it is handed over: itself where all weights are plain, else a copy with low-rank additions merged into them, or
    with the acting weights in the place of those that they are computed from."""
    student = plain(student)
    names = [name for name, module in student.named_modules() if isinstance(module, LowRankLinear)]
    if not names:
        return student
    copied = copy.deepcopy(student)
    for name in names:
        added = copied.get_submodule(name)
        assert isinstance(added, LowRankLinear)
        replace_module(copied, name, added.merged())
    return copied


def train_rows(parameter: nn.Parameter, rows: Sequence[int]) -> None:
    """Trains these rows of a parameter and no others: the gradient of the others is zero, so that they keep their bits without decay."""
    if not rows:
        return
    mask = torch.zeros(len(parameter), *[1] * (parameter.ndim - 1))
    mask[list(rows)] = 1
    parameter.requires_grad_(True)
    parameter.register_hook(lambda gradient: gradient * mask.to(gradient))


def linears(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Names and linear layers of a block. Plain ones only: a subclass may read its weight elsewhere (`nn.MultiheadAttention`)."""
    return ((name, module) for name, module in block.named_modules() if type(module) is nn.Linear)


def replace_module(module: nn.Module, name: str, new: nn.Module) -> None:
    """Puts `new` in the place of the submodule `name` of `module`."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, new)
