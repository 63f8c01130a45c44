"""Feature pyramids on a student: ViTDet's simple pyramid on one map, or a feature pyramid network on the maps of its stages."""

import math
from collections import OrderedDict
from collections.abc import Mapping

import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

STRIDES = (4, 8, 16, 32)
"""px of a cell of the simple pyramid's levels; one of 64 px stands behind the last."""


def stride_of_map(patch_size: int) -> int:
    """The power of two nearest to a patch of so many px, 4 to 32: the stride to which a map is resampled where its own is another."""
    return 2 ** min(max(round(math.log2(patch_size)), 2), 5)


class SimplePyramid(nn.Module):
    """One map -> maps of strides 4, 8, 16, 32 and 64 (Li et al. 2022, "Exploring plain vision transformer backbones", section 3).

    Finer levels come from transposed convolutions, which halve the channels each time, coarser ones from max-pooling; a 1x1 and a 3x3
    convolution, each with LayerNorm over the channels, bring all of them to the same channels.
    """

    def __init__(self, dim: int, stride: int, channels: int):
        """dim: channels of the map. stride: px of its cells, a power of two. channels: of every level."""
        super().__init__()
        self.levels = nn.ModuleList(_level(dim, stride, target, channels) for target in STRIDES)

    def forward(self, spatial: Tensor) -> "OrderedDict[str, Tensor]":
        """[B, dim, H, W] -> five maps [B, channels, ...] by name, finest first."""
        maps = [level(spatial) for level in self.levels]
        maps.append(F.max_pool2d(maps[-1], 1, 2))
        return OrderedDict((str(number), features) for number, features in enumerate(maps))


def _level(dim: int, stride: int, target: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    while stride > target:
        layers += [LayerNorm2d(dim), nn.GELU()] if layers else []
        layers.append(nn.ConvTranspose2d(dim, dim // 2, 2, 2))
        stride, dim = stride // 2, dim // 2
    while stride < target:
        layers.append(nn.MaxPool2d(2))
        stride *= 2
    layers += [nn.Conv2d(dim, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)


class LevelPyramid(nn.Module):
    """Maps of several strides -> as many of the same channels, and one of twice the last stride (Lin et al. 2017)."""

    def __init__(self, dims: Mapping[int, int], channels: int):
        """dims: channels of the maps by stride, finest first. channels: of every level."""
        super().__init__()
        self.network = FeaturePyramidNetwork(list(dims.values()), channels, LastLevelMaxPool())

    def forward(self, maps: list[Tensor]) -> "OrderedDict[str, Tensor]":
        """Maps [B, D, ...], finest first -> maps [B, channels, ...] by name, finest first."""
        levels = self.network(OrderedDict((str(number), features) for number, features in enumerate(maps)))
        return OrderedDict((str(number), features) for number, features in enumerate(levels.values()))
