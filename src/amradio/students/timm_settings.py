"""The settings of the timm student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from ..config import Pixels, Width
from ..errors import nearest
from .settings import StudentRow, StudentSettings

if TYPE_CHECKING:
    from .timm import TimmStudent

SummaryFrom = Literal["pooled", "token", "map"]


def _row(model: str, dim: int, patch_size: int, parameters: int) -> StudentRow:
    return StudentRow("timm", model, dim, 0, 0, patch_size, parameters)


WELL_KNOWN: tuple[StudentRow, ...] = (
    _row("tf_efficientnetv2_s", 160, 16, 20177488),
    _row("resnetv2_101", 1024, 16, 42492480),
    _row("regnety_064", 576, 16, 29286252),
    _row("efficientvit_l1", 256, 16, 49453088),
    _row("convnext_base", 512, 16, 87566464),
    _row("dm_nfnet_f3", 1536, 16, 251851200),
    _row("swinv2_small_window8_256", 384, 16, 48959418),
    _row("maxvit_base_tf_224", 384, 16, 118698708),
    _row("poolformerv2_m36", 384, 16, 55308168),
    _row("mvitv2_base", 384, 16, 50703744),
    _row("vit_small_patch16_224", 384, 16, 21665664),
    _row("vit_base_patch16_224", 768, 16, 85798656),
    _row("fastvit_sa12", 256, 16, 10555968),
    _row("mobilenetv4_conv_medium", 160, 16, 8434512),
    _row("mobilenetv4_hybrid_medium", 160, 16, 9793648),
)
"""The ten backbones of AM-RADIO's table 7 that are not E-RADIO, then others; the numbers are checked by a test."""


def _name_in_timm(model: str) -> str:
    """`timm/resnet50` and `hf-hub:timm/resnet50` are names of the hub for timm's `resnet50`."""
    return model.removeprefix("hf-hub:").removeprefix("timm/")


class TimmSettings(StudentSettings):
    """A backbone of timm. Images are normalised as timm says for it."""

    type: Literal["timm"] = "timm"
    model: Annotated[str, pydantic.AfterValidator(_name_in_timm)]
    """Name in timm, with the tag of its weights or without: convnext_base, vit_base_patch16_224.augreg_in21k. The tag also says mean, std
    and size. A hub name (timm/convnext_base.fb_in1k) is taken for the name behind its slash."""
    level: Annotated[int, pydantic.Field(ge=-1000, le=1000)] | None = None
    """Which of the maps is the student's: a stage of a pyramid, a block of a ViT, from 0; negative counts from the end. Null takes the
    last one of 16 px a cell or less, or the first where none is so fine."""
    neck: bool = False
    """High-resolution neck: adds the coarser levels, projected and up-sampled, to the map; only for pyramids."""
    neck_dim: Width | None = None
    """Channels of the neck's map; null for those of the last level."""
    summary: Literal["pooled", "token", "map"] = "pooled"
    """`pooled`: what the model's own classifier would read (of a ViT mostly the class token). `token`: the class token. `map`: the mean of
    the student's map; what lies above its level, and is in no neck, is then cut off."""
    summaries: Literal["shared", "per_teacher"] = "shared"
    """`shared`: all heads read one. `per_teacher`: a linear layer on it for each teacher."""
    image_size: Pixels | None = None
    """px of the square for which windows and position tables are made, where the model has such; null for its own size. Models of fixed
    size (MaxViT, MViT, Hiera) take that size alone."""
    gradient_checkpointing: bool = False
    """Computes each block again in the backward pass: less memory, more time, the same numbers."""
    start_from: str | None = None
    """Weights to begin with: `hub` for timm's own of this model and tag, a .safetensors file in timm's names, or a folder with
    model.safetensors (timm's or a model folder); null begins at random."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TimmSettings:
        if not any(self.model == row.size for row in WELL_KNOWN):
            self._check_name()
        if self.neck_dim is not None and not self.neck:
            raise ValueError("neck_dim sets a neck that `neck: false` leaves out; drop either")
        return self

    def _check_name(self) -> None:
        """Raises ValueError where timm has no such model or tag."""
        import timm
        from timm.models import get_arch_pretrained_cfgs

        name, _, tag = self.model.partition(".")
        if not timm.is_model(name):
            raise ValueError(f"model: timm has no '{name}'; {nearest(name, timm.list_models())}")
        tags = [known for known in get_arch_pretrained_cfgs(name) if known.partition(".")[2]]
        if tag and self.model not in tags:
            raise ValueError(f"model: timm's {name} has no tag '{tag}'; {nearest(self.model, tags) if tags else 'leave it out'}")

    @property
    def shares_summary(self) -> bool:
        """Whether `summaries` is `shared`: all heads read the one summary of the backbone."""
        return self.summaries == "shared"

    def build(self, num_summaries: int) -> TimmStudent:
        """The backbone, on the default device. A shared summary is one, whatever `num_summaries` says.

        Raises UserError where it gives no usable map, has no such level, or cannot be of this size.
        """
        from .timm import build

        return build(self, num_summaries)

    @classmethod
    def catalogue(cls) -> list[StudentRow]:
        """The backbones of AM-RADIO's table 7, and what is deployed today; any other name of timm is as good."""
        return list(WELL_KNOWN)
