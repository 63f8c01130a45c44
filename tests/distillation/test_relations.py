"""Losses on relations against loops in float64: cells of an image, images of a batch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from amradio.distillation.losses import AsymmetricRkdSettings, RkdSettings, TokenSimilaritySettings
from amradio.distillation.pointwise import LossContext

RELATIONS = [(RkdSettings(), False), (AsymmetricRkdSettings(), True)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shares(cells: np.ndarray, temperature: float, row: int, others: list[int]) -> np.ndarray:
    """The softmax of one cell's cosines with others."""
    unit = cells / np.linalg.norm(cells, axis=1, keepdims=True)
    logits = np.array([unit[row] @ unit[other] for other in others]) / temperature
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def token_similarity(p: np.ndarray, t: np.ndarray, temperature: float, valid: np.ndarray) -> float:
    """One image, cells in a row."""
    kept = [row for row in range(len(p)) if valid[row]]
    found = []
    for row in kept:
        others = [other for other in kept if other != row]
        student, teacher = shares(p, temperature, row, others), shares(t, temperature, row, others)
        found.append((teacher * np.log(teacher / student)).sum())
    return float(np.mean(found))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_token_similarity_equals_a_loop_over_cells(temperature, masked):
    p, t = draw(3, 2, 4, 5, seed=1), draw(3, 2, 4, 5, seed=2)
    valid = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(3)) < 0.6 if masked else torch.ones(3, 2, 4, dtype=torch.bool)
    valid[:, 0, :2] = True
    context = LossContext(valid if masked else None)
    loss = TokenSimilaritySettings(temperature=temperature).build()
    wanted = [
        token_similarity(p[k].flatten(0, 1).numpy(), t[k].flatten(0, 1).numpy(), temperature, valid[k].flatten().numpy()) for k in range(3)
    ]
    np.testing.assert_allclose(loss(p, t, context).numpy(), wanted, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda x: loss(x, t, context), p.requires_grad_(True))


def test_token_similarity_of_one_cell_or_one_valid_cell_is_zero():
    loss = TokenSimilaritySettings().build()
    torch.testing.assert_close(loss(draw(2, 1, 1, 5), draw(2, 1, 1, 5, seed=1)), torch.zeros(2, dtype=torch.float64))
    valid = torch.zeros(2, 2, 2, dtype=torch.bool)
    valid[0, 0, 1] = True
    p = draw(2, 2, 2, 5).requires_grad_(True)
    found = loss(p, draw(2, 2, 2, 5, seed=1), LossContext(valid))
    found.sum().backward()
    torch.testing.assert_close(found.detach(), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(p.grad, torch.zeros_like(p))


def test_token_similarity_is_blind_to_lengths_and_to_a_rotation():
    p, t = draw(2, 3, 3, 5), draw(2, 3, 3, 5, seed=1)
    rotation = torch.linalg.qr(draw(5, 5, seed=2))[0]
    loss = TokenSimilaritySettings().build()
    torch.testing.assert_close(loss(3 * p @ rotation, t), loss(p, t))
    torch.testing.assert_close(loss(2 * t @ rotation, t), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def relational(p: np.ndarray, t: np.ndarray, is_asymmetric: bool) -> np.ndarray:
    """RKD by loops."""
    count = len(p)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]

    def distances(rows: np.ndarray) -> dict[tuple[int, int], float]:
        plain = {(i, j): float(np.sqrt(((rows[i] - rows[j]) ** 2).sum())) for i, j in pairs}
        mean = np.mean(list(plain.values()))
        return {pair: value / mean for pair, value in plain.items()}

    student, teacher = distances(p), distances(t)
    ordered = sorted(teacher[i, j] for i, j in pairs if i < j)
    median = ordered[(len(ordered) - 1) // 2]
    found = np.zeros(count)
    for i, j in pairs:
        difference = student[i, j] - teacher[i, j]
        if is_asymmetric and (difference <= 0 if teacher[i, j] < median else difference >= 0):
            continue
        found[i] += 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5
    return found / (count - 1)


@pytest.mark.parametrize(("settings", "is_asymmetric"), RELATIONS)
@pytest.mark.parametrize("count", [2, 3, 7])
def test_relations_equal_a_loop_over_pairs(settings, is_asymmetric, count):
    p, t = draw(count, 5, seed=4) * draw(count, 1, seed=6).exp(), draw(count, 5, seed=5)
    np.testing.assert_allclose(settings.build()(p, t).numpy(), relational(p.numpy(), t.numpy(), is_asymmetric), rtol=1e-9, atol=1e-12)
    if count > 2:  # the only distance of two images is its mean
        assert torch.autograd.gradcheck(lambda x: settings.build()(x, t), p.requires_grad_(True))


@pytest.mark.parametrize(("settings", "is_asymmetric"), RELATIONS)
def test_relations_are_blind_to_scale_place_and_rotation_and_zero_for_one_image(settings, is_asymmetric):
    p, t = draw(6, 5, seed=4), draw(6, 5, seed=5)
    rotation = torch.linalg.qr(draw(5, 5, seed=2))[0]
    torch.testing.assert_close(settings.build()(3 * p @ rotation + 7, t), settings.build()(p, t))
    torch.testing.assert_close(settings.build()(p[:1], t[:1]), torch.zeros(1, dtype=torch.float64))
    alike = torch.ones(4, 5).requires_grad_(True)
    loss = settings.build()(alike, t[:4].float())
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(alike.grad).all()


def test_only_wrong_directions_count():
    """Teacher distances 1, 3 and 4 over their mean 8/3; the median is 3, so only the first pair is near."""
    t = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64)
    p = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)  # 2, 2 and 4 over 8/3
    error = 0.5 * (3 / 8) ** 2
    torch.testing.assert_close(RkdSettings().build()(p, t), torch.tensor([error, 2 * error, error], dtype=torch.float64) / 2)
    torch.testing.assert_close(AsymmetricRkdSettings().build()(p, t), torch.tensor([error, 2 * error, error], dtype=torch.float64) / 2)
    right = torch.tensor([[0.0], [0.5], [4.0]], dtype=torch.float64)  # 0.5, 3.5 and 4: the near nearer, the far farther
    assert RkdSettings().build()(right, t).sum() > 0
    torch.testing.assert_close(AsymmetricRkdSettings().build()(right, t), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(("settings", "is_asymmetric"), RELATIONS)
def test_shares_of_a_batch_see_all_of_it(settings, is_asymmetric):
    """Three processes by hand: each has the losses of its rows, and the mean of their gradients is that of the whole."""
    p, t = draw(6, 5, seed=4), draw(6, 5, seed=5)
    whole = p.clone().requires_grad_(True)
    wanted = settings.build()(whole, t)
    wanted.mean().backward()
    losses, gradients = [], torch.zeros_like(p)
    for own in (slice(0, 2), slice(2, 4), slice(4, 6)):
        rows = p.clone().requires_grad_(True)
        context = LossContext(gather=lambda given, own=own: (given, own))
        loss = settings.build()(rows, t, context)
        loss.mean().backward()
        losses.append(loss.detach())
        gradients += rows.grad / 3
    torch.testing.assert_close(torch.cat(losses), wanted.detach())
    torch.testing.assert_close(gradients, whole.grad)
