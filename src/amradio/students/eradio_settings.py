"""The settings of the E-RADIO student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import pydantic

from ..config import AsTuple, Depth, Heads, Pixels, Width
from .settings import StudentRow, StudentSettings

if TYPE_CHECKING:
    from .eradio import Eradio

Subsampling = Literal["conv", "pool"]
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

PARAMETERS = {
    "xxxtiny": 10_255_008,
    "xxxtiny_8x_ws12": 6_258_016,
    "xxxtiny_8x_ws16": 6_275_424,
    "xtiny": 26_572_096,
    "tiny": 41_430_592,
    "small": 64_415_296,
    "base": 114_355_520,
    "large": 389_598_784,
}
"""Of each size with its default settings; a test counts them again."""


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
    gradient_checkpointing: bool = False
    """Computes stem, stages of convolutions, blocks of attention and neck again in the backward pass: less memory, more time, the same
    numbers."""
    summaries: Literal["shared", "per_teacher"] = "shared"
    """`shared`: the mean of the map, which all heads read (as published). `per_teacher`: a mean each, weighted by a learned query."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> EradioSettings:
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
        """Whether `summaries` is `shared`: all heads read the mean of the map."""
        return self.summaries == "shared"

    def shape(self) -> EradioShape:
        """The size's shape with the overrides put in."""
        overrides = {name: value for name in EradioShape._fields if (value := getattr(self, name)) is not None}
        return SIZES[self.size]._replace(**overrides)

    def build(self, num_summaries: int) -> Eradio:
        """An E-RADIO with random weights, on the default device. A shared summary is one, whatever `num_summaries` says."""
        from .eradio import build

        return build(self, num_summaries)

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """One row per size, with the default settings."""
        rows = []
        for size, shape in SIZES.items():
            patch_size = 4 * 2**shape.neck_start
            rows.append(StudentRow("eradio", size, shape.neck_dim, sum(shape.depths), shape.num_heads[-1], patch_size, PARAMETERS[size]))
        return rows
