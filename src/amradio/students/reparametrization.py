"""Weights that are computed from others in training: spectral reparametrisation (AM-RADIO, section 3) and weight noise (DAMP).

Both are parametrisations of torch on the `weight` of linear layers, so that whatever reads `layer.weight` gets the acting weight.
Parameters and buffers have the names of published checkpoints: `P.parametrizations.weight.original`, `P.parametrizations.weight.0.scale`
and so on.
"""

import copy
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, register_parametrization

from ..errors import UserError
from .base import Student

Module = TypeVar("Module", bound=nn.Module)

LEAST_SCALE = 0.05
"""The smallest spectral norm that a reparametrised matrix can have: scale = softplus(s) + 0.05, as published (version 2)."""
VERSION = 2
FIRST_ITERATIONS = 30
"""Steps of power iteration at the start; one follows in each training step (Miyato et al., arXiv 1802.05957)."""
SEPARATE = {"qkv": 3}
"""Layers, by the last word of their name, whose rows are several matrices on top of one another (queries, keys, values)."""
PATCHES = "patch_generator."
"""Start of the names of layers that stay as they are, as published."""


class Spectral(nn.Module):
    """W' = scale W / sigma(W), with scale = softplus(s) + 0.05 and sigma = u^T W v, u and v found by power iteration.

    Parameter `scale` [1, 1] (the s), which decays in place of W; buffers `_u` [out], `_v` [in] and `_sn_version`.
    """

    _u: Tensor
    _v: Tensor
    _sn_version: Tensor

    def __init__(self, weight: Tensor):
        """weight: [out, in], which stays as it is where its norm is 0.05 or more."""
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        for name, count in (("_u", weight.shape[0]), ("_v", weight.shape[1])):
            vector = torch.randn(count, generator=draws, dtype=torch.float32).to(weight)
            self.register_buffer(name, F.normalize(vector, dim=0))
        self.register_buffer("_sn_version", torch.tensor(VERSION, device=weight.device))
        for _ in range(FIRST_ITERATIONS):
            self.iterate(weight)
        excess = (self.sigma(weight.detach()) - LEAST_SCALE).clamp(min=1e-6)
        self.scale = nn.Parameter((excess + torch.log(-torch.expm1(-excess))).reshape(1, 1))

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """One step of power iteration."""
        self._u.copy_(F.normalize(weight @ self._v, dim=0))
        self._v.copy_(F.normalize(weight.T @ self._u, dim=0))

    def sigma(self, weight: Tensor) -> Tensor:
        """[]: the largest singular value of weight [out, in], as u and v see it."""
        return (self._u @ weight @ self._v).clamp(min=1e-6)

    def forward(self, weight: Tensor) -> Tensor:
        """[out, in] -> the acting weight [out, in], in the dtype of the weight also under autocast."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight * ((F.softplus(self.scale) + LEAST_SCALE) / self.sigma(weight))


class SpectralParts(nn.Module):
    """`Spectral` for each of several equal parts of the rows."""

    def __init__(self, weight: Tensor, count: int):
        """weight: [count * out, in]."""
        super().__init__()
        self.parts = nn.ModuleList(Spectral(part) for part in weight.chunk(count))

    def iterate(self, weight: Tensor) -> None:
        """One step of power iteration for each part."""
        for part, rows in zip(self.parts, weight.chunk(len(self.parts)), strict=True):
            assert isinstance(part, Spectral)
            part.iterate(rows)

    def forward(self, weight: Tensor) -> Tensor:
        """[count * out, in] -> the acting weight, of the same shape."""
        return torch.cat([part(rows) for part, rows in zip(self.parts, weight.chunk(len(self.parts)), strict=True)])


class WeightNoise(nn.Module):
    """DAMP (Trinh et al. 2024): W' = W (1 + deviation * noise) in training, with normal noise, drawn once a step; W in evaluation."""

    def __init__(self, deviation: float):
        """deviation: of the factor of each weight."""
        super().__init__()
        self.deviation = deviation
        self.factor: Tensor | None = None
        """Of the step; None before the first one."""

    def draw(self, weight: Tensor, seed: int) -> None:
        """New noise, the same for the same seed on every process."""
        draws = torch.Generator(weight.device).manual_seed(seed)
        noise = torch.randn(weight.shape, generator=draws, device=weight.device, dtype=weight.dtype)
        self.factor = noise.mul_(self.deviation).add_(1)

    def forward(self, weight: Tensor) -> Tensor:
        """[out, in] -> the same shape."""
        return weight * self.factor if self.training and self.factor is not None else weight


def reparametrize(student: Student, spectral: bool, deviation: float) -> None:
    """Gives the linear layers of a student acting weights, in place; what it predicts in evaluation stays as it is.

    deviation: of the noise; 0 for none. Raises UserError where the student has no linear layer.
    """
    layers = [(name, layer) for name, layer in student.named_modules() if type(layer) is nn.Linear and not name.startswith(PATCHES)]
    if not layers:
        raise UserError("the student has no linear layers; leave it out")
    for name, layer in layers:
        if spectral:
            count = SEPARATE.get(name.rpartition(".")[2])
            register_parametrization(layer, "weight", Spectral(layer.weight) if count is None else SpectralParts(layer.weight, count))
        if deviation:
            register_parametrization(layer, "weight", WeightNoise(deviation))


def parametrizations(module: nn.Module) -> Iterator[tuple[str, ParametrizationList]]:
    """Names of the layers whose weight is computed, and what computes it."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and is_parametrized(layer, "weight"):
            chain = cast(nn.ModuleDict, layer.parametrizations)["weight"]
            assert isinstance(chain, ParametrizationList)
            yield name, chain


def without_decay(student: Student) -> set[str]:
    """Names of the parameters whose size does not matter, so that they do not decay: the matrices below spectral reparametrisation."""
    return {
        f"{name}.parametrizations.weight.original"
        for name, chain in parametrizations(student)
        if any(isinstance(step, Spectral | SpectralParts) for step in chain)
    }


@torch.no_grad()
def begin_step(student: Student, seed: int, step: int) -> None:
    """Before a training step: one step of power iteration, and the noise of this step, a function of seed, step and layer."""
    for number, (_, chain) in enumerate(parametrizations(student)):
        weight = chain.original
        assert isinstance(weight, Tensor)
        for part in chain:
            if isinstance(part, Spectral | SpectralParts):
                part.iterate(weight)
            elif isinstance(part, WeightNoise):
                part.draw(weight, (seed * 1_000_003 + step * 4099 + number) % 2**63)


@torch.no_grad()
def _acting(chain: ParametrizationList) -> Tensor:
    """The weight as it acts in evaluation."""
    weight = chain.original
    assert isinstance(weight, Tensor)
    for part in chain:
        weight = weight if isinstance(part, WeightNoise) else part(weight)
    return weight


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with acting weights in the place of what they are computed from: that of `plain(module)`."""
    chains = dict(parametrizations(module))
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        layer, separator, rest = key.partition(".parametrizations.weight.")
        if not separator:
            state[key] = value
        elif rest == "original":
            state[f"{layer}.weight"] = _acting(chains[layer])
    return state


def plain(module: Module) -> Module:
    """The module itself where all its weights are plain, else a copy whose acting weights are its parameters."""
    if next(parametrizations(module), None) is None:
        return module
    copied = copy.deepcopy(module)
    for name, chain in list(parametrizations(copied)):
        parent, _, last = name.rpartition(".")
        setattr(copied.get_submodule(parent), last, _linear(copied.get_submodule(name), _acting(chain)))
    return copied


def _linear(layer: nn.Module, weight: Tensor) -> nn.Linear:
    """A plain layer with this weight and the bias of `layer`. (torch's `remove_parametrizations` changes the class, which copies share.)"""
    assert isinstance(layer, nn.Linear)
    new = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")  # draws no random numbers
    new.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return new.train(layer.training)
