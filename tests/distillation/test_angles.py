"""Losses on the sphere against numpy in float64: angles, tangents, what is calibrated of a teacher's directions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from amradio.affine import Affine
from amradio.distillation.losses import AngleSettings, TangentSphereSettings
from amradio.distillation.pointwise import LossContext
from amradio.distillation.rotations import phi_s
from amradio.distillation.sphere import Sphere, log_map, square_of_angle

DIM = 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(count: int = 50) -> Tensor:
    """Targets around a direction, of any length."""
    return (draw(count, DIM, seed=1) + 2 * draw(DIM, seed=2)) * draw(count, 1, seed=3).exp()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def angles(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.arccos(np.clip((unit(p) * unit(t)).sum(-1), -1, 1))


def tangents(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The logarithm map: along the component that is orthogonal to the mean, as long as the angle."""
    across = unit(x) - (unit(x) @ mean)[:, None] * mean
    return unit(across) * angles(x, mean[None])[:, None]


def reference(found: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(mean direction, dispersion, variance of the tangents)."""
    mean = unit(unit(found).mean(0))
    return mean, float((angles(found, mean[None]) ** 2).mean()), float(tangents(found, mean).var(0).sum())


def calibrated(found: Tensor, pieces: int = 3, add_up: Callable[[Tensor], object] = lambda sums: None) -> Sphere:
    sphere = Sphere(DIM)
    sphere.calibrate(found.chunk(pieces), add_up)
    return sphere


@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_directions_equal_numpy(pieces):
    sphere = calibrated(rows(), pieces)
    mean, dispersion, variance = reference(rows().numpy())
    np.testing.assert_allclose(sphere.direction.numpy(), mean, atol=1e-6)
    assert float(sphere.dispersion) == pytest.approx(dispersion, rel=1e-6)
    assert float(sphere.tangent_variance) == pytest.approx(variance, rel=1e-6)


def test_all_that_is_measured_of_directions_is_added_up_over_processes():
    """Two processes that saw the same: every sum is doubled, and nothing changes."""
    alone, doubled = calibrated(rows()), calibrated(rows(), add_up=lambda sums: sums.mul_(2))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(doubled.state_dict()[name], value)


def test_the_angle_loss_is_the_squared_angle_over_the_dispersion():
    sphere, p, t = calibrated(rows()), draw(6, DIM, seed=5), rows(6)
    found = AngleSettings().build()(p.float(), t.float(), LossContext(sphere=sphere))
    np.testing.assert_allclose(found.numpy(), angles(p.numpy(), t.numpy()) ** 2 / reference(rows().numpy())[1], rtol=2e-5)


@pytest.mark.parametrize("settings", [AngleSettings(), TangentSphereSettings()], ids=lambda s: s.type)
@pytest.mark.parametrize("width", [0.05, 0.5])
def test_the_mean_as_prediction_scores_1_however_wide_the_teacher_spreads(settings, width):
    found = width * draw(4000, DIM, seed=1) + draw(DIM, seed=2)
    sphere = calibrated(found)
    loss = settings.build()(sphere.direction.double().expand_as(found), found, LossContext(sphere=sphere))
    assert loss.mean().item() == pytest.approx(1, rel=5e-3)


def test_the_tangent_loss_is_the_mean_square_of_phi_s_of_the_tangents():
    """Written out with the rotation and the scale, of which the loss needs the scale alone."""
    sphere, p, t = calibrated(rows()), draw(6, DIM, seed=5), rows(6)
    mean = reference(rows().numpy())[0]
    known = torch.from_numpy(tangents(rows().numpy(), mean))
    to_target = Affine(phi_s(torch.cov(known.T, correction=0)), known.mean(0)).inverse()
    one, other = (to_target(torch.from_numpy(tangents(x.numpy(), mean))) for x in (p, t))
    found = TangentSphereSettings().build()(p, t, LossContext(sphere=sphere))
    torch.testing.assert_close(found, (one - other).square().mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.0632, 0.0633, 1.0, 3.0, 3.139])
def test_squares_of_angles_and_their_slope_near_the_ends(angle):
    """The slope of arccos(c)^2 in c is -2 angle / sin(angle); both sides of the border between series and formula."""
    cosine = torch.tensor(angle, dtype=torch.float64).cos().requires_grad_(True)
    found = square_of_angle(cosine)
    found.backward()
    assert found.item() == pytest.approx(angle**2, rel=1e-9, abs=1e-15)
    assert cosine.grad is not None
    assert cosine.grad.item() == pytest.approx(-2 * angle / np.sin(angle) if angle else -2, rel=1e-6)


def test_opposite_directions_and_the_mean_itself_have_finite_tangents_and_gradients():
    mean = torch.nn.functional.normalize(draw(DIM), dim=0)
    for start in (mean, -mean, mean + 1e-9, torch.zeros_like(mean)):
        inputs = start.clone().requires_grad_(True)
        found = log_map(inputs[None], mean)
        found.sum().backward()
        assert torch.isfinite(found).all()
        assert torch.isfinite(inputs.grad).all()
    torch.testing.assert_close(log_map(mean[None], mean), torch.zeros(1, DIM, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [AngleSettings(), TangentSphereSettings()], ids=lambda s: s.type)
def test_gradients_with_a_calibrated_sphere(settings):
    context, p = LossContext(sphere=calibrated(rows()).double()), draw(4, DIM, seed=5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: settings.build()(x, rows(4), context), p)


def test_summaries_that_never_change_divide_by_no_zero():
    sphere = calibrated(draw(DIM).expand(9, DIM))
    loss = AngleSettings().build()(draw(3, DIM, seed=4), draw(3, DIM), LossContext(sphere=sphere))
    assert torch.isfinite(loss).all()
    assert sphere.dispersion.item() == pytest.approx(1e-6)


def test_directions_are_state_and_no_parameters():
    assert set(calibrated(rows()).state_dict()) == {"direction", "dispersion", "tangent_variance"}
    assert not list(Sphere(DIM).parameters())
