"""Normalizers of a student's maps, as published models have them (RADIOv2.5-H-norm): after the last block, and between the blocks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Rotation(nn.Module):
    """Centres a map and multiplies it by a matrix, [..., D] -> [..., D]: y = tx (x - mean). The identity until it is filled."""

    mean: Tensor
    tx: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("tx", torch.eye(dim))

    def forward(self, spatial: Tensor) -> Tensor:
        """A map [..., D] in the student's space -> the same shape, centred and rotated."""
        return (spatial - self.mean) @ self.tx.T


class BlockNormalizer(nn.Module):
    """Normalises the map after a block, [..., D] -> [..., D]: y = alpha R (x - mean). The identity until it is filled.

    `means` [L, D] and `alphas` [L] are those of the L blocks; `rotation` is one for all [D, D], or each block's [L, D, D].
    """

    means: Tensor
    alphas: Tensor
    rotation: Tensor

    def __init__(self, depth: int, dim: int, shares_rotation: bool):
        super().__init__()
        self.register_buffer("means", torch.zeros(depth, dim))
        self.register_buffer("alphas", torch.ones(depth))
        self.register_buffer("rotation", torch.eye(dim) if shares_rotation else torch.eye(dim).repeat(depth, 1, 1))

    def forward(self, spatial: Tensor, blocks: Sequence[int]) -> Tensor:
        """spatial: the map after a block, or the mean of the maps after several, of which the rotation of the last is taken.

        Several are normalised and then averaged, and so are their alphas (the published scheme `post-alpha`).
        """
        number = list(blocks)
        rotation = self.rotation if self.rotation.ndim == 2 else self.rotation[number[-1]]
        return self.alphas[number].mean() * ((spatial - self.means[number].mean(0)) @ rotation.T)


class Normalizers(NamedTuple):
    """What published models lay on maps; None where there is none."""

    rotation: Rotation | None = None
    """Of the backbone's map, before the heads read it."""
    between: BlockNormalizer | None = None
    """Of the maps between the blocks."""
