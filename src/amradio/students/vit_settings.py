"""The settings of the ViT student."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

import pydantic

from ..config import AsTuple, Depth, Heads, Pixels, Share, Width
from .settings import StudentRow, StudentSettings

if TYPE_CHECKING:
    from .patch_generator import PositionRule
    from .vit import Vit


MlpKind = Literal["gelu", "gelu_norm", "swiglu"]


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


def swiglu_dim(mlp_dim: int) -> int:
    """Hidden channels of a SwiGLU with as many weights as an MLP of `mlp_dim`: two thirds, rounded up to a multiple of 8 (DINOv2)."""
    return (int(mlp_dim * 2 / 3) + 7) // 8 * 8


class TransformerSettings(StudentSettings):
    """What all students of transformer blocks on patches have in common: width and depth, and how positions are read."""

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
    """Hidden channels of a block's MLP, in place of the size's own; for swiglu those are two thirds of them, as it has three matrices."""
    final_norm: bool = False
    """A LayerNorm on all tokens after the last block; published RADIO models have none."""
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

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
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
        mlp_dim = self.mlp_dim or self._mlp_dim(4 * dim if self.dim else size.mlp_dim)
        return VitShape(dim, self.depth or size.depth, self.num_heads or size.num_heads, mlp_dim)

    def _mlp_dim(self, full: int) -> int:
        """Hidden channels of MLPs that have as many weights as one with a GELU and `full` channels."""
        return full

    def table_side(self) -> int:
        """Positions per side of the table."""
        return round(self.max_image_size / self.patch_size)

    def position_rule(self) -> PositionRule:
        """How the position table is read."""
        from .patch_generator import PositionRule

        return PositionRule(self.align_corners, self.position_dropout, self.viewport_scale if self.viewport else None)


class VitSettings(TransformerSettings):
    """A ViT student."""

    type: Literal["vit"] = "vit"
    mlp: MlpKind = "gelu"
    """Of a block: gelu; gelu_norm, with a LayerNorm behind it (the first C-RADIO); swiglu, as in DINOv2-g (RADIOv2.5-g)."""
    start_from: str | None = None
    """Weights to begin with: a timm model name, a .safetensors file, or a model folder; null begins at random."""

    def _mlp_dim(self, full: int) -> int:
        return swiglu_dim(full) if self.mlp == "swiglu" else full

    def build(self, num_summaries: int) -> Vit:
        """A ViT with `num_summaries` summary tokens, on the default device; UserError where `start_from` cannot be read."""
        from .vit import build

        return build(self, num_summaries)

    def count_parameters(self, num_summaries: int) -> int:
        """Parameters of what `build` gives."""
        dim, depth, _, mlp_dim = self.shape()
        mlp = {
            "gelu": (2 * dim + 1) * mlp_dim + dim,
            "gelu_norm": (2 * dim + 3) * mlp_dim + dim,
            "swiglu": (3 * dim + 2) * mlp_dim + dim,
        }[self.mlp]
        block = 4 * dim * dim + 8 * dim + mlp + (2 * dim if self.layer_scale is not None else 0)
        tokens = self.table_side() ** 2 + num_summaries + self.num_registers + 3 * self.patch_size**2
        return depth * block + tokens * dim + (2 * dim if self.final_norm else 0)

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """One row per size, with the default settings."""
        return [_row(cls.model_validate({"size": size})) for size in SIZES]


def known_size(shape: VitShape, mlp: MlpKind) -> str | None:
    """The size whose ViT with this kind of MLP has the shape, None where there is none."""
    return next((size for size in SIZES if VitSettings.model_validate({"size": size, "mlp": mlp}).shape() == shape), None)


def _row(settings: VitSettings) -> StudentRow:
    shape, parameters = settings.shape(), settings.count_parameters(num_summaries=4)
    return StudentRow("vit", settings.size, shape.dim, shape.depth, shape.num_heads, settings.patch_size, parameters)
