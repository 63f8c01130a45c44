"""Convolutional parts of E-RADIO: stem, C2f stages, down-sampling and the high-resolution neck.

Maps are [B, C, H, W]; they are quickest in the memory format `channels_last`. Parameters are named as in the published checkpoints.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .eradio_convolution import Convolution


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm (eps 1e-5), and an activation where one is given: [B, in, H, W] -> [B, out, H / stride, ...]."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int = 3, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv: nn.Conv2d = Convolution(in_dim, out_dim, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        return self.bn(self.conv(x))

    def deploy(self) -> None:
        """Folds the norm's running statistics into the convolution."""
        self.conv, self.bn = folded(self.conv, self.bn)


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution that does what `conv` and then `norm` did in evaluation, and nothing in the place of `norm`; folded in float64."""
    if not isinstance(norm, nn.BatchNorm2d):
        return conv, norm
    dtype = conv.weight.dtype
    fused = fuse_conv_bn_eval(conv.double().eval(), norm.double().eval())
    return fused.to(dtype), nn.Identity()


class ConvNormSilu(ConvNorm):
    """`ConvNorm` and SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        return F.silu(super().forward(x))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions beside a skip connection; [B, C, H, W] -> the same."""

    def __init__(self, dim: int):
        super().__init__()
        self.cv1 = ConvNormSilu(dim, dim)
        self.cv2 = ConvNormSilu(dim, dim)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return x + self.drop_path(self.cv2(self.cv1(x)))


class C2f(nn.Module):
    """Cross-stage partial block of YOLOv8: a chain of bottlenecks over half of the channels, all of whose maps are joined.

    [B, C, H, W] -> the same.
    """

    def __init__(self, dim: int, depth: int):
        super().__init__()
        self.cv1 = ConvNormSilu(dim, dim, 1)
        self.cv2 = ConvNormSilu((2 + depth) * (dim // 2), dim, 1)
        self.m = nn.ModuleList(Bottleneck(dim // 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        maps = list(self.cv1(x).chunk(2, 1))
        for bottleneck in self.m:
            maps.append(bottleneck(maps[-1]))
        return self.cv2(torch.cat(maps, 1))


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2 with ReLU: [B, 3, H, W] -> [B, dim, H/4, W/4]."""

    def __init__(self, stem_dim: int, dim: int):
        super().__init__()
        self.dim = dim
        self.conv_down = nn.Sequential(ConvNorm(3, stem_dim, stride=2), nn.ReLU(), ConvNorm(stem_dim, dim, stride=2), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim, H / 4, W / 4]."""
        return self.conv_down(images)


class Downsample(nn.Module):
    """[B, C, H, W] -> [B, 2C, H/2, W/2] by one 3x3 convolution and BatchNorm."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = ConvNorm(dim, 2 * dim, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 2C, H / 2, W / 2]."""
        return self.reduction(x)


class NeckBranch(nn.Module):
    """One stage's part of the neck: nearest up-sampling, depthwise 3x3, BatchNorm, 1x1."""

    def __init__(self, in_dim: int, out_dim: int, factor: int):
        super().__init__()
        self.factor = factor
        self.conv1 = nn.Conv2d(in_dim, in_dim, 3, padding=1, groups=in_dim)
        self.norm: nn.Module = nn.BatchNorm2d(in_dim)
        self.conv2 = nn.Conv2d(in_dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, factor * H, factor * W]."""
        if self.factor > 1:
            x = F.interpolate(x, scale_factor=float(self.factor), mode="nearest")
        return self.conv2(self.norm(self.conv1(x)))

    def deploy(self) -> None:
        """Folds the norm into the depthwise convolution."""
        self.conv1, self.norm = folded(self.conv1, self.norm)


class Neck(nn.Module):
    """The high-resolution neck: the maps of the last stages, brought to the grid of the first of them and added up."""

    def __init__(self, dims: Sequence[int], out_dim: int):
        """dims: channels of the stages that are joined, from the finest; each has half the side of the one before it."""
        super().__init__()
        self.out_dim = out_dim
        self.neck_features_proj = nn.ModuleList(NeckBranch(dim, out_dim, 2**i) for i, dim in enumerate(dims))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, dims[i], H / 2^i, W / 2^i] -> [B, out, H, W]."""
        joined: Tensor | None = None
        for branch, x in zip(self.neck_features_proj, maps, strict=True):
            joined = branch(x) if joined is None else joined + branch(x)
        assert joined is not None
        return joined
