"""Heads: from the student's features into one teacher's space."""

from typing import TYPE_CHECKING

from ..lazy import lazily
from .settings import HEADS, AttentionHeadSettings, HeadSettings, LinearHeadSettings, MlpHeadSettings

if TYPE_CHECKING:
    from .layers import AttentionHead, Head, LinearHead, MlpHead, final_linear

__all__ = [
    "HEADS",
    "AttentionHead",
    "AttentionHeadSettings",
    "Head",
    "HeadSettings",
    "LinearHead",
    "LinearHeadSettings",
    "MlpHead",
    "MlpHeadSettings",
    "final_linear",
]

_LAYERS = ("AttentionHead", "Head", "LinearHead", "MlpHead", "final_linear")
__getattr__ = lazily(__name__, dict.fromkeys(_LAYERS, "layers"))
