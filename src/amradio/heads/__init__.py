"""Heads: from the student's features into one teacher's space."""

from typing import TYPE_CHECKING

from ..lazy import lazily
from .settings import (
    HEADS,
    AnyHead,
    AttentionHeadSettings,
    HeadSettings,
    LadderHeadSettings,
    LinearHeadSettings,
    MlpHeadSettings,
    MlpV1HeadSettings,
    StudentShape,
    TransformerHeadSettings,
)

if TYPE_CHECKING:
    from .layers import AttentionHead, Head, LadderHead, LinearHead, MlpHead, MlpV1Head, TransformerHead, final_linear

__all__ = [
    "HEADS",
    "AnyHead",
    "AttentionHead",
    "AttentionHeadSettings",
    "Head",
    "HeadSettings",
    "LadderHead",
    "LadderHeadSettings",
    "LinearHead",
    "LinearHeadSettings",
    "MlpHead",
    "MlpHeadSettings",
    "MlpV1Head",
    "MlpV1HeadSettings",
    "StudentShape",
    "TransformerHead",
    "TransformerHeadSettings",
    "final_linear",
]

_LAYERS = ("AttentionHead", "Head", "LadderHead", "LinearHead", "MlpHead", "MlpV1Head", "TransformerHead", "final_linear")
__getattr__ = lazily(__name__, dict.fromkeys(_LAYERS, "layers"))
