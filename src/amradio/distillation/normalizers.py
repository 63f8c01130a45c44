"""Settings of normalizers: which target space a feature has. They need no torch until they are applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..config import Positive, Settings, one_of
from ..features import KINDS, Kind

if TYPE_CHECKING:
    from torch import Tensor


class NormalizerSettings(Settings):
    """A target space: an affine map of the raw features."""

    @property
    def mixes_channels(self) -> bool:
        """Whether the scale is a matrix, for which the covariance of the channels is measured."""
        return False

    @property
    def wants_hadamard(self) -> bool:
        """Whether the matrix is made with a Hadamard matrix, which not every number of channels has."""
        return False

    def affine(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, scale), each [D], of `feature = scale * target + shift`, from the mean and standard deviation per channel, float64."""
        raise NotImplementedError

    def scale_matrix(self, covariance: Tensor) -> Tensor:
        """The scale [D, D] of `feature = scale @ target + mean`, from the covariance [D, D], float64; where channels are mixed."""
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


class MixingSettings(NormalizerSettings):
    """Base of the target spaces that mix channels; their shift is the mean."""

    @property
    def mixes_channels(self) -> bool:
        """Yes."""
        return True


class PhiSSettings(MixingSettings):
    """PHI-S: a rotation times one number, after which every channel has variance 1, so that errors weigh the same in every direction of the
    teacher's space (section 2.1). RADIOv2.5's choice for maps, with MSE."""

    type: Literal["phi_s"] = "phi_s"

    @property
    def wants_hadamard(self) -> bool:
        """Yes; without one the same holds of the variances, for the measured covariance."""
        return True

    def scale_matrix(self, covariance: Tensor) -> Tensor:
        """phi times a rotation (or reflection), [D, D] float64: every channel of the targets gets variance 1 (PHI-S, section 2.1)."""
        from .rotations import phi_s

        return phi_s(covariance)


class PcaSettings(MixingSettings):
    """PCA whitening: targets along the principal axes, each with variance 1 (PHI-S, Table 1). Weak directions are amplified."""

    type: Literal["pca"] = "pca"

    def scale_matrix(self, covariance: Tensor) -> Tensor:
        """U L^1/2 of the eigenvectors U and eigenvalues L of the covariance, [D, D] float64: the targets are white (PHI-S, Table 1)."""
        from .rotations import pca

        return pca(covariance)


class ZcaSettings(MixingSettings):
    """ZCA whitening: uncorrelated channels of variance 1, as near to the standardized ones as can be (PHI-S, Table 1)."""

    type: Literal["zca"] = "zca"

    def scale_matrix(self, covariance: Tensor) -> Tensor:
        """U L^1/2 U^T of the eigenvectors U and eigenvalues L of the covariance, [D, D] float64, symmetric: the targets are white."""
        from .rotations import zca

        return zca(covariance)


class HadamardSettings(MixingSettings):
    """Hadamard whitening: PCA whitening, then a rotation that spreads each principal axis over all channels (PHI-S, Table 1: HCA)."""

    type: Literal["hadamard"] = "hadamard"

    @property
    def wants_hadamard(self) -> bool:
        """Yes; any rotation leaves the targets white."""
        return True

    def scale_matrix(self, covariance: Tensor) -> Tensor:
        """U L^1/2 H^T with H orthogonal, [D, D] float64: the scale of PCA and then a rotation; the targets are white (PHI-S, Table 1)."""
        from .rotations import hadamard_whitening

        return hadamard_whitening(covariance)


NORMALIZERS: tuple[type[NormalizerSettings], ...] = (
    NoneSettings,
    GlobalSettings,
    PerChannelSettings,
    PhiSSettings,
    PcaSettings,
    ZcaSettings,
    HadamardSettings,
)


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

    @property
    def mixed_kinds(self) -> frozenset[Kind]:
        """The kinds whose target space mixes channels."""
        return frozenset(kind for kind in KINDS if self.of(kind).mixes_channels)

    def of(self, kind: Kind) -> NormalizerSettings:
        """The target space of one kind of feature."""
        return self.summary if kind == "summary" else self.spatial
