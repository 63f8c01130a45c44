"""Losses and their gradients against float64 formulas written out here; balance; what one more teacher does to the sum."""

import numpy as np
import pytest
import torch
from torch import Tensor

from amradio.distillation.balance import BALANCES, FixedSettings
from amradio.distillation.losses import LOSSES, CosineSettings, MatchSettings, MseSettings, SmoothL1Settings

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


CASES = {
    "cosine": (CosineSettings(), cosine),
    "mse": (MseSettings(), mse),
    "smooth_l1": (SmoothL1Settings(), smooth_l1),
    "smooth_l1 beta 2": (SmoothL1Settings(beta=2.0), lambda p, t: smooth_l1(p, t, 2.0)),
    "smooth_l1 beta 0.3": (SmoothL1Settings(beta=0.3), lambda p, t: smooth_l1(p, t, 0.3)),
    "match": (MatchSettings(), match),
    "match 0.2 0.7 beta 0.5": (MatchSettings(cosine=0.2, smooth_l1=0.7, beta=0.5), lambda p, t: match(p, t, 0.2, 0.7, 0.5)),
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


@pytest.mark.parametrize("settings", [kind() for kind in LOSSES], ids=lambda s: s.type)
def test_every_loss_computes_in_float32(settings):
    prediction, target = pair((4, 3, 3, 64), seed=2)
    half = prediction.bfloat16(), target.bfloat16()
    found = settings.build()(*half)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, settings.build()(half[0].float(), half[1].float()), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [kind() for kind in LOSSES], ids=lambda s: s.type)
def test_every_loss_is_zero_for_the_target_and_sees_each_sample_alone(settings):
    prediction, target = pair((4, 3, 5, 8), seed=3)
    loss = settings.build()
    torch.testing.assert_close(loss(target, target), torch.zeros(4), rtol=0, atol=1e-6)
    together = loss(prediction, target)
    alone = torch.cat([loss(prediction[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert (together > 0).all()


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


def test_fixed_balance_is_the_weighted_sum():
    losses = {"a/summary": torch.tensor(2.0), "a/spatial": torch.tensor(3.0), "b/spatial": torch.tensor(5.0)}
    weights = {"a/summary": 1.0, "a/spatial": 0.5, "b/spatial": 0.0, "b/summary": 7.0}
    total = FixedSettings().build(weights)(losses)
    assert total.item() == 2.0 + 1.5
    assert total.dtype is torch.float32


def test_a_weight_of_zero_silences_even_an_infinite_loss():
    losses = {"a/summary": torch.tensor(2.0), "a/spatial": torch.tensor(float("inf"))}
    assert FixedSettings().build({"a/summary": 1.0, "a/spatial": 0.0})(losses).item() == 2.0


@pytest.mark.parametrize("settings", [kind() for kind in BALANCES], ids=lambda s: s.type)
def test_balance_keeps_the_gradient_of_each_loss(settings):
    values = {name: torch.tensor(value, requires_grad=True) for name, value in (("a/summary", 0.5), ("b/summary", 2.0))}
    settings.build({"a/summary": 3.0, "b/summary": 1.0})(values).backward()
    assert {name: value.grad.item() for name, value in values.items()} == {"a/summary": 3.0, "b/summary": 1.0}
