"""Normalisers: teacher features -> targets."""

from typing import TYPE_CHECKING

from ..lazy import lazily
from .settings import NORMALIZERS, GlobalSettings, NoneSettings, NormalizeSettings, PerChannelSettings

if TYPE_CHECKING:
    from .statistics import SMALLEST_STD, Moments, Normalizer, set_statistics

__all__ = [
    "NORMALIZERS",
    "SMALLEST_STD",
    "GlobalSettings",
    "Moments",
    "NoneSettings",
    "NormalizeSettings",
    "Normalizer",
    "PerChannelSettings",
    "set_statistics",
]

__getattr__ = lazily(__name__, dict.fromkeys(("SMALLEST_STD", "Moments", "Normalizer", "set_statistics"), "statistics"))
