"""Normalisers: statistics against numpy in float64, the target spaces, the way back, and what is folded into heads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amradio.affine import Affine
from amradio.distillation.hadamard import has_hadamard, orthogonal
from amradio.distillation.normalizers import (
    NORMALIZERS,
    GlobalSettings,
    HadamardSettings,
    NoneSettings,
    PcaSettings,
    PerChannelSettings,
    PhiSSettings,
    ZcaSettings,
)
from amradio.distillation.rotations import balancing, eigen
from amradio.distillation.statistics import Moments, Normalizer, set_statistics
from amradio.heads import MlpHeadSettings, final_linear

DIM = 6
FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "phi_s.expected.pt"


def features(*shape: int, seed: int = 0) -> Tensor:
    """Channels of very different means and spreads, as teachers have."""
    draws = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.01, 0.5, 1.0, 3.0, 20.0, 0.2])
    return torch.randn(*shape, DIM, generator=draws) * scale + torch.tensor([0.0, 100.0, -3.0, 0.5, 7.0, -0.1])


def batches() -> list[Tensor]:
    """Uneven on purpose: another number of images, another grid."""
    return [features(5, 3, 4, seed=1), features(1, 3, 4, seed=2), features(2, 7, 7, seed=3)]


def rows_of(found: list[Tensor]) -> np.ndarray:
    return np.concatenate([batch.reshape(-1, DIM).double().numpy() for batch in found])


def calibrated(settings, found: list[Tensor] | None = None) -> Normalizer:
    moments = Moments(DIM, covariance=True)
    for batch in found or batches():
        moments.update(batch)
    normalizer = Normalizer(DIM, settings.mixes_channels)
    set_statistics(normalizer, settings, *moments.finish(), moments.covariance())
    return normalizer


def test_moments_equal_numpy_over_uneven_batches():
    moments = Moments(DIM)
    for batch in batches():
        moments.update(batch)
    mean, std = moments.finish()
    rows = rows_of(batches())
    assert mean.dtype is std.dtype is torch.float64
    np.testing.assert_allclose(mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std.numpy(), rows.std(0), rtol=1e-8)


def test_moments_of_two_processes_add_up():
    together, first, second = Moments(DIM), Moments(DIM), Moments(DIM)
    for number, batch in enumerate(batches()):
        together.update(batch)
        (first, second)[number % 2].update(batch)
    first.sums += second.sums
    torch.testing.assert_close(torch.stack(first.finish()), torch.stack(together.finish()), rtol=1e-12, atol=0)


def test_moments_take_summaries_and_half_precision():
    moments = Moments(DIM)
    moments.update(features(9).bfloat16())
    np.testing.assert_allclose(moments.finish()[0].numpy(), features(9).bfloat16().double().numpy().mean(0), rtol=1e-12)


def test_none_leaves_features_as_they_are():
    normalizer = calibrated(NoneSettings())
    torch.testing.assert_close(normalizer.to_target(batches()[0]), batches()[0], rtol=0, atol=0)


def test_per_channel_gives_zero_mean_and_unit_deviation_in_each_channel():
    normalizer = calibrated(PerChannelSettings())
    targets = normalizer.to_target(torch.from_numpy(rows_of(batches())).float()).double().numpy()
    np.testing.assert_allclose(targets.mean(0), np.zeros(DIM), atol=2e-4)
    np.testing.assert_allclose(targets.std(0), np.ones(DIM), atol=2e-4)


def test_global_gives_zero_mean_and_unit_deviation_over_all_channels_together():
    normalizer = calibrated(GlobalSettings())
    rows = rows_of(batches())
    targets = normalizer.to_target(torch.from_numpy(rows).float()).double().numpy()
    np.testing.assert_allclose((targets.mean(), targets.std()), (0, 1), atol=1e-5)
    np.testing.assert_allclose(targets, (rows - rows.mean()) / rows.std(), rtol=1e-4, atol=1e-5)
    assert normalizer.shift.unique().numel() == normalizer.scale.unique().numel() == 1


@pytest.mark.parametrize("settings", [kind() for kind in NORMALIZERS], ids=lambda s: s.type)
def test_every_normaliser_has_a_way_back(settings):
    normalizer = calibrated(settings)
    raw = features(4, 2, 3, seed=7)
    torch.testing.assert_close(normalizer.to_raw(normalizer.to_target(raw)), raw, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("settings", [kind() for kind in NORMALIZERS], ids=lambda s: s.type)
def test_standardizing_is_per_channel_whatever_the_target_space(settings):
    rows = rows_of(batches())
    normalizer = calibrated(settings)
    found = ((torch.from_numpy(rows).float() - normalizer.mean) / normalizer.std).numpy()
    np.testing.assert_allclose(found, (rows - rows.mean(0)) / rows.std(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [kind() for kind in NORMALIZERS], ids=lambda s: s.type)
def test_a_channel_that_never_changes_stays_finite(settings):
    constant = features(8, 2, 2)
    constant[..., 2] = 5.0
    normalizer = calibrated(settings, [constant])
    standard = (constant - normalizer.mean) / normalizer.std
    for found in (normalizer.to_target(constant), standard, normalizer.to_raw(normalizer.to_target(constant))):
        assert torch.isfinite(found).all()
    torch.testing.assert_close(standard[..., 2], torch.zeros(8, 2, 2))
    back = normalizer.to_raw(normalizer.to_target(constant))
    torch.testing.assert_close(back[..., 2], constant[..., 2], rtol=0, atol=3e-5 if settings.mixes_channels else 0)


@pytest.mark.parametrize("settings", [kind() for kind in NORMALIZERS], ids=lambda s: s.type)
@pytest.mark.parametrize("upsample", [1, 2])
def test_folding_into_a_head_gives_raw_teacher_space(settings, upsample):
    torch.manual_seed(0)
    head = MlpHeadSettings(upsample_factor=upsample).build(10, DIM)
    normalizer, inputs = calibrated(settings), torch.randn(2, 3, 4, 10)
    wanted = normalizer.to_raw(head(inputs))
    normalizer.affine.double().fold(final_linear(head))
    torch.testing.assert_close(head(inputs), wanted, rtol=1e-5, atol=1e-4)


def test_statistics_are_state_and_no_parameters():
    normalizer = calibrated(PerChannelSettings())
    assert set(normalizer.state_dict()) == {"mean", "std", "shift", "scale", "calibrated"}
    assert not list(normalizer.parameters())
    assert not Normalizer(DIM).calibrated
    assert normalizer.calibrated
    copy = nn.ModuleDict({"a": Normalizer(DIM)})
    copy.load_state_dict({f"a.{key}": value for key, value in normalizer.state_dict().items()})
    torch.testing.assert_close(copy["a"].to_target(features(3)), normalizer.to_target(features(3)), rtol=0, atol=0)


MIXING = [PhiSSettings(), PcaSettings(), ZcaSettings(), HadamardSettings()]


def correlated(rows: int, dim: int, seed: int = 0) -> Tensor:
    """Channels with means far from 0 and deviations over four decades, mixed."""
    draws = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-2, 2, dim, dtype=torch.float64)
    mixed = torch.linalg.qr(torch.randn(dim, dim, generator=draws, dtype=torch.float64))[0]
    return torch.randn(rows, dim, generator=draws, dtype=torch.float64) * spread @ mixed + 5 * torch.randn(
        dim, generator=draws, dtype=torch.float64
    )


def in_target_space(settings, rows: Tensor) -> Tensor:
    """The targets, computed in float64 from the settings alone."""
    covariance = torch.cov(rows.T, correction=0)
    return Affine(settings.scale_matrix(covariance), rows.mean(0)).inverse()(rows)


@pytest.mark.parametrize("dim", [12, 24, 28, 36, 90, 92])
def test_phi_s_gives_every_channel_unit_variance_and_is_a_rotation_times_a_scalar(dim):
    """Also of 90 and 92 channels, which have no Hadamard matrix (or none that can be built)."""
    assert has_hadamard(dim) == (dim < 90)
    rows = correlated(800, dim)
    scale = PhiSSettings().scale_matrix(torch.cov(rows.T, correction=0))
    targets = in_target_space(PhiSSettings(), rows)
    torch.testing.assert_close(targets.var(0, correction=0), torch.ones(dim, dtype=torch.float64), rtol=1e-9, atol=0)
    spread = torch.cov(rows.T, correction=0).trace() / dim
    torch.testing.assert_close(scale @ scale.T, spread * torch.eye(dim, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", MIXING[1:], ids=lambda s: s.type)
@pytest.mark.parametrize("dim", [12, 13])
def test_whitening_leaves_no_correlation(settings, dim):
    targets = in_target_space(settings, correlated(800, dim))
    torch.testing.assert_close(torch.cov(targets.T, correction=0), torch.eye(dim, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_what_tells_the_whitenings_apart():
    covariance = torch.cov(correlated(800, 12).T, correction=0)
    values, vectors = eigen(covariance)
    scales = {settings.type: settings.scale_matrix(covariance) for settings in MIXING}
    torch.testing.assert_close(scales["pca"], vectors @ torch.diag(values.sqrt()))
    torch.testing.assert_close(scales["zca"], scales["zca"].T)
    torch.testing.assert_close(scales["zca"] @ scales["zca"], covariance)
    torch.testing.assert_close(scales["hadamard"], scales["pca"] @ orthogonal(12).T)
    torch.testing.assert_close(scales["phi_s"], values.mean().sqrt() * vectors @ orthogonal(12).T)


def test_phi_s_equals_the_stored_facts():
    """`shared/fixtures/phi_s.expected.pt`, where it is there: sign of the eigenvectors aside, the published construction."""
    if not FIXTURE.is_file():
        pytest.skip("the fixtures are not beside this checkout")
    facts = torch.load(FIXTURE, weights_only=True)
    values, vectors = eigen(facts["cov"])
    torch.testing.assert_close(values, facts["eigenvalues"], rtol=0, atol=1e-10)
    signs = (vectors * facts["eigenvectors"]).sum(0)
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    scale = PhiSSettings().scale_matrix(facts["cov"])
    rotation = orthogonal(48) * signs
    torch.testing.assert_close(torch.linalg.inv(scale), facts["alpha"] * rotation @ facts["eigenvectors"].T * 1.0, rtol=0, atol=1e-6)
    flipped = scale @ orthogonal(48) * signs @ orthogonal(48).T
    torch.testing.assert_close(flipped, facts["W_inverse"], rtol=0, atol=1e-6)
    mapped = Affine(flipped, facts["mean"]).inverse()(facts["samples"][:4])
    torch.testing.assert_close(mapped, facts["mapped_first4"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 7, 90, 330])
def test_balancing_is_orthogonal_and_makes_variances_equal(dim):
    values = torch.logspace(-8, 3, dim, dtype=torch.float64)
    found = balancing(values)
    torch.testing.assert_close(found @ found.T, torch.eye(dim, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.square() @ values, values.mean().expand(dim), rtol=1e-10, atol=0)


@pytest.mark.parametrize("settings", MIXING, ids=lambda s: s.type)
def test_the_target_space_of_few_samples_does_not_depend_on_rounding(settings):
    """As two processes sum in another order than one."""
    covariance = torch.cov(correlated(5, 24).T, correction=0)
    noise = 1e-15 * covariance.abs().max() * torch.randn(24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale, other = (settings.scale_matrix(found) for found in (covariance, covariance + noise + noise.T))
    torch.testing.assert_close(other, scale, rtol=0, atol=1e-9 * float(scale.abs().max()))


@pytest.mark.parametrize("settings", MIXING, ids=lambda s: s.type)
def test_a_covariance_from_fewer_samples_than_channels_stays_finite(settings):
    rows = correlated(5, 12)
    targets = in_target_space(settings, rows)
    assert targets.abs().max() < 100
    torch.testing.assert_close(Affine(settings.scale_matrix(torch.cov(rows.T, correction=0)), rows.mean(0))(targets), rows)


@pytest.mark.parametrize("settings", [kind() for kind in NORMALIZERS], ids=lambda s: s.type)
@pytest.mark.parametrize("upsample", [1, 2])
def test_a_folded_head_equals_the_inverse_transformed_prediction_in_float64(settings, upsample):
    torch.manual_seed(0)
    head = MlpHeadSettings(upsample_factor=upsample).build(10, DIM).double()
    normalizer, inputs = calibrated(settings).double(), torch.randn(2, 3, 4, 10, dtype=torch.float64)
    wanted = normalizer.to_raw(head(inputs))
    normalizer.affine.fold(final_linear(head))
    torch.testing.assert_close(head(inputs), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("before", [kind() for kind in NORMALIZERS], ids=lambda s: s.type)
@pytest.mark.parametrize("after", MIXING, ids=lambda s: s.type)
def test_a_change_of_the_target_space_keeps_raw_predictions(before, after):
    torch.manual_seed(0)
    head = MlpHeadSettings().build(10, DIM).double()
    first, second = (calibrated(settings, [features(50, seed=k)]).double() for k, settings in enumerate((before, after)))
    inputs = torch.randn(3, 10, dtype=torch.float64)
    wanted = first.to_raw(head(inputs))
    first.affine.relative_to(second.affine).fold(final_linear(head))
    torch.testing.assert_close(second.to_raw(head(inputs)), wanted, rtol=1e-10, atol=1e-10)
