"""The settings of losses, each of which builds a pure function (prediction, target, context) -> one number a sample (`pointwise.Loss`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

import pydantic

from ..config import Settings, Share, Weight, one_of
from ..features import KINDS, Kind
from .pointwise import ALONE, Loss, LossContext, cosine, dampened_mse, mse, smooth_l1

if TYPE_CHECKING:
    from torch import Tensor


class LossTerm(Settings):
    """A loss of one kind of feature."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What the loss can compare; a recipe refuses it for the others."""
        return KINDS

    @property
    def needs_sphere(self) -> bool:
        """Whether the directions of the targets are calibrated for it."""
        return False

    @property
    def compares_samples(self) -> bool:
        """Whether it compares the images of a batch with one another."""
        return False

    def build(self) -> Loss:
        """The loss as a pure function: float32 [B], one number a sample."""
        raise NotImplementedError


class SummaryTerm(LossTerm):
    """Base of losses that compare summaries only."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Summaries."""
        return ("summary",)


class CosineSettings(LossTerm):
    """1 - cosine similarity: direction alone. AM-RADIO's choice for summaries, with raw targets (`normalize.summary: none`)."""

    type: Literal["cosine"] = "cosine"

    def build(self) -> Loss:
        """1 - cosine over channels, mean over valid cells: float32 [B] in [0, 2]."""
        return lambda prediction, target, context=ALONE: cosine(prediction, target, context.valid)


class MseSettings(LossTerm):
    """Squared error. With standardized targets the choice of PHI-S for spatial features."""

    type: Literal["mse"] = "mse"

    def build(self) -> Loss:
        """Squared error, mean over channels and valid cells: float32 [B], 0 or more."""
        return lambda prediction, target, context=ALONE: mse(prediction, target, context.valid)


class SmoothL1Settings(LossTerm):
    """Squared error below `beta`, absolute error above."""

    type: Literal["smooth_l1"] = "smooth_l1"
    beta: Annotated[float, pydantic.Field(ge=0, le=1e6)] = 1.0
    """Where the loss turns from quadratic to linear; torch's default is 1, TAO's port uses 2."""

    def build(self) -> Loss:
        """d^2 / (2 beta) where the difference d is below `beta`, d - beta / 2 above; mean over channels and valid cells: float32 [B]."""
        return lambda prediction, target, context=ALONE: smooth_l1(prediction, target, self.beta, context.valid)


class MatchSettings(LossTerm):
    """AM-RADIO's spatial loss: a mix of cosine and smooth L1, so that magnitudes are learnt too (section 3.3: L_match)."""

    type: Literal["match"] = "match"
    cosine: Weight = 0.9
    """Weight of the cosine part (alpha of the paper)."""
    smooth_l1: Weight = 0.1
    """Weight of the smooth L1 part (beta of the paper)."""
    beta: Annotated[float, pydantic.Field(ge=0, le=1e6)] = 1.0
    """Where smooth L1 turns from quadratic to linear; not stated in the paper."""

    @pydantic.model_validator(mode="after")
    def _measures_something(self) -> Self:
        if self.cosine == 0 and self.smooth_l1 == 0:
            raise ValueError("both weights are 0, so nothing would be learnt; give cosine or smooth_l1 a weight")
        return self

    def build(self) -> Loss:
        """The weighted sum of `cosine` and `smooth_l1`."""

        def match(prediction: Tensor, target: Tensor, context: LossContext = ALONE) -> Tensor:
            direction, rest = cosine(prediction, target, context.valid), smooth_l1(prediction, target, self.beta, context.valid)
            return self.cosine * direction + self.smooth_l1 * rest

        return match


class HybridSettings(LossTerm):
    """A mix of cosine and squared error (PHI-S, section 3: hybrid MSE)."""

    type: Literal["hybrid"] = "hybrid"
    cosine: Share = 0.9
    """Weight of the cosine part (beta of the paper); the squared error has the rest of 1."""

    def build(self) -> Loss:
        """The weighted sum of `cosine` and `mse`."""

        def hybrid(prediction: Tensor, target: Tensor, context: LossContext = ALONE) -> Tensor:
            return self.cosine * cosine(prediction, target, context.valid) + (1 - self.cosine) * mse(prediction, target, context.valid)

        return hybrid


class DampenedMseSettings(LossTerm):
    """Squared error whose growth is that of a root beyond a difference of 1, so that outliers weigh little (NVIDIA TAO)."""

    type: Literal["dampened_mse"] = "dampened_mse"

    def build(self) -> Loss:
        """d^2 / 2 where the difference d is below 1, 2 sqrt(d) - 1.5 above; mean over channels and valid cells: float32 [B]."""
        return lambda prediction, target, context=ALONE: dampened_mse(prediction, target, context.valid)


class AngleSettings(SummaryTerm):
    """The squared angle over the teacher's angular dispersion, which is calibrated before a stage, so that teachers whose summaries spread
    widely do not outweigh the others (C-RADIOv4). For raw targets: `normalize.summary: none`."""

    type: Literal["angle"] = "angle"

    @property
    def needs_sphere(self) -> bool:
        """For the dispersion."""
        return True

    def build(self) -> Loss:
        """The squared angle (radians) over the teacher's dispersion: float32 [B]; the context needs a `sphere`."""
        from .sphere import angle

        return angle


class TangentSphereSettings(SummaryTerm):
    """The squared distance in the space that is tangent to the sphere of directions at the teacher's mean, over the variance there (NVIDIA
    TAO: PHI-S of the tangents; its rotation leaves distances as they are). For raw targets: `normalize.summary: none`."""

    type: Literal["tangent_sphere"] = "tangent_sphere"

    @property
    def needs_sphere(self) -> bool:
        """For the mean direction and the variance around it."""
        return True

    def build(self) -> Loss:
        """The squared distance of tangents at the mean direction over their variance: float32 [B]; the context needs a `sphere`."""
        from .sphere import tangent_sphere

        return tangent_sphere


class TokenSimilaritySettings(LossTerm):
    """How alike the cells of an image are: the divergence of each cell's softmax over its cosines with the other cells, from teacher to
    student. It leaves values free, so it stands beside another loss (`sum`). Takes memory for cells x cells numbers an image."""

    type: Literal["token_similarity"] = "token_similarity"
    temperature: Annotated[float, pydantic.Field(ge=1e-3, le=100)] = 0.07
    """Cosines are divided by it; 0.07 is that of contrastive losses."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Maps."""
        return ("spatial",)

    def build(self) -> Loss:
        """KL(teacher || student) of softmaxes over cosines between the valid cells of an image, mean over cells: float32 [B]."""
        from .relations import token_similarity

        return lambda prediction, target, context=ALONE: token_similarity(prediction, target, self.temperature, context.valid)


class RkdSettings(SummaryTerm):
    """Distances between the images of a partition's batch, over their mean: smooth L1 between student and teacher (RKD, arXiv 1904.05068).
    It leaves values free, so it stands beside another loss (`sum`). The images of all processes count; not with `engine.accumulate`."""

    type: Literal["rkd"] = "rkd"

    @property
    def compares_samples(self) -> bool:
        """Yes."""
        return True

    def build(self) -> Loss:
        """Smooth L1 between distances to all images of the batch, over their means; every pair counts: float32 [B]."""
        from .relations import relational

        return lambda prediction, target, context=ALONE: relational(prediction, target, context.gather, is_asymmetric=False)


class AsymmetricRkdSettings(SummaryTerm):
    """`rkd` of which only wrong directions count: pairs nearer than the teacher's median that are too far apart, and other pairs that are
    too near (SigLino, arXiv 2512.20157)."""

    type: Literal["asymmetric_rkd"] = "asymmetric_rkd"

    @property
    def compares_samples(self) -> bool:
        """Yes."""
        return True

    def build(self) -> Loss:
        """`rkd` of the pairs that are wrong in direction alone: near pairs that are too far apart, far ones too near: float32 [B]."""
        from .relations import relational

        return lambda prediction, target, context=ALONE: relational(prediction, target, context.gather, is_asymmetric=True)


SINGLE_LOSSES: tuple[type[LossTerm], ...] = (
    CosineSettings,
    MseSettings,
    SmoothL1Settings,
    MatchSettings,
    HybridSettings,
    DampenedMseSettings,
    AngleSettings,
    TangentSphereSettings,
    TokenSimilaritySettings,
    RkdSettings,
    AsymmetricRkdSettings,
)

if TYPE_CHECKING:
    SingleLoss = LossTerm
else:
    SingleLoss = one_of(SINGLE_LOSSES)


class WeightedLoss(Settings):
    """One of several losses."""

    loss: SingleLoss
    """Any but `sum`."""
    weight: Annotated[float, pydantic.Field(gt=0, le=1e6)] = 1.0
    """Factor."""


class SumSettings(LossTerm):
    """Several losses of the same pair, each times its weight."""

    type: Literal["sum"] = "sum"
    terms: Annotated[list[WeightedLoss], pydantic.Field(min_length=1, max_length=100)]
    """For example `[{loss: mse}, {loss: asymmetric_rkd, weight: 0.1}]`."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What all of them can compare."""
        return tuple(kind for kind in KINDS if all(kind in term.loss.kinds for term in self.terms))

    @property
    def needs_sphere(self) -> bool:
        """Where one does."""
        return any(term.loss.needs_sphere for term in self.terms)

    @property
    def compares_samples(self) -> bool:
        """Where one does."""
        return any(term.loss.compares_samples for term in self.terms)

    def build(self) -> Loss:
        """The weighted sum."""
        parts = [(term.weight, term.loss.build()) for term in self.terms]

        def weighted_sum(prediction: Tensor, target: Tensor, context: LossContext = ALONE) -> Tensor:
            losses = [weight * loss(prediction, target, context) for weight, loss in parts]
            return sum(losses[1:], start=losses[0])

        return weighted_sum


LOSSES: tuple[type[LossTerm], ...] = (*SINGLE_LOSSES, SumSettings)

if TYPE_CHECKING:
    AnyLoss = LossTerm
else:
    AnyLoss = one_of(LOSSES)


class LossSettings(Settings):
    """Which loss for which kind of feature."""

    summary: AnyLoss = MseSettings()
    """Loss of the summaries. With targets per channel the squared error also teaches how large a deviation is; the cosine leaves it free,
    and exported heads got worse the longer they trained (docs/LOG.md, 2026-11-26). AM-RADIO: cosine on raw targets."""
    spatial: AnyLoss = MseSettings()
    """Loss of the maps. On targets per channel MSE was measured to beat AM-RADIO's mix, on raw targets too (docs/LOG.md, 2026-11-26)."""
    grid: Literal["larger", "smaller"] = "larger"
    """Where student and teacher maps differ in size: the grid on which they are compared (AM-RADIO: larger, RADIOv2.5: smaller)."""

    token_exponent: Share = 0.0
    """Maps of an image weigh as their number of valid cells to this power, over the mean of that over the step's images: 0, all alike; 0.5,
    the root (NVIDIA TAO); 1, every cell alike. It matters where partitions differ in size."""

    @pydantic.model_validator(mode="after")
    def _compares_its_kind(self) -> Self:
        for kind in KINDS:
            loss = self.of(kind)
            if kind not in loss.kinds:
                kinds = " and ".join(loss.kinds) or "no"
                raise ValueError(f"{kind}: a loss of type '{loss.model_dump()['type']}' compares {kinds} features only")
        return self

    @property
    def compares_samples(self) -> bool:
        """Whether a loss compares the images of a batch with one another."""
        return any(self.of(kind).compares_samples for kind in KINDS)

    def of(self, kind: Kind) -> LossTerm:
        """The loss of one kind of feature."""
        return self.summary if kind == "summary" else self.spatial
