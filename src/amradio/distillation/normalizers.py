"""Settings of normalizers: which target space a feature has. They need no torch until they are applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..config import Positive, Settings, one_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..features import Kind


class NormalizerSettings(Settings):
    """A target space: an affine map of the raw features."""

    def affine(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, scale), each [D], of `target = (feature - shift) / scale`, from the mean and standard deviation per channel, float64."""
        raise NotImplementedError


class NoneSettings(NormalizerSettings):
    """Targets are the teacher's raw features (AM-RADIO)."""

    type: Literal["none"] = "none"

    def affine(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Zero and one: raw features."""
        return mean.new_zeros(mean.shape), std.new_ones(std.shape)


class GlobalSettings(NormalizerSettings):
    """One mean and one standard deviation for all channels (PHI-S, Table 1: global standardization)."""

    type: Literal["global"] = "global"

    def affine(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """One mean and one deviation over all channels, repeated."""
        centre = mean.mean()
        spread = (std.square() + (mean - centre).square()).mean().sqrt()
        return centre.expand_as(mean).clone(), spread.expand_as(std).clone()


class PerChannelSettings(NormalizerSettings):
    """Mean and standard deviation of each channel (PHI-S, Table 1: standardization)."""

    type: Literal["per_channel"] = "per_channel"

    def affine(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel."""
        return mean, std


NORMALIZERS: tuple[type[NormalizerSettings], ...] = (NoneSettings, GlobalSettings, PerChannelSettings)


if TYPE_CHECKING:
    AnyNormalizer = NormalizerSettings
else:
    AnyNormalizer = one_of(NORMALIZERS)


class NormalizeSettings(Settings):
    """The target space of each kind of feature, and how its statistics are found."""

    summary: AnyNormalizer = PerChannelSettings()
    """Target space of the summaries. Per channel, so that the loss sees what tells images apart and not their common mean."""
    spatial: AnyNormalizer = PerChannelSettings()
    """Target space of the maps. With MSE, the default loss, standardizing ranks 3.8 to 4.2, raw targets 5.3 to 7.8 (PHI-S, Table 13)."""
    batches: Positive = 32
    """Batches of each partition from which the statistics are calibrated before a stage."""

    def of(self, kind: Kind) -> NormalizerSettings:
        """The target space of one kind of feature."""
        return self.summary if kind == "summary" else self.spatial
