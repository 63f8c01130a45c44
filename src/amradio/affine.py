"""Affine maps between feature spaces: apply, compose, invert, and fold into a linear layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Affine(NamedTuple):
    """x [..., D] -> `scale * x + shift`, or `scale @ x + shift` where the scale is a matrix."""

    scale: Tensor
    """[D], or [D, D], which multiplies x as a column (PHI-S, W = Theta W')."""
    shift: Tensor
    """[D]."""

    def __call__(self, features: Tensor) -> Tensor:
        """features: [..., D], of the dtype of scale and shift."""
        scaled = features * self.scale if self.scale.ndim == 1 else features @ self.scale.T
        return scaled + self.shift

    def double(self) -> Affine:
        """The same in float64."""
        return Affine(self.scale.double(), self.shift.double())

    def inverse(self) -> Affine:
        """The map that undoes this one, in float64."""
        scale, shift = self.double()
        if scale.ndim == 1:
            return Affine(1 / scale, -shift / scale)
        inverse = torch.linalg.inv(scale)
        return Affine(inverse, -inverse @ shift)

    def after(self, first: Affine) -> Affine:
        """The map that applies `first`, then this one, in float64."""
        outer, inner = self.double(), first.double()
        if outer.scale.ndim == inner.scale.ndim == 1:
            return Affine(outer.scale * inner.scale, outer(inner.shift))
        return Affine(outer.matrix() @ inner.matrix(), outer(inner.shift))

    def relative_to(self, base: Affine) -> Affine:
        """The map m, in float64, for which `base` after m is this map: from this map's source space to that of `base`."""
        scale, shift = self.double()
        base = base.double()
        if scale.ndim == base.scale.ndim == 1:
            return Affine(scale / base.scale, (shift - base.shift) / base.scale)
        return Affine(torch.linalg.solve(base.matrix(), self.double().matrix()), torch.linalg.solve(base.matrix(), shift - base.shift))

    def matrix(self) -> Tensor:
        """The scale as a matrix [D, D]."""
        return torch.diag(self.scale) if self.scale.ndim == 1 else self.scale

    @torch.no_grad()
    def fold(self, linear: nn.Linear) -> None:
        """Rewrites a linear layer, in place and in float64, so that its output y becomes this map of y.

        A layer with several times D outputs (an upsampling head) is rewritten for each D of them alike.
        """
        dim = self.shift.shape[0]
        assert linear.out_features % dim == 0
        assert self.scale.shape in ((dim,), (dim, dim))
        device = linear.weight.device
        matrix = self.matrix().to(device, torch.float64)
        weight = linear.weight.double().unflatten(0, (-1, dim))
        bias = linear.bias.double().unflatten(0, (-1, dim))
        linear.weight.copy_((matrix @ weight).flatten(0, 1))
        linear.bias.copy_((bias @ matrix.T + self.shift.to(device, torch.float64)).flatten())
