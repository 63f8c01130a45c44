"""The settings of the RADIO1D student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

import pydantic

from ..config import AsTuple, Depth
from .settings import StudentRow
from .vit_settings import TransformerSettings, VitShape

if TYPE_CHECKING:
    from .radio1d import Radio1d

PUBLISHED = ("large", "so400m", "huge")
"""Sizes of which there is a published architecture."""
Blocks = Annotated[tuple[Annotated[int, pydantic.Field(ge=0, le=1000)], ...], AsTuple, pydantic.Field(min_length=1, max_length=8)]


class Radio1dSettings(TransformerSettings):
    """A RADIO1D student: a ViT that writes an image into an ordered row of tokens, of which any first few do, and a decoder to a map."""

    type: Literal["radio1d"] = "radio1d"
    merge_before: Blocks | None = None
    """Blocks, counted from 0, before which four patches become one of twice the channels; null is one, at three quarters of the depth."""
    decoder_depth: Depth = 6
    """Blocks of the decoder."""
    split_before: Blocks | None = None
    """Blocks of the decoder before which one patch becomes four again; null is one, in the middle."""
    filler_side: Annotated[int, pydantic.Field(ge=1, le=1024)] = 7
    """Side of the square of tokens that stand for those left out; stretched to the image (7: read one to one at 224 px)."""
    drops_early: bool = False
    """Drops the tokens that will not be kept little by little after the last merge, in place of all at the end."""

    @pydantic.model_validator(mode="after")
    def _levels(self) -> Self:
        named = {"merge_before": (self.merges(), self.shape().depth), "split_before": (self.splits(), self.decoder_depth)}
        for key, (numbers, depth) in named.items():
            if list(numbers) != sorted(set(numbers)) or numbers[0] < 0 or numbers[-1] >= depth:
                raise ValueError(f"{key} {list(numbers)} are not ascending numbers of blocks from 0 to {depth - 1}")
        if len(self.merges()) != len(self.splits()):
            raise ValueError(
                f"merge_before {list(self.merges())} and split_before {list(self.splits())} differ in length; patches that are merged are "
                "split again: give as many of both"
            )
        if self.encoded_shape().dim % self.shape().num_heads:
            raise ValueError(f"num_heads {self.shape().num_heads} does not divide the {self.encoded_shape().dim} channels of the decoder")
        return self

    def merges(self) -> tuple[int, ...]:
        """Blocks of the encoder before which patches are merged."""
        return (self.shape().depth * 3 // 4,) if self.merge_before is None else self.merge_before

    def splits(self) -> tuple[int, ...]:
        """Blocks of the decoder before which patches are split."""
        return (self.decoder_depth // 2,) if self.split_before is None else self.split_before

    def encoded_shape(self) -> VitShape:
        """Of the encoder's last blocks: channels, heads and hidden channels double with every merge."""
        shape, factor = self.shape(), 2 ** len(self.merges())
        return VitShape(shape.dim * factor, shape.depth, shape.num_heads * factor, shape.mlp_dim * factor)

    def build(self, num_summaries: int) -> Radio1d:
        """A RADIO1D with `num_summaries` summary tokens, on the default device, with random weights."""
        from .radio1d import build

        return build(self, num_summaries)

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """One row per published size, with the default settings."""
        return [_row(cls.model_validate({"size": size})) for size in PUBLISHED]

    def count_parameters(self, num_summaries: int) -> int:
        """Parameters of what `build` gives."""
        dim, depth, _, mlp_dim = self.shape()
        num_prefix, scales = num_summaries + self.num_registers, 2 if self.layer_scale is not None else 0

        def block(factor: int, others: int) -> int:
            """Of one with `factor` times the channels; others: beside the two norms, as multiples of the channels."""
            wide, hidden = dim * factor, mlp_dim * factor
            return 4 * wide**2 + wide + 2 * wide * hidden + hidden + wide + (4 + others) * wide

        levels = len(self.merges())
        total = (self.table_side() ** 2 + num_prefix + 3 * self.patch_size**2) * dim + (self.filler_side**2 + num_prefix) * dim * 2**levels
        for number in range(depth):
            total += block(2 ** sum(merge <= number for merge in self.merges()), 3 + scales)
        for number in range(self.decoder_depth):
            total += block(2 ** (levels - sum(split <= number for split in self.splits())), 0)
        for level in range(levels):
            wide = dim * 2**level
            total += (8 * wide + 8 * wide**2 + 2 * wide**2) + (8 * wide**2 + 2 * wide + 2 * wide**2)
        return total + 2 * dim + (2 * dim * 2**levels if self.final_norm else 0)


def _row(settings: Radio1dSettings) -> StudentRow:
    shape, parameters = settings.shape(), settings.count_parameters(num_summaries=4)
    return StudentRow("radio1d", settings.size, shape.dim, shape.depth, shape.num_heads, settings.patch_size, parameters)
