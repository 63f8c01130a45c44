"""Windowed attention of E-RADIO: continuous position bias, local windows, and global attention over a subsampled map.

Parameters are named as in the published checkpoints. Shapes: C channels, N = w * w cells of a window, H heads.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from .eradio_blocks import ConvNorm

Subsampling = Literal["conv", "pool"]


class BlockShape(NamedTuple):
    """What the blocks of one attention stage are made of."""

    dim: int
    num_heads: int
    cpb_hidden_dim: int
    """Hidden units of the position bias's MLP."""
    subsampling: Subsampling
    """How the map is halved for global attention and brought back: strided and transposed 2x2 convolutions, or pooling with 1x1 ones."""
    depthwise: bool
    """Whether the 3x3 convolution before local attention is depthwise."""


class Window(NamedTuple):
    """A window of size x size cells, and where its cells lie relative to one another."""

    size: int
    unit: int
    """The size that offsets are counted in."""
    offsets: Tensor
    """float32 [(2 size - 1)^2, 2]: every offset (row, column) between two cells, on the logarithmic scale of Swin v2 (its eq. 4)."""
    between: Tensor
    """int64 [N, N]: which of `offsets` lies between two cells."""


def make_window(size: int, unit: int, device: torch.device | None = None) -> Window:
    """The window of size x size cells: offsets are divided by (unit - 1) / 8, and sign(x) log2(1 + |x|) / 3 is taken of them.

    unit: the window that the position bias was trained for, so that an offset says the same in windows of another size.
    """
    steps = torch.arange(1 - size, size, device=device)
    scaled = steps.float() * (8 / max(unit - 1, 1))
    logarithmic = scaled.sign() * torch.log2(1 + scaled.abs()) / 3
    offsets = torch.stack(torch.meshgrid(logarithmic, logarithmic, indexing="ij"), -1).flatten(0, 1)
    cells = torch.arange(size, device=device)
    apart = cells[:, None] - cells[None, :] + size - 1  # [size, size], one axis
    rows = apart[:, None, :, None] * (2 * size - 1)
    return Window(size, unit, offsets, (rows + apart[None, :, None, :]).reshape(size * size, size * size))


class PositionBias(nn.Module):
    """The continuous position bias of Swin v2 (its eq. 3): a small MLP says from the offset what is added to the attention logits."""

    def __init__(self, hidden_dim: int, num_heads: int):
        super().__init__()
        self.cpb_mlp = nn.Sequential(nn.Linear(2, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_heads, bias=False))
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    def forward(self, window: Window) -> Tensor:
        """The bias [1, H, N, N], at least float32.

        In evaluation without gradients it is computed once, until the weights or the window change.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            return self.compute(window)
        key = (window.size, window.unit, *(state for p in self.parameters() for state in (p.dtype, p.device, p.data_ptr(), _version(p))))
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self.compute(window))
        return self._kept[1]

    def compute(self, window: Window) -> Tensor:
        """16 sigmoid(MLP) - 8: softmax does not see the constant, and near zero bfloat16 is finer (0.03 off at 8)."""
        dtype = next(self.parameters()).dtype
        with _full_precision(window.offsets.device):
            logits = self.cpb_mlp(window.offsets.to(dtype))  # [(2w - 1)^2, H]
        table = 16 * logits.to(torch.promote_types(dtype, torch.float32)).sigmoid() - 8
        cells = window.between.shape[0]
        return table[window.between.flatten()].T.reshape(1, -1, cells, cells)


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _version(parameter: Tensor) -> int | None:
    """Counts in-place changes; None where torch does not."""
    return None if parameter.is_inference() else parameter._version


class WindowAttention(nn.Module):
    """Multi-head attention within each window: [B, N, C] -> the same. No biases but that of the position."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.num_heads = shape.num_heads
        self.fused = True
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim, bias=False)
        self.proj = nn.Linear(shape.dim, shape.dim, bias=False)
        self.pos_emb_funct = PositionBias(shape.cpb_hidden_dim, shape.num_heads)

    def forward(self, tokens: Tensor, window: Window) -> Tensor:
        """Tokens [B * windows, N, C] of windows of `window` -> the same shape, after attention within each and the output layer."""
        B, N, C = tokens.shape
        q, k, v = self.qkv(tokens).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = self.pos_emb_funct(window).to(q.dtype)
        if self.fused:
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            output = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.proj(output.transpose(1, 2).reshape(B, N, C))


class AttentionBlock(nn.Module):
    """Attention and MLP within windows, on the map itself (`local`) or on its half: [B, C, H, W] -> the same.

    Local blocks begin with a residual convolution; global ones halve the map, so that a window sees twice as far, and bring it back.
    Both answer the mean of what they found and what they were given.
    """

    def __init__(self, shape: BlockShape, local: bool):
        super().__init__()
        self.local = local
        if local:
            self.pre_conv = ConvNorm(shape.dim, shape.dim, groups=shape.dim if shape.depthwise else 1)
        elif shape.subsampling == "conv":
            self.downsample_op = nn.Conv2d(shape.dim, shape.dim, 2, 2)
            self.upsample_op = nn.ConvTranspose2d(shape.dim, shape.dim, 2, 2)
        else:
            self.downsample_op = nn.AvgPool2d(2)
            self.downsample_mixer = ConvNorm(shape.dim, shape.dim, 1)
            self.upsample_op = ConvNorm(shape.dim, shape.dim, 1)
        self.pooled = not local and shape.subsampling == "pool"
        self.norm1 = nn.LayerNorm(shape.dim)
        self.attn = WindowAttention(shape)
        self.norm2 = nn.LayerNorm(shape.dim)
        self.mlp = Mlp(shape.dim, 4 * shape.dim, bias=False)
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, window: Window) -> Tensor:
        """Sides of the map are multiples of the window, of twice the window where the block is not local."""
        cells = self._enter(x)
        tokens = cut(cells, window.size)
        tokens = tokens + self.drop_path1(self.attn(self.norm1(tokens), window))
        tokens = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        return 0.5 * (x + self._leave(join(tokens, window.size, cells.shape)))

    def _enter(self, x: Tensor) -> Tensor:
        if self.local:
            return x + self.pre_conv(x)
        x = self.downsample_op(x)
        return self.downsample_mixer(x) if self.pooled else x

    def _leave(self, x: Tensor) -> Tensor:
        if self.local:
            return x
        return self.upsample_op(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.pooled else x)


def cut(x: Tensor, size: int) -> Tensor:
    """A map [B, C, H, W] -> its windows, [B * H/size * W/size, size * size, C], row by row."""
    B, C, H, W = x.shape
    cells = x.permute(0, 2, 3, 1).reshape(B, H // size, size, W // size, size, C)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, C)


def join(tokens: Tensor, size: int, shape: torch.Size) -> Tensor:
    """Undoes `cut`: a map of `shape` [B, C, H, W], channels last in memory."""
    B, C, H, W = shape
    cells = tokens.reshape(B, H // size, W // size, size, size, C)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C).permute(0, 3, 1, 2)


class AttentionPair(nn.Module):
    """Blocks of one depth step: a global one and then a local one, or a local one alone."""

    def __init__(self, shape: BlockShape, has_global: bool):
        super().__init__()
        self.attention_blocks = nn.ModuleList(AttentionBlock(shape, local) for local in ((False, True) if has_global else (True,)))

    def forward(self, x: Tensor, window: Window) -> Tensor:
        """[B, C, H, W] -> the same."""
        for block in self.attention_blocks:
            x = block(x, window)
        return x


class AttentionStage(nn.ModuleList):
    """A stage of attention blocks: [B, C, H, W] -> the same, of any sides.

    Where the sides are no multiples of the window (of twice the window with global blocks), the map is stretched to the next ones
    for the whole stage, and brought back, both to the nearest cell (as published).
    """

    def __init__(self, shape: BlockShape, depth: int, has_global: bool):
        super().__init__(AttentionPair(shape, has_global) for _ in range(depth))
        self.has_global = has_global

    def forward(self, x: Tensor, window: Window) -> Tensor:
        """[B, C, H, W] -> the same shape, through all blocks; sides that do not fit are stretched before and brought back after."""
        unit = window.size * (2 if self.has_global else 1)
        height, width = x.shape[2:]
        grid = (-(-height // unit) * unit, -(-width // unit) * unit)
        if grid != (height, width):
            x = F.interpolate(x, grid, mode="nearest")
        for block in self:
            x = block(x, window)
        return x if grid == (height, width) else F.interpolate(x, (height, width), mode="nearest")
