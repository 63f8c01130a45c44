"""The settings of heads. `HEADS` lists them; a new one is a class, its layers and an entry there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import pydantic

from ..config import Depth, Heads, Settings, Width, one_of
from ..errors import UserError
from ..features import KINDS, Kind

if TYPE_CHECKING:
    from torch import nn

    from .layers import AttentionHead, LadderHead, LinearHead, MlpHead, MlpV1Head, TransformerHead


class StudentShape(NamedTuple):
    """What a head may need to know of the student beside the channels that it reads."""

    other_dim: int | None = None
    """Channels of the other kind of feature; None where the head gets none."""
    num_blocks: int = 0
    """Blocks whose features the student returns (`Student.forward_blocks`)."""


UNKNOWN = StudentShape()


class HeadSettings(Settings):
    """What is common to all heads; each kind adds `type`, its own keys and `build`."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the head can predict; a recipe refuses it for the others."""
        return KINDS

    def build(self, in_dim: int, out_dim: int, student: StudentShape = UNKNOWN) -> nn.Module:
        """A freshly initialised head: [..., in_dim] -> [..., out_dim], on [B, D] and on [B, H, W, D]."""
        raise NotImplementedError


class MlpHeadSettings(HeadSettings):
    """A two-layer MLP with optional residual layers between: RADIO's published head (MLP v2)."""

    type: Literal["mlp"] = "mlp"
    hidden_dim: Width | None = None
    """Hidden channels; null takes the larger of the student's and this teacher's. (AM-RADIO: the largest teacher's, for all heads.)"""
    num_inner: Annotated[int, pydantic.Field(ge=0, le=1000)] = 0
    """Residual layers between the two."""
    upsample_factor: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    """Each cell of the map becomes this many squared; for spatial heads only."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Both, or the map alone where it upsamples."""
        return KINDS if self.upsample_factor == 1 else ("spatial",)

    def build(self, in_dim: int, out_dim: int, student: StudentShape = UNKNOWN) -> MlpHead:
        """An MLP [..., in_dim] -> [..., out_dim]; with `upsample_factor` u a map [B, H, W, in_dim] -> [B, uH, uW, out_dim]."""
        del student
        from .layers import MlpHead

        return MlpHead(in_dim, self.hidden_dim or max(in_dim, out_dim), out_dim, self.num_inner, self.upsample_factor)


class MlpV1HeadSettings(HeadSettings):
    """RADIOv1's published head (MLP v1): ReLU in place of GELU, norms before it, no residual layers."""

    type: Literal["mlp_v1"] = "mlp_v1"
    hidden_dim: Width | None = None
    """Hidden channels; null takes the larger of the student's and this teacher's."""
    num_inner: Annotated[int, pydantic.Field(ge=0, le=1000)] = 0
    """Hidden layers beside the first."""

    def build(self, in_dim: int, out_dim: int, student: StudentShape = UNKNOWN) -> MlpV1Head:
        """An MLP [..., in_dim] -> [..., out_dim], cell by cell."""
        del student
        from .layers import MlpV1Head

        return MlpV1Head(in_dim, self.hidden_dim or max(in_dim, out_dim), out_dim, self.num_inner)


class AttentionHeadSettings(HeadSettings):
    """Transformer blocks over the map, then an MLP: for spatial features only (the attention head of RADIO's checkpoints)."""

    type: Literal["attention"] = "attention"
    depth: Depth = 2
    """Blocks."""
    num_heads: Heads = 16
    """Attention heads; divides the student's channels."""
    hidden_dim: Width | None = None
    """Hidden channels of the MLP; null takes the larger of the student's and the teacher's."""
    upsample_factor: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    """Each cell of the map becomes this many squared."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The map alone."""
        return ("spatial",)

    def build(self, in_dim: int, out_dim: int, student: StudentShape = UNKNOWN) -> AttentionHead:
        """Blocks and an MLP, [B, H, W, in_dim] -> [B, uH, uW, out_dim]; UserError where `num_heads` does not divide `in_dim`."""
        del student
        from .layers import AttentionHead, MlpHead

        if in_dim % self.num_heads:
            raise UserError(f"num_heads {self.num_heads} does not divide the student's {in_dim} channels; set num_heads to a divisor")
        mlp = MlpHead(in_dim, self.hidden_dim or max(in_dim, out_dim), out_dim, upsample_factor=self.upsample_factor)
        return AttentionHead(in_dim, self.depth, self.num_heads, mlp)


class LinearHeadSettings(HeadSettings):
    """One linear layer."""

    type: Literal["linear"] = "linear"

    def build(self, in_dim: int, out_dim: int, student: StudentShape = UNKNOWN) -> LinearHead:
        """One linear layer, [..., in_dim] -> [..., out_dim]."""
        del student
        from .layers import LinearHead

        return LinearHead(in_dim, out_dim)


class TransformerHeadSettings(HeadSettings):
    """Transformer blocks over the summary and the map together, then a linear layer: DUNE's projector (arXiv 2503.14405). There one block
    serves both kinds of feature; here each kind has its own."""

    type: Literal["transformer"] = "transformer"
    depth: Depth = 1
    """Blocks (DUNE: 1)."""
    num_heads: Heads | None = None
    """Attention heads; divides the student's channels. null: one for 64 channels, or the next fewer that divide."""

    def build(self, in_dim: int, out_dim: int, student: StudentShape = UNKNOWN) -> TransformerHead:
        """Blocks over the tokens of both kinds and a linear layer on those of one: [B, in_dim] or [B, H, W, in_dim] -> [..., out_dim].

        Raises UserError where the number of attention heads does not divide `in_dim`.
        """
        from .layers import TransformerHead

        num_heads = self.num_heads or max(count for count in range(1, max(1, in_dim // 64) + 1) if in_dim % count == 0)
        if in_dim % num_heads:
            raise UserError(f"num_heads {num_heads} does not divide the student's {in_dim} channels; set num_heads to a divisor")
        return TransformerHead(in_dim, out_dim, self.depth, num_heads, student.other_dim)


class LadderHeadSettings(HeadSettings):
    """A hidden layer on the feature after every block of the student, and one linear layer on all of them: UNIC's ladder of projectors
    (arXiv 2408.05088), whose sum of linear layers this is. Of students of type 'vit' only."""

    type: Literal["ladder"] = "ladder"
    hidden_dim: Width = 768
    """Hidden channels of a block (UNIC: 768)."""
    last_hidden_dim: Width | None = None
    """Hidden channels of the last block; null takes four times the student's channels (UNIC: 3072 of 768)."""

    def build(self, in_dim: int, out_dim: int, student: StudentShape = UNKNOWN) -> LadderHead:
        """A hidden layer a block and a linear layer on all: `num_blocks` tensors [..., in_dim] -> [..., out_dim].

        Raises UserError where the student has no blocks.
        """
        from .layers import LadderHead

        if student.num_blocks == 0:
            raise UserError("heads: a head of type 'ladder' reads the blocks of a student of type 'vit'; take that, or another head")
        hidden_dims = [self.hidden_dim] * (student.num_blocks - 1) + [self.last_hidden_dim or 4 * in_dim]
        return LadderHead(in_dim, hidden_dims, out_dim)


HEADS: tuple[type[HeadSettings], ...] = (
    MlpHeadSettings,
    AttentionHeadSettings,
    LinearHeadSettings,
    TransformerHeadSettings,
    LadderHeadSettings,
    MlpV1HeadSettings,
)

if TYPE_CHECKING:
    AnyHead = HeadSettings
else:
    AnyHead = one_of(HEADS)
