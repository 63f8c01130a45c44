"""The ViT student: pre-norm transformer with cropped positions, one summary token per teacher, registers, no final norm."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import AsTuple, Depth, Heads, Pixels, Share, Width
from ..errors import UserError
from ..features import Features
from .base import NUM_DRAWS, Aggregation, Student, StudentRow, StudentSettings, block_numbers
from .packing import Packing
from .patch_generator import PatchGenerator, PositionRule
from .start import TOKENS, start_from
from .windows import Parted, Windows, global_blocks


class VitShape(NamedTuple):
    """The width and depth of a ViT."""

    dim: int
    depth: int
    num_heads: int
    mlp_dim: int


SIZES = {
    "tiny": VitShape(192, 12, 3, 768),
    "small": VitShape(384, 12, 6, 1536),
    "base": VitShape(768, 12, 12, 3072),
    "large": VitShape(1024, 24, 16, 4096),
    "so400m": VitShape(1152, 27, 16, 4304),
    "huge": VitShape(1280, 32, 16, 5120),
    "giant": VitShape(1536, 40, 24, 6144),
}
"""Shapes of timm's ViTs, which the published RADIO models share from `base` on."""


class VitSettings(StudentSettings):
    """A ViT student."""

    type: Literal["vit"] = "vit"
    size: Literal["tiny", "small", "base", "large", "so400m", "huge", "giant"] = "small"
    """Width and depth: tiny 192 x 12, small 384 x 12, base 768 x 12, large 1024 x 24, so400m 1152 x 27, huge 1280 x 32, giant 1536 x 40."""
    patch_size: Annotated[int, pydantic.Field(ge=1, le=1024)] = 16
    """Side of a patch in px; images are multiples of it."""
    dim: Width | None = None
    """Channels, in place of the size's own; `mlp_dim` is then 4 times as many unless it is given."""
    depth: Depth | None = None
    """Blocks, in place of the size's own."""
    num_heads: Heads | None = None
    """Attention heads, in place of the size's own; divides the channels."""
    mlp_dim: Width | None = None
    """Hidden channels of a block's MLP, in place of the size's own."""
    num_registers: Annotated[int, pydantic.Field(ge=0, le=4096)] = 4
    """Tokens that no head reads, as in RADIOv2.5 and C-RADIOv3 (4 and 4)."""
    max_image_size: Pixels = 2048
    """Side in px that the position table covers one to one: round(max_image_size / patch_size) positions per side."""
    layer_scale: Annotated[float, pydantic.Field(gt=0, le=1000)] | None = None
    """First value of LayerScale (C-RADIOv3-B and -L: 1e-5); null leaves LayerScale out."""
    align_corners: bool = False
    """How the position table is stretched in evaluation: false as in C-RADIOv4, true as in C-RADIOv3-B and -H."""
    position_dropout: Share = 0.1
    """Chance that a training sample sees no positions."""
    viewport: bool = True
    """In training each sample reads a random rectangle of the position table (unless images fill it); false reads it as in evaluation."""
    viewport_scale: Annotated[tuple[Share, Share], AsTuple] = (math.sqrt(0.1), 1.0)
    """Least and greatest side of that rectangle, as a share of the table."""
    gradient_checkpointing: bool = False
    """Computes each block again in the backward pass: less memory, more time, the same numbers."""
    start_from: str | None = None
    """Weights to begin with: a timm model name, a .safetensors file, or a model folder; null begins at random."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "VitSettings":
        shape = self.shape()
        if shape.dim % shape.num_heads:
            raise ValueError(f"num_heads {shape.num_heads} does not divide dim {shape.dim}; set num_heads to a divisor of dim")
        if self.table_side() < 1:
            raise ValueError(
                f"max_image_size {self.max_image_size} holds no patch of {self.patch_size} px; set it to a multiple of patch_size"
            )
        if not 0 < self.viewport_scale[0] <= self.viewport_scale[1] <= 1:
            raise ValueError(f"viewport_scale {list(self.viewport_scale)} is not [least, greatest] within 0 and 1")
        return self

    def shape(self) -> VitShape:
        """The size's shape with the overrides put in."""
        size = SIZES[self.size]
        dim = self.dim or size.dim
        mlp_dim = self.mlp_dim or (4 * dim if self.dim else size.mlp_dim)
        return VitShape(dim, self.depth or size.depth, self.num_heads or size.num_heads, mlp_dim)

    def table_side(self) -> int:
        """Positions per side of the table."""
        return round(self.max_image_size / self.patch_size)

    def build(self, num_summaries: int) -> "Vit":
        """A ViT with `num_summaries` summary tokens, on the default device; UserError where `start_from` cannot be read."""
        shape = self.shape()
        rule = PositionRule(self.align_corners, self.position_dropout, self.viewport_scale if self.viewport else None)
        num_prefix = num_summaries + self.num_registers
        patch_generator = PatchGenerator(shape.dim, self.patch_size, self.table_side(), num_prefix, rule)
        blocks = [make_block(shape, self.layer_scale) for _ in range(shape.depth)]
        vit = Vit(patch_generator, blocks, num_summaries, self.gradient_checkpointing)
        if self.start_from is not None:
            vit.started_from = start_from(vit, self.start_from)
        return vit

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """One row per size, with the default settings."""
        return [_row(cls.model_validate({"size": size})) for size in SIZES]


def _row(settings: VitSettings) -> StudentRow:
    with torch.device("meta"):
        student = settings.build(num_summaries=4)
    shape = settings.shape()
    parameters = sum(p.numel() for p in student.parameters())
    return StudentRow("vit", settings.size, shape.dim, shape.depth, shape.num_heads, settings.patch_size, parameters)


def make_block(shape: VitShape, layer_scale: float | None) -> Block:
    """A pre-norm block: qkv bias, erf GELU, LayerNorm eps 1e-6, scaled dot product attention, LayerScale from `layer_scale` or none."""
    return Block(
        shape.dim,
        shape.num_heads,
        mlp_ratio=(shape.mlp_dim + 0.5) / shape.dim,  # the half keeps int() of the product from falling one short
        qkv_bias=True,
        init_values=layer_scale,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
    )


class Vit(Student):
    """A ViT whose parameters are named as in the published RADIO checkpoints (AM-RADIO; RADIOv2.5).

    Token order: summaries, registers, patches. There is no final norm: the heads see the last block's output.
    """

    def __init__(self, patch_generator: PatchGenerator, blocks: Sequence[Block], num_summaries: int, gradient_checkpointing: bool = False):
        """patch_generator: holds at least `num_summaries` prefix tokens; the others are registers."""
        super().__init__()
        num_prefix, dim = patch_generator.cls_token.token.shape
        assert num_summaries <= num_prefix
        self.patch_generator = patch_generator
        self.blocks = nn.ModuleList(blocks)
        self.patch_size = patch_generator.patch_size
        self.num_summaries = num_summaries
        self.summary_rows = {TOKENS: 1}
        self.num_prefix = num_prefix
        self.summary_dim = self.spatial_dim = dim
        self.gradient_checkpointing = gradient_checkpointing
        self.windows: Windows | None = None
        self.apply(_initialise)

    @property
    def step(self) -> int:
        """px of which the sides of an image are multiples: the patch, times the window where there is one."""
        return self.patch_size * (self.windows.size if self.windows else 1)

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest multiples of the step, at least one."""
        return max(round(height / self.step), 1) * self.step, max(round(width / self.step), 1) * self.step

    @property
    def window_size(self) -> int | None:
        """See the base."""
        return self.windows.size if self.windows else None

    def set_windows(self, size: int | None, num_global: int = 4, num_windowed: int | None = None) -> None:
        """See the base."""
        if size is not None and size < 1:
            raise UserError(f"window_size {size}: give the patches of a window's side, 1 or more")
        whole = global_blocks(len(self.blocks), num_global, num_windowed) if size is not None else frozenset()
        self.windows = Windows(size, whole, self.num_prefix) if size is not None else None

    def check_size(self, height: int, width: int) -> None:
        """See the base. Compares remainders alone, so that one compiled or exported graph serves all legal sizes."""
        if height < self.step or width < self.step or height % self.step or width % self.step:
            super().check_size(height, width)

    def no_decay(self) -> set[str]:
        """The position table, the prefix tokens and LayerScale."""
        scales = {name for name, _ in self.named_parameters() if name.endswith(".gamma")}
        return {"patch_generator.pos_embed", "patch_generator.cls_token.token"} | scales

    def blocks_in_order(self) -> Sequence[nn.Module]:
        """See the base."""
        return tuple(self.blocks)

    def fuse_attention(self, fused: bool) -> None:
        """See the base."""
        for block in self.blocks:
            block.attn.fused_attn = fused  # type: ignore[union-attr]

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features of a batch; `draws` matter only in training mode.

        images: [B, 3, H, W] in [0, 1], sides multiples of the patch (UserError names the nearest), of any number of patches.
        draws: [B, 8] uniform in [0, 1): 0 scale, 1 aspect, 2 and 3 offsets of the viewport, 4 position dropout; the rest is unused.
        Returns summary [B, num_summaries * dim] and spatial [B, H/p, W/p, dim].
        """
        tokens, grid = self._tokens(images, draws)
        state = self._enter(tokens, grid)
        for number in range(len(self.blocks)):
            state = self._step(number, state)
        return self._features(self._leave(state, grid), grid)

    def intermediates(
        self, images: Tensor, indices: int | Sequence[int] | None = None, aggregation: Aggregation = "sparse", prefix: bool = False
    ) -> list[Features] | list[tuple[Features, Tensor]]:
        """See the base; blocks after the last one asked for are not run. In windowed blocks the prefix tokens stay as they are."""
        wanted = block_numbers(indices, len(self.blocks))
        tokens, grid = self._tokens(images, None)
        state = self._enter(tokens, grid)
        found: dict[int, Tensor] = {}
        group: list[Tensor] = []
        for number in range(max(wanted, default=-1) + 1):
            state = self._step(number, state)
            if aggregation == "dense" or number in wanted:
                group.append(self._leave(state, grid))
            if number in wanted:
                found[number] = torch.stack(group).mean(0) if len(group) > 1 else group[0]
                group = []
        if prefix:
            return [(self._features(found[number], grid), found[number][:, : self.num_prefix]) for number in wanted]
        return [self._features(found[number], grid) for number in wanted]

    def pack(self, images: Sequence[Tensor]) -> list[Features]:
        """See the base; not in training, and not with windows."""
        if self.windows is not None or self.training:
            mode = "with windows" if self.windows is not None else "in training"
            raise UserError(f"pack: a student {mode} takes images of one size at a time; end that mode, or run one by one")
        if not images:
            return []
        entered = [self._tokens(image[None], None) for image in images]
        packing = Packing([tokens.shape[1] for tokens, _ in entered])
        packed = packing.pack([tokens for tokens, _ in entered])
        for block in self.blocks:
            packed = packing.run(block, packed)  # pyright: ignore[reportArgumentType]
        return [self._features(tokens, grid) for tokens, (_, grid) in zip(packing.unpack(packed), entered, strict=True)]

    def _tokens(self, images: Tensor, draws: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        images = self.condition(images)
        if not self.training:
            draws = None
        elif draws is None:
            draws = torch.rand(images.shape[0], NUM_DRAWS, device=images.device)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        return self.patch_generator(images, draws), grid

    def _enter(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor | Parted:
        return tokens if self.windows is None else self.windows.enter(tokens, grid)

    def _step(self, number: int, state: Tensor | Parted) -> Tensor | Parted:
        block = self.blocks[number]
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            block = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        if isinstance(state, Tensor):
            return block(state)
        assert self.windows is not None
        return self.windows.step(block, number, state)  # pyright: ignore[reportArgumentType]

    def _leave(self, state: Tensor | Parted, grid: tuple[int, int]) -> Tensor:
        if isinstance(state, Tensor):
            return state
        assert self.windows is not None
        return self.windows.leave(state, grid)

    def _features(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        summary = tokens[:, : self.num_summaries].flatten(1)
        spatial = tokens[:, self.num_prefix :].unflatten(1, grid)
        return Features(summary, spatial)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
