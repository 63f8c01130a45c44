"""Settings of balance: how the losses of teachers and kinds become one number. They need no torch until they are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from ..config import Momentum, Probability, Settings, one_of

if TYPE_CHECKING:
    from .weighting import Balance

Weights = Mapping[str, float]
"""By name of the loss, e.g. `clip/summary`: of every part of a head."""


class BalanceSettings(Settings):
    """How losses are added up."""

    def build(self, weights: Weights) -> Balance:
        """weights: those of the recipe's teachers; every balance multiplies by them too."""
        raise NotImplementedError


class FixedSettings(BalanceSettings):
    """The sum of the losses times their teacher's weights: AM-RADIO's final choice (Table 4: nothing adaptive did better overall)."""

    type: Literal["fixed"] = "fixed"

    def build(self, weights: Weights) -> Balance:
        """A sum with constant factors: `weights`."""
        from .weighting import Fixed

        return Fixed(weights)


class AdaLossSettings(BalanceSettings):
    """Each loss over its running mean, so that all count alike (AdaLoss; AM-RADIO, Table 4: best on ImageNet, worst on ADE20k)."""

    type: Literal["adaloss"] = "adaloss"
    decay: Momentum = 0.99
    """Of the running mean, a step (AM-RADIO: 0.99)."""

    def build(self, weights: Weights) -> Balance:
        """A sum in which every loss is divided by its running mean; the means are buffers, 0 until a loss was seen."""
        from .weighting import AdaLoss

        return AdaLoss(weights, self.decay)


class UncertaintySettings(BalanceSettings):
    """Each loss L as exp(-b) L + softplus(b), with a b that is learnt (Kendall et al., arXiv 1705.07115, as AM-RADIO writes it)."""

    type: Literal["uncertainty"] = "uncertainty"

    def build(self, weights: Weights) -> Balance:
        """A sum with one learnt parameter a loss of weight above 0, which begins at 0."""
        from .weighting import Uncertainty

        return Uncertainty(weights)


class TeacherDroppingSettings(BalanceSettings):
    """For each image, each teacher but the one with the largest loss is left out at random (UNIC, arXiv 2408.05088)."""

    type: Literal["teacher_dropping"] = "teacher_dropping"
    probability: Probability = 0.5
    """Of leaving one out (UNIC: 0.5); 0 is `fixed`."""

    def build(self, weights: Weights) -> Balance:
        """A sum over the teachers that are kept, drawn for each image; outside training all are kept."""
        from .weighting import TeacherDropping

        return TeacherDropping(weights, self.probability)


BALANCES: tuple[type[BalanceSettings], ...] = (FixedSettings, AdaLossSettings, UncertaintySettings, TeacherDroppingSettings)

if TYPE_CHECKING:
    AnyBalance = BalanceSettings
else:
    AnyBalance = one_of(BALANCES)
