"""Normalisers: statistics against numpy in float64, the target spaces, the way back, and what is folded into heads."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amradio.distillation.normalizers import NORMALIZERS, GlobalSettings, NoneSettings, PerChannelSettings
from amradio.distillation.statistics import Moments, Normalizer, set_statistics
from amradio.heads import MlpHeadSettings, final_linear

DIM = 6


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
    moments = Moments(DIM)
    for batch in found or batches():
        moments.update(batch)
    normalizer = Normalizer(DIM)
    set_statistics(normalizer, settings, *moments.finish())
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
    torch.testing.assert_close(normalizer.to_raw(normalizer.to_target(constant))[..., 2], constant[..., 2])


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
