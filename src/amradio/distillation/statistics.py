"""Normalizers as modules: teacher features -> targets, with statistics that are calibrated before a stage and constant from then on."""

from collections.abc import Container, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ..affine import Affine
from ..features import KINDS, Kind
from .normalizers import NormalizerSettings

SMALLEST_STD = 1e-6
"""Channels that never change are left at their scale instead of being divided by zero."""


class Moments:
    """Mean and variance per channel over all samples and positions, and on request the covariance, summed in float64.

    `sums` is one float64 tensor (sums [D], sums of squares [D], with covariance sums of products [D * D], count), so that processes add
    theirs up.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu", covariance: bool = False):
        """dim: channels D. covariance: also sum the products of channels; D x D numbers."""
        self.dim, self.has_covariance = dim, covariance
        self.sums = torch.zeros(2 * dim + dim * dim * covariance + 1, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Takes in features [..., D]."""
        rows = features.detach().reshape(-1, self.dim).double()
        products = [(rows.T @ rows).flatten()] if self.has_covariance else []
        self.sums += torch.cat((rows.sum(0), rows.square().sum(0), *products, rows.new_tensor([rows.shape[0]])))

    def finish(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) per channel, float64 [D]."""
        count = self.sums[-1]
        assert count > 0, "no features were taken in"
        mean = self.sums[: self.dim] / count
        return mean, (self.sums[self.dim : 2 * self.dim] / count - mean.square()).clamp_min(0).sqrt()

    def covariance(self) -> Tensor:
        """Covariance of the channels, float64 [D, D], symmetric; only where it was asked for."""
        assert self.has_covariance, "the covariance was not summed"
        mean, _ = self.finish()
        products = self.sums[2 * self.dim : -1].unflatten(0, (self.dim, self.dim)) / self.sums[-1]
        return products - torch.outer(mean, mean)


class Normalizer(nn.Module):
    """An affine map: feature = scale * target + shift per channel, or scale @ target + shift, and the statistics behind it.

    Buffers, all float32 [D]: `mean`, `std` of the raw teacher features, `shift`, `scale` of the target space, and `calibrated` []. Where
    channels are mixed `scale` is [D, D], and so is `inverse`, its inverse.
    """

    mean: Tensor
    std: Tensor
    shift: Tensor
    scale: Tensor
    inverse: Tensor
    calibrated: Tensor

    def __init__(self, dim: int, mixes_channels: bool = False):
        """dim: channels D. Starts as the identity, uncalibrated."""
        super().__init__()
        self.mixes_channels = mixes_channels
        for name, value in (("mean", 0.0), ("std", 1.0), ("shift", 0.0)):
            self.register_buffer(name, torch.full((dim,), value))
        self.register_buffer("scale", torch.eye(dim) if mixes_channels else torch.ones(dim))
        if mixes_channels:
            self.register_buffer("inverse", torch.eye(dim))
        self.register_buffer("calibrated", torch.tensor(False))

    def to_target(self, features: Tensor) -> Tensor:
        """Raw teacher space -> target space, [..., D]."""
        centred = features - self.shift
        return centred @ self.inverse.T if self.mixes_channels else centred / self.scale

    def to_raw(self, targets: Tensor) -> Tensor:
        """Target space -> raw teacher space, [..., D]."""
        return self.affine(targets)

    @property
    def affine(self) -> Affine:
        """The map from target space to raw teacher space."""
        return Affine(self.scale, self.shift)


class HeadNormalizers(nn.ModuleDict):
    """The normalizers of all heads, by teacher and kind; in a state dict `clip.summary.mean`, ..."""

    def __init__(self, dims: Mapping[str, Mapping[Kind, int]], mixed: Container[Kind] = ()):
        """dims: channels of every kind of every teacher that has a head. mixed: the kinds whose target space mixes channels."""
        made = {name: {kind: Normalizer(dim, kind in mixed) for kind, dim in kinds.items()} for name, kinds in dims.items()}
        super().__init__({name: nn.ModuleDict(kinds) for name, kinds in made.items()})

    def of(self, teacher: str, kind: Kind) -> Normalizer:
        """The normalizer of one teacher's kind of feature; KeyError where there is none."""
        kinds = self[teacher]
        assert isinstance(kinds, nn.ModuleDict)
        module = kinds[kind]
        assert isinstance(module, Normalizer)
        return module

    def by_name(self) -> dict[tuple[str, Kind], Normalizer]:
        """Every normalizer by (teacher, kind)."""
        return {(name, kind): self.of(name, kind) for name, kinds in self.items() for kind in KINDS if kind in cast(nn.ModuleDict, kinds)}


def set_statistics(
    normalizer: Normalizer, settings: NormalizerSettings, mean: Tensor, std: Tensor, covariance: Tensor | None = None
) -> None:
    """Fills a normalizer from float64 statistics as `settings` (one of NORMALIZERS) says.

    mean, std: [D]. covariance: [D, D], where the settings mix channels.
    """
    std = torch.where(std < SMALLEST_STD, torch.ones_like(std), std)
    if settings.mixes_channels:
        assert covariance is not None, f"{settings} needs a covariance"
        values = {"shift": mean, "scale": settings.scale_matrix(covariance)}
        values["inverse"] = Affine(values["scale"].float(), values["shift"].cpu()).inverse().scale  # of what is kept, in float32
    else:
        values = dict(zip(("shift", "scale"), settings.affine(mean, std), strict=True))
    for name, value in (values | {"mean": mean, "std": std}).items():
        getattr(normalizer, name).copy_(value)
    normalizer.calibrated.fill_(True)
