"""The E-RADIO student (AM-RADIO, section 3.4): convolutions at high resolution, windowed attention at low, and a neck back to stride 16.

Parameters and BatchNorm statistics have the names and shapes of the published checkpoints; `eradio_published` says how their files and
these settings translate.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

import pydantic
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ..config import AsTuple, Depth, Heads, Pixels, Width
from ..errors import UserError
from ..features import Features
from .base import Student, StudentRow, StudentSettings
from .eradio_attention import AttentionStage, BlockShape, Subsampling, WindowAttention, make_window
from .eradio_blocks import C2f, ConvNorm, Downsample, Neck, NeckBranch, Stem

MAX_WINDOW = 16
MIN_WINDOW = 7
"""Smallest window that was published (224 px); see `optimal_window`."""
STRIDE = 32
WindowRule = Literal["optimal", "fixed"]


class EradioShape(NamedTuple):
    """What a size says; each can be overridden by the setting of its name."""

    dim: int
    stem_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int] = (8, 16)
    window_size: int = 16
    subsampling: Subsampling = "conv"
    depthwise: bool = False
    cpb_hidden_dim: int = 512
    neck_start: int = 2
    neck_dim: int = 1536


SIZES = {
    "xxxtiny": EradioShape(32, 32, (1, 3, 4, 5), neck_dim=256),
    "xxxtiny_8x_ws12": EradioShape(32, 32, (1, 3, 4, 5), (8, 16), 12, "pool", depthwise=True, cpb_hidden_dim=64, neck_dim=256),
    "xxxtiny_8x_ws16": EradioShape(32, 32, (1, 3, 4, 5), (8, 16), 16, "pool", True, cpb_hidden_dim=64, neck_start=1, neck_dim=256),
    "xtiny": EradioShape(64, 64, (1, 3, 4, 5), depthwise=True, neck_dim=512),
    "tiny": EradioShape(80, 64, (1, 3, 4, 5), depthwise=True, neck_dim=640),
    "small": EradioShape(96, 64, (3, 3, 5, 5), depthwise=True, neck_dim=768),
    "base": EradioShape(128, 64, (3, 3, 5, 5), depthwise=True, neck_dim=1024),
    "large": EradioShape(192, 64, (3, 3, 5, 5)),
}
"""`large` (the released weights), `xxxtiny` and its two pooled variants are published in full. Of `xtiny` to `base` the widths and depths
are. Chosen here: their stem (that of `large`), their neck (8 times the first width, as in all that are published), and the depthwise
convolution, with which `base` has the 113 M parameters of AM-RADIO's table 7 without the neck (172 M with a dense one). So has `large` with
`depthwise: true` 257 M, near the 265 M of E-RADIO-L there; the neck of that table is another one."""


class EradioSettings(StudentSettings):
    """An E-RADIO student."""

    type: Literal["eradio"] = "eradio"
    size: Literal["xxxtiny", "xxxtiny_8x_ws12", "xxxtiny_8x_ws16", "xtiny", "tiny", "small", "base", "large"] = "base"
    """First width: xxxtiny 32, xtiny 64, tiny 80 (depths 1, 3, 4, 5); small 96, base 128, large 192 (depths 3, 3, 5, 5).
    The 8x variants pool; the one of window 16 has a map of stride 8."""
    dim: Annotated[int, pydantic.Field(ge=2, le=100_000, multiple_of=2)] | None = None
    """Channels of the first stage, in place of the size's own; each later stage has twice as many."""
    stem_dim: Width | None = None
    """Channels of the stem's first convolution, in place of the size's own."""
    depths: Annotated[tuple[Depth, Depth, Depth, Depth], AsTuple] | None = None
    """Blocks of each stage, in place of the size's own: two stages of convolutions, two of attention."""
    num_heads: Annotated[tuple[Heads, Heads], AsTuple] | None = None
    """Attention heads of the two attention stages, in place of the size's own."""
    window_size: Pixels | None = None
    """Cells per side of a window, in place of the size's own (16; 12 of xxxtiny_8x_ws12): also the unit of the position bias."""
    window: WindowRule = "optimal"
    """`optimal`: each image's size chooses its window (7 cells at 224 px, 8 at 256, 12 at 384, 16 at 512), in the same unit.
    `fixed`: `window_size` always, to whose multiples maps are stretched, as official files do unless told otherwise."""
    subsampling: Subsampling | None = None
    """How global attention halves its map and brings it back, in place of the size's own: by strided convolutions or by pooling."""
    depthwise: bool | None = None
    """Whether the convolution before local attention is depthwise, in place of the size's own."""
    cpb_hidden_dim: Width | None = None
    """Hidden units of the position bias, in place of the size's own."""
    neck: bool = True
    """High-resolution neck; without it the map is the last stage's, of stride 32 (the paper's row "without upsample")."""
    neck_start: Annotated[int, pydantic.Field(ge=0, le=3)] | None = None
    """First stage, from 0, that the neck joins, in place of the size's own; the map's stride is 4 * 2^neck_start (2: 16 px, 1: 8 px)."""
    neck_dim: Width | None = None
    """Channels of the map, in place of the size's own."""
    summaries: Literal["shared", "per_teacher"] = "shared"
    """`shared`: the mean of the map, which all heads read (as published). `per_teacher`: a mean each, weighted by a learned query."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "EradioSettings":
        shape = self.shape()
        for stage, heads in zip((2, 3), shape.num_heads, strict=True):
            dim = shape.dim * 2**stage
            if heads < 1 or dim % heads:
                raise ValueError(f"num_heads: {heads} does not divide the {dim} channels of stage {stage}; set num_heads to divisors")
        if min(shape.depths) < 1:
            raise ValueError(f"depths {list(shape.depths)}: each stage has a block at least")
        idle = [name for name in ("neck_start", "neck_dim") if not self.neck and getattr(self, name) is not None]
        if idle:
            raise ValueError(f"{' and '.join(idle)} set a neck that `neck: false` leaves out; drop either")
        return self

    @property
    def shares_summary(self) -> bool:
        """See the base."""
        return self.summaries == "shared"

    def shape(self) -> EradioShape:
        """The size's shape with the overrides put in."""
        overrides = {name: value for name in EradioShape._fields if (value := getattr(self, name)) is not None}
        return SIZES[self.size]._replace(**overrides)

    def build(self, num_summaries: int) -> "Eradio":
        """An E-RADIO with random weights, on the default device. A shared summary is one, whatever `num_summaries` says."""
        shape = self.shape()
        stages: list[nn.Module] = []
        for number, depth in enumerate(shape.depths):
            dim = shape.dim * 2**number
            if number < 2:
                stages.append(C2f(dim, depth))
            else:
                block = BlockShape(dim, shape.num_heads[number - 2], shape.cpb_hidden_dim, shape.subsampling, shape.depthwise)
                stages.append(AttentionStage(block, depth, has_global=number == 2))
        dims = [shape.dim * 2**number for number in range(4)]
        neck = Neck(dims[shape.neck_start :], shape.neck_dim) if self.neck else None
        windows = Windows(shape.window_size, self.window)
        return Eradio(Stem(shape.stem_dim, shape.dim), stages, neck, windows, None if self.shares_summary else num_summaries)

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """One row per size, with the default settings."""
        return [_row(cls.model_validate({"size": size})) for size in SIZES]


def _row(settings: EradioSettings) -> StudentRow:
    with torch.device("meta"):
        student = settings.build(num_summaries=4)
    shape = settings.shape()
    parameters = sum(p.numel() for p in student.parameters())
    return StudentRow("eradio", settings.size, student.spatial_dim, sum(shape.depths), shape.num_heads[-1], student.patch_size, parameters)


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
        # Behind a neck nothing reads the last stage's norm but `trunk`: constants, which official files fill.
        self.norm = nn.BatchNorm2d(8 * dim) if neck is None else FrozenBatchNorm2d(8 * dim)
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
        return (self.patch_embed, *self.levels, self.norm if self.high_res_neck is None else self.high_res_neck)

    def fuse_attention(self, fused: bool) -> None:
        """See the base."""
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
        x = self.norm(maps[-1]) if self.high_res_neck is None else self.high_res_neck(maps[-len(self.high_res_neck.neck_features_proj) :])
        spatial = x.permute(0, 2, 3, 1)
        return Features(self._summary(spatial), spatial)

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
        """The last stage's map and its norm, [B, 8 * width, H/32, W/32]. With a neck the norm is an official file's, or does nothing."""
        return self.norm(self.stages(images)[-1])

    def deploy(self) -> Self:
        """Folds every BatchNorm that follows a convolution into it; see the base.

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
