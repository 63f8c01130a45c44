"""The settings of heads. `HEADS` lists them; a new one is a class, its layers and an entry there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from ..config import Depth, Heads, Settings, Width
from ..errors import UserError
from ..features import KINDS, Kind

if TYPE_CHECKING:
    from torch import nn

    from .layers import AttentionHead, LinearHead, MlpHead


class HeadSettings(Settings):
    """What is common to all heads; each kind adds `type`, its own keys and `build`."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the head can predict; a recipe refuses it for the others."""
        return KINDS

    def build(self, in_dim: int, out_dim: int) -> nn.Module:
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

    def build(self, in_dim: int, out_dim: int) -> MlpHead:
        """See `MlpHead`."""
        from .layers import MlpHead

        return MlpHead(in_dim, self.hidden_dim or max(in_dim, out_dim), out_dim, self.num_inner, self.upsample_factor)


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

    def build(self, in_dim: int, out_dim: int) -> AttentionHead:
        """See `AttentionHead`; UserError where the number of attention heads does not divide the student's channels."""
        from .layers import AttentionHead, MlpHead

        if in_dim % self.num_heads:
            raise UserError(f"num_heads {self.num_heads} does not divide the student's {in_dim} channels; set num_heads to a divisor")
        mlp = MlpHead(in_dim, self.hidden_dim or max(in_dim, out_dim), out_dim, upsample_factor=self.upsample_factor)
        return AttentionHead(in_dim, self.depth, self.num_heads, mlp)


class LinearHeadSettings(HeadSettings):
    """One linear layer."""

    type: Literal["linear"] = "linear"

    def build(self, in_dim: int, out_dim: int) -> LinearHead:
        """See `LinearHead`."""
        from .layers import LinearHead

        return LinearHead(in_dim, out_dim)


HEADS: tuple[type[HeadSettings], ...] = (MlpHeadSettings, AttentionHeadSettings, LinearHeadSettings)
