"""What predicts depth and normals from frozen maps: a linear layer, or DPT's fusion of four blocks (Ranftl et al. 2021, as in Probe3D)."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Settings, Width, one_of

NUM_BLOCKS = 4
"""Whose maps DPT fuses."""
UPSAMPLED = 4
"""How many predictions a cell has a side, in the linear head (DINOv2)."""
LEAST_SHARE = 0.1
"""Added to every bin (AdaBins), so that each has some share and a gradient."""


class LinearHeadSettings(Settings):
    """BatchNorm and a 1x1 convolution on the last map, upsampled four times (DINOv2)."""

    type: Literal["linear"] = "linear"

    def build(self, dim: int, outputs: int) -> nn.Module:
        """A fresh head: [B, dim, h, w] -> [B, outputs, 4 h, 4 w]."""
        return LinearHead(dim, outputs)


class DptHeadSettings(Settings):
    """DPT on the maps of four blocks of a ViT student, evenly spaced, the last one among them (Probe3D)."""

    type: Literal["dpt"] = "dpt"
    hidden_dim: Width = 512
    """Channels of all its layers."""

    def build(self, dim: int, outputs: int) -> nn.Module:
        """A fresh head: [B, dim, h, w], four maps behind one another -> [B, outputs, 16 h, 16 w]."""
        return DptHead(dim // NUM_BLOCKS, outputs, self.hidden_dim)


if TYPE_CHECKING:
    AnyGeometryHead = LinearHeadSettings | DptHeadSettings
else:
    AnyGeometryHead = one_of((LinearHeadSettings, DptHeadSettings))


class LinearHead(nn.Module):
    """Maps [B, D, h, w] -> [B, outputs, 4 h, 4 w], linear in each cell; between cells bilinear."""

    def __init__(self, dim: int, outputs: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """The convolution comes before the upsampling: both are linear and the weights of a pixel add up to 1, so it is the same."""
        return F.interpolate(self.conv(self.norm(maps)), scale_factor=UPSAMPLED, mode="bilinear", align_corners=False)


class DptHead(nn.Module):
    """Four maps as one [B, 4 D, h, w] -> [B, outputs, 16 h, 16 w]; the deepest is refined first, and the others are added to it in turn."""

    def __init__(self, dim: int, outputs: int, hidden_dim: int):
        super().__init__()
        self.dim = dim
        self.enter = nn.ModuleList(nn.Conv2d(dim, hidden_dim, 1) for _ in range(NUM_BLOCKS))
        self.joined = nn.ModuleList(Residual(hidden_dim) for _ in range(NUM_BLOCKS - 1))
        self.refine = nn.ModuleList(Residual(hidden_dim) for _ in range(NUM_BLOCKS))
        self.leave = nn.Sequential(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden_dim, outputs, 3, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Upsampling is by the nearest cell, as published."""
        parts = [F.interpolate(enter(part), scale_factor=2) for enter, part in zip(self.enter, maps.split(self.dim, 1), strict=True)]
        fused = self.refine[-1](parts[-1])
        for number in range(NUM_BLOCKS - 2, -1, -1):
            fused = self.refine[number](self.joined[number](parts[number]) + fused)
        return F.interpolate(self.leave(F.interpolate(fused, scale_factor=4)), scale_factor=2)


class Residual(nn.Module):
    """[B, D, h, w] -> the same shape: two 3x3 convolutions, each with a ReLU behind it, and the input."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """The input and what the layers make of it."""
        return maps + self.layers(maps)


def depth_of_bins(outputs: Tensor, least: float, most: float) -> Tensor:
    """[B, K, h, w] -> depth [B, h, w] in m: the mean of K evenly spaced depths from `least` to `most`, by relu(output) + 0.1 (AdaBins)."""
    shares = outputs.relu() + LEAST_SHARE
    depths = torch.linspace(least, most, outputs.shape[1], device=outputs.device)
    return torch.einsum("bkhw,k->bhw", shares / shares.sum(1, keepdim=True), depths)


_SEEDING = threading.Lock()
"""All threads share one global generator."""


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `build` makes with random weights that depend on `seed` alone, in whichever thread; the global generator is left as it was."""
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def block_numbers(depth: int) -> list[int]:
    """Which blocks of `depth` DPT reads: at a quarter, a half, three quarters, and the last one."""
    return [depth * quarter // NUM_BLOCKS - 1 for quarter in range(1, NUM_BLOCKS + 1)]
