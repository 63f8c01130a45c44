"""Normalisers: teacher features -> targets, with statistics that are calibrated before a stage and constant from then on."""

import torch
from torch import Tensor, nn

from ..config import Settings

SMALLEST_STD = 1e-6
"""Channels that never change are left at their scale instead of being divided by zero."""


class Moments:
    """Mean and variance per channel over all samples and positions, summed in float64.

    `sums` is one float64 tensor [2 D + 1] (sums, sums of squares, count), so that processes add theirs up.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        """dim: channels D."""
        self.dim = dim
        self.sums = torch.zeros(2 * dim + 1, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Takes in features [..., D]."""
        rows = features.detach().reshape(-1, self.dim).double()
        self.sums += torch.cat((rows.sum(0), rows.square().sum(0), rows.new_tensor([rows.shape[0]])))

    def finish(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) per channel, float64 [D]."""
        count = self.sums[-1]
        assert count > 0, "no features were taken in"
        mean = self.sums[: self.dim] / count
        return mean, (self.sums[self.dim : -1] / count - mean.square()).clamp_min(0).sqrt()


class Normalizer(nn.Module):
    """An affine map per channel: target = (feature - shift) / scale, and the statistics behind it.

    Buffers, all float32 [D]: `mean`, `std` of the raw teacher features, `shift`, `scale` of the target space, and `calibrated` [].
    """

    mean: Tensor
    std: Tensor
    shift: Tensor
    scale: Tensor
    calibrated: Tensor

    def __init__(self, dim: int):
        """dim: channels D. Starts as the identity, uncalibrated."""
        super().__init__()
        for name, value in (("mean", 0.0), ("std", 1.0), ("shift", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((dim,), value))
        self.register_buffer("calibrated", torch.tensor(False))

    def to_target(self, features: Tensor) -> Tensor:
        """Raw teacher space -> target space, [..., D]."""
        return (features - self.shift) / self.scale

    def to_raw(self, targets: Tensor) -> Tensor:
        """Target space -> raw teacher space, [..., D]."""
        return targets * self.scale + self.shift


def set_statistics(normalizer: Normalizer, settings: Settings, mean: Tensor, std: Tensor) -> None:
    """Fills a normaliser from float64 statistics [D] as `settings` (one of NORMALIZERS) says."""
    std = torch.where(std < SMALLEST_STD, torch.ones_like(std), std)
    shift, scale = settings.affine(mean, std)  # type: ignore[attr-defined]
    for name, value in (("mean", mean), ("std", std), ("shift", shift), ("scale", scale)):
        getattr(normalizer, name).copy_(value)
    normalizer.calibrated.fill_(True)
