"""Losses that compare position by position, and their gradients, against float64 formulas written out here; what every loss promises."""

import numpy as np
import pytest
import torch
from torch import Tensor

from amradio.distillation.losses import (
    LOSSES,
    AngleSettings,
    CosineSettings,
    DampenedMseSettings,
    HybridSettings,
    LossSettings,
    LossTerm,
    MatchSettings,
    MseSettings,
    SmoothL1Settings,
    SumSettings,
    TokenSimilaritySettings,
    WeightedLoss,
)
from amradio.distillation.pointwise import LossContext
from amradio.distillation.sphere import Sphere

SHAPES = {"summary": (5, 7), "spatial": (3, 2, 5, 6), "one image": (1, 4, 3, 11)}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def cosine(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(1 - cosine per position, its gradient in p), by hand."""
    norm = np.sqrt((p * p).sum(-1, keepdims=True))
    similarity = (unit(p) * unit(t)).sum(-1, keepdims=True)
    return 1 - similarity[..., 0], (similarity * unit(p) - unit(t)) / norm


def mse(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ((p - t) ** 2).mean(-1), 2 * (p - t) / p.shape[-1]


def smooth_l1(p: np.ndarray, t: np.ndarray, beta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    d = p - t
    near = abs(d) < beta
    value = np.where(near, d * d / (2 * beta), abs(d) - beta / 2)
    return value.mean(-1), np.where(near, d / beta, np.sign(d)) / p.shape[-1]


def match(p: np.ndarray, t: np.ndarray, alpha: float = 0.9, rest: float = 0.1, beta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    (a, a_gradient), (b, b_gradient) = cosine(p, t), smooth_l1(p, t, beta)
    return alpha * a + rest * b, alpha * a_gradient + rest * b_gradient


def dampened(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    d = abs(p - t)
    value = np.where(d < 1, d * d / 2, 2 * np.sqrt(d) - 1.5)
    return value.mean(-1), np.sign(p - t) * np.where(d < 1, d, 1 / np.sqrt(d)) / p.shape[-1]


def weighted(a: float, first, b: float, second):
    def both(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (x, dx), (y, dy) = first(p, t), second(p, t)
        return a * x + b * y, a * dx + b * dy

    return both


def made(kind: type[LossTerm]) -> LossTerm:
    return kind(terms=[WeightedLoss(loss=MseSettings())]) if kind is SumSettings else kind()


def sized(settings: LossTerm, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that the loss compares."""
    return spatial if "spatial" in settings.kinds else (spatial[0], spatial[-1])


def context_for(settings: LossTerm, dim: int) -> LossContext:
    return LossContext(sphere=Sphere(dim) if settings.needs_sphere else None)


CASES = {
    "cosine": (CosineSettings(), cosine),
    "mse": (MseSettings(), mse),
    "smooth_l1": (SmoothL1Settings(), smooth_l1),
    "smooth_l1 beta 2": (SmoothL1Settings(beta=2.0), lambda p, t: smooth_l1(p, t, 2.0)),
    "smooth_l1 beta 0.3": (SmoothL1Settings(beta=0.3), lambda p, t: smooth_l1(p, t, 0.3)),
    "match": (MatchSettings(), match),
    "match 0.2 0.7 beta 0.5": (MatchSettings(cosine=0.2, smooth_l1=0.7, beta=0.5), lambda p, t: match(p, t, 0.2, 0.7, 0.5)),
    "hybrid": (HybridSettings(), weighted(0.9, cosine, 0.1, mse)),
    "hybrid 0.25": (HybridSettings(cosine=0.25), weighted(0.25, cosine, 0.75, mse)),
    "dampened_mse": (DampenedMseSettings(), dampened),
    "sum": (
        SumSettings(terms=[WeightedLoss(loss=CosineSettings(), weight=3.0), WeightedLoss(loss=DampenedMseSettings(), weight=0.5)]),
        weighted(3.0, cosine, 0.5, dampened),
    ),
}


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=draws), 2 * torch.randn(shape, generator=draws) + 0.3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_gradient_equal_float64_formulas(case, shape):
    settings, reference = case
    prediction, target = pair(shape)
    prediction.requires_grad_(True)
    loss = settings.build()(prediction, target)
    loss.sum().backward()

    value, gradient = reference(prediction.detach().double().numpy(), target.double().numpy())
    positions = int(np.prod(shape[1:-1]))
    assert loss.shape == (shape[0],)
    np.testing.assert_allclose(loss.detach().numpy(), value.reshape(shape[0], -1).mean(1), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(prediction.grad.numpy(), gradient / positions, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_valid_cells_count(case):
    settings, reference = case
    prediction, target = pair((4, 2, 5, 6), seed=7)
    valid = torch.rand(4, 2, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    valid[1], valid[2], valid[3] = True, False, False
    valid[3, 1, 2] = True
    prediction[~valid] = float("inf")  # whatever stands there
    prediction.requires_grad_(True)
    loss = settings.build()(prediction, target, LossContext(valid))
    loss.sum().backward()

    cells = np.where(valid.numpy()[..., None], prediction.detach().double().numpy(), 1.0)
    value, gradient = reference(cells, target.double().numpy())
    mask, count = valid.numpy(), valid.flatten(1).sum(1).clamp_min(1).numpy()
    np.testing.assert_allclose(loss.detach().numpy(), (value * mask).sum((1, 2)) / count, rtol=2e-6, atol=1e-6)
    found = prediction.grad.numpy()[mask]
    np.testing.assert_allclose(found, (gradient / count[:, None, None, None])[mask], rtol=2e-5, atol=1e-6)
    plain = settings.build()(target + 0.1, target)
    torch.testing.assert_close(settings.build()(target + 0.1, target, LossContext(torch.ones(4, 2, 5, dtype=torch.bool))), plain)


@pytest.mark.parametrize("settings", [made(kind) for kind in LOSSES], ids=lambda s: s.type)
def test_every_loss_computes_in_float32(settings):
    prediction, target = pair(sized(settings, (4, 3, 3, 64)), seed=2)
    half, context = (prediction.bfloat16(), target.bfloat16()), context_for(settings, 64)
    found = settings.build()(*half, context)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, settings.build()(half[0].float(), half[1].float(), context), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [made(kind) for kind in LOSSES], ids=lambda s: s.type)
def test_every_loss_is_zero_for_the_target_and_sees_each_sample_alone(settings):
    prediction, target = pair(sized(settings, (4, 3, 5, 8)), seed=3)
    loss, context = settings.build(), context_for(settings, 8)
    torch.testing.assert_close(loss(target, target, context), torch.zeros(4), rtol=0, atol=2e-6)
    together = loss(prediction, target, context)
    assert (together > 0).all()
    if not settings.compares_samples:
        alone = torch.cat([loss(prediction[i : i + 1], target[i : i + 1], context) for i in range(4)])
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("settings", [made(kind) for kind in LOSSES], ids=lambda s: s.type)
def test_gradients_in_float64(settings):
    prediction, target = (x.double() for x in pair(sized(settings, (3, 2, 2, 5)), seed=8))
    context = context_for(settings, 5)
    assert torch.autograd.gradcheck(lambda p: settings.build()(p, target, context), prediction.requires_grad_(True))


@pytest.mark.parametrize("settings", [made(kind) for kind in LOSSES], ids=lambda s: s.type)
@pytest.mark.parametrize("batch", [1, 3])
def test_zero_vectors_and_a_batch_of_one_have_finite_losses_and_gradients(settings, batch):
    for prediction, target in ((torch.zeros, torch.ones), (torch.ones, torch.zeros), (torch.zeros, torch.zeros)):
        shape = sized(settings, (batch, 2, 2, 5))
        inputs = prediction(shape).requires_grad_(True)
        loss = settings.build()(inputs, target(shape), context_for(settings, 5))
        loss.sum().backward()
        assert loss.shape == (batch,)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(inputs.grad).all()


def test_a_loss_is_refused_for_what_it_cannot_compare():
    with pytest.raises(ValueError, match="spatial: a loss of type 'angle' compares summary features only"):
        LossSettings(spatial=AngleSettings())
    with pytest.raises(ValueError, match="summary: a loss of type 'token_similarity' compares spatial features only"):
        LossSettings(summary=TokenSimilaritySettings())
    both = SumSettings(terms=[WeightedLoss(loss=AngleSettings()), WeightedLoss(loss=TokenSimilaritySettings())])
    with pytest.raises(ValueError, match="a loss of type 'sum' compares no features only"):
        LossSettings(summary=both)


def test_cosine_is_blind_to_magnitude_and_match_is_not():
    prediction, target = pair((4, 2, 2, 8), seed=4)
    torch.testing.assert_close(CosineSettings().build()(3 * prediction, target), CosineSettings().build()(prediction, target))
    assert not torch.allclose(MatchSettings().build()(3 * prediction, target), MatchSettings().build()(prediction, target))


@pytest.mark.parametrize("kind", [SmoothL1Settings, MatchSettings])
def test_beta_matters(kind):
    prediction, target = pair((4, 8), seed=5)
    assert not torch.allclose(kind(beta=0.5).build()(prediction, target), kind(beta=2.0).build()(prediction, target))


def test_the_losses_know_a_zero_vector():
    """A prediction of exactly zero, as from a freshly zeroed layer: finite loss and finite gradient."""
    prediction = torch.zeros(2, 3, requires_grad=True)
    loss = CosineSettings().build()(prediction, torch.ones(2, 3))
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.ones(2))
    assert torch.isfinite(prediction.grad).all()
