"""The E-RADIO student (AM-RADIO, section 3.4): convolutions at high resolution, windowed attention at low, and a neck back to stride 16.

Parameters and BatchNorm statistics have the names and shapes of the published checkpoints; `eradio_published` says how their files and
these settings translate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..features import Features
from .base import Student
from .checkpointing import checkpoint_modules
from .eradio_attention import AttentionStage, BlockShape, WindowAttention, make_window
from .eradio_blocks import C2f, ConvNorm, Downsample, Neck, NeckBranch, Stem
from .eradio_settings import EradioSettings, WindowRule

MAX_WINDOW = 16
MIN_WINDOW = 7
"""Smallest window that was published (224 px); see `optimal_window`."""
STRIDE = 32
DEAD_NORM = "norm."
"""Start of the names of the norm behind a neck, which nothing reads: official files have it or not."""


def build(settings: EradioSettings, num_summaries: int) -> "Eradio":
    """An E-RADIO with random weights, on the default device; one summary where the settings share it, else `num_summaries`."""
    shape = settings.shape()
    stages: list[nn.Module] = []
    for number, depth in enumerate(shape.depths):
        dim = shape.dim * 2**number
        if number < 2:
            stages.append(C2f(dim, depth))
        else:
            block = BlockShape(dim, shape.num_heads[number - 2], shape.cpb_hidden_dim, shape.subsampling, shape.depthwise)
            stages.append(AttentionStage(block, depth, has_global=number == 2))
    dims = [shape.dim * 2**number for number in range(4)]
    neck = Neck(dims[shape.neck_start :], shape.neck_dim) if settings.neck else None
    windows = Windows(shape.window_size, settings.window)
    student = Eradio(Stem(shape.stem_dim, shape.dim), stages, neck, windows, None if settings.shares_summary else num_summaries)
    if settings.gradient_checkpointing:
        pairs = [block for stage in stages for block in (stage if isinstance(stage, AttentionStage) else [stage])]
        checkpoint_modules([student.patch_embed, *pairs, *([neck] if neck is not None else [])])
    return student


class Windows(NamedTuple):
    """How windows are chosen."""

    size: int
    """Cells per side where it is fixed; the position bias counts in this unit in any case."""
    rule: WindowRule


class Level(nn.Module):
    """One stage and the down-sampling after it; the last stage has none."""

    def __init__(self, blocks: nn.Module, dim: int, has_next: bool):
        super().__init__()
        self.blocks = blocks
        self.downsample = Downsample(dim) if has_next else None


class Eradio(Student):
    """E-RADIO. The stages' maps have strides 4, 8, 16 and 32 and 1, 2, 4 and 8 times the first width.

    Attributes: `windows`, how they are chosen (may be replaced at any time); see `window_for`. In training BatchNorm looks at the whole
    batch, so that what an image gives depends on the others.
    """

    def __init__(self, stem: Stem, stages: Sequence[nn.Module], neck: Neck | None, windows: Windows, num_queries: int | None = None):
        """num_queries: one summary each, weighted by a learned query; None for one summary, the mean."""
        super().__init__()
        dim = stem.dim
        self.patch_embed = stem
        self.levels = nn.ModuleList(Level(blocks, dim * 2**i, has_next=i + 1 < len(stages)) for i, blocks in enumerate(stages))
        self.high_res_neck = neck
        # Behind a neck nothing reads the last stage's norm: official files have it or not, and older folders of ours have it.
        self.norm = nn.BatchNorm2d(8 * dim) if neck is None else None
        self.register_load_state_dict_pre_hook(_without_dead_norm)
        self.windows = windows
        self.patch_size = STRIDE if neck is None else STRIDE // 2 ** (len(neck.neck_features_proj) - 1)
        self.summary_dim = self.spatial_dim = 8 * dim if neck is None else neck.out_dim
        self.num_summaries = num_queries or 1
        # Zero: every cell weighs the same, so that each begins as the mean.
        self.summary_queries = nn.Parameter(torch.zeros(num_queries, self.spatial_dim)) if num_queries else None
        self.summary_rows = {"summary_queries": 1} if num_queries else {}
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest multiples of 32 px, at least 32."""
        return max(round(height / STRIDE), 1) * STRIDE, max(round(width / STRIDE), 1) * STRIDE

    def no_decay(self) -> set[str]:
        """The position bias's MLPs, as in Swin v2, and the queries of the summaries."""
        return {name for name, _ in self.named_parameters() if ".cpb_mlp." in name or name == "summary_queries"}

    def blocks_in_order(self) -> Sequence[nn.Module]:
        """The stem, the four stages, and the neck (the last norm where there is none)."""
        last = self.norm if self.high_res_neck is None else self.high_res_neck
        assert last is not None
        return (self.patch_embed, *self.levels, last)

    def layers(self) -> dict[str, int]:
        """As of the base, with the stem as block 1; the queries of summaries are in the last layer, for they read the map."""
        numbers = super().layers()
        return numbers | {name: max(numbers.values()) for name in numbers if name == "summary_queries"}

    def fuse_attention(self, fused: bool) -> None:
        """Computes window attention in PyTorch's fused kernel (True) or as matrix products and a softmax (False)."""
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.fused = fused

    def window_for(self, height: int, width: int) -> int:
        """Cells per side of the windows in which an image of height x width px is seen, by both attention stages."""
        return optimal_window(min(height, width) // STRIDE) if self.windows.rule == "optimal" else self.windows.size

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features of a batch; `draws` are not used.

        images: [B, 3, H, W] in [0, 1], sides multiples of 32 (UserError names the nearest).
        Returns summary [B, num_summaries * dim] and spatial [B, H/p, W/p, dim], p being `patch_size`, dim `spatial_dim`.
        """
        del draws
        maps = self.stages(images)
        neck = self.high_res_neck
        x = self._normed(maps[-1]) if neck is None else neck(maps[-len(neck.neck_features_proj) :])
        spatial = x.permute(0, 2, 3, 1)
        return Features(self._summary(spatial), spatial)

    @property
    def pyramid(self) -> dict[int, int]:
        """Strides 4, 8, 16 and 32: the four stages."""
        return {STRIDE // 2**level: self.patch_embed.dim * 2 ** (3 - level) for level in (3, 2, 1, 0)}

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """The maps of the four stages, as of `stages`; the neck is not run."""
        return self.stages(images)

    def stages(self, images: Tensor) -> list[Tensor]:
        """The map of each stage, channels first, before the down-sampling to the next: [B, 2^i * width, H / (4 * 2^i), W / (4 * 2^i)]."""
        x = self.condition(images).contiguous(memory_format=torch.channels_last)
        self._check_batch(x)
        window = make_window(self.window_for(*x.shape[2:]), self.windows.size, x.device)
        x = self.patch_embed(x)
        maps: list[Tensor] = []
        for level in self.levels:
            assert isinstance(level, Level)
            maps.append(level.blocks(x, window) if isinstance(level.blocks, AttentionStage) else level.blocks(x))
            x = maps[-1] if level.downsample is None else level.downsample(maps[-1])
        return maps

    def trunk(self, images: Tensor) -> Tensor:
        """The last stage's map, [B, 8 * width, H/32, W/32], after the norm where there is one: without a neck."""
        return self._normed(self.stages(images)[-1])

    def _normed(self, cells: Tensor) -> Tensor:
        return cells if self.norm is None else self.norm(cells)

    def deploy(self) -> Self:
        """Folds every BatchNorm that follows a convolution into it, in place and irreversibly; outputs change by rounding only.

        The position bias is computed from its weights as ever: stored ones of official files are stale.
        """
        for module in self.eval().modules():
            if isinstance(module, (ConvNorm, NeckBranch)):
                module.deploy()
        return self.to(memory_format=torch.channels_last)

    def _check_batch(self, images: Tensor) -> None:
        batch, _, height, width = images.shape
        if self.training and batch * (height // STRIDE) * (width // STRIDE) == 1:
            raise UserError(
                f"images: one of {height}x{width} px in training: BatchNorm needs two cells of {STRIDE} px at least; "
                "give a larger batch_size or image_size"
            )

    def _summary(self, spatial: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, n * D]: the mean of the cells, weighted by softmax(query * cell / sqrt(D)) where there are queries."""
        cells = spatial.flatten(1, 2)
        if self.summary_queries is None:
            return cells.mean(1)
        logits = torch.einsum("nd,bld->bnl", self.summary_queries, cells) * self.summary_dim**-0.5
        return torch.einsum("bnl,bld->bnd", logits.float().softmax(-1).to(cells.dtype), cells).flatten(1)


def _without_dead_norm(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Passes over the norm behind a neck in checkpoints that have it."""
    if isinstance(module, Eradio) and module.high_res_neck is not None:
        for key in [key for key in state if key.startswith(prefix + DEAD_NORM)]:
            del state[key]


def optimal_window(side: int) -> int:
    """The window for a shorter side of `side` cells of 32 px: the largest divisor up to 16, as published.

    Where that is under 7 and the map is not (544 px: 17 cells, windows of 1), the one of 16 at most that covers it with the fewest windows.
    """
    divisor = max(size for size in range(1, MAX_WINDOW + 1) if side % size == 0)
    if divisor >= min(side, MIN_WINDOW):
        return divisor
    return math.ceil(side / math.ceil(side / MAX_WINDOW))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
