"""Linear CKA, in one pass over the data."""

from collections.abc import Callable

import torch
from torch import Tensor


class Cka:
    """Linear centred kernel alignment (Kornblith et al. 2019, eq. 5) of X [N, D] and Y [N, E], summed in float64 over batches.

    Memory is that of D x D, E x E and D x E, whatever N is. Data far from the origin lose digits; subtract a common vector first.
    """

    def __init__(self, x_dim: int, y_dim: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.sums = [torch.zeros(dim, dtype=torch.float64, device=device) for dim in (x_dim, y_dim)]
        self.products = [torch.zeros(a, b, dtype=torch.float64, device=device) for a, b in ((x_dim, x_dim), (y_dim, y_dim), (x_dim, y_dim))]

    def update(self, x: Tensor, y: Tensor) -> None:
        """x: [B, D], y: [B, E]."""
        x, y = x.double(), y.double()
        self.count += len(x)
        for total, batch in zip(self.sums, (x, y), strict=True):
            total += batch.sum(0)
        for total, (a, b) in zip(self.products, ((x, x), (y, y), (x, y)), strict=True):
            total += a.T @ b

    def add_up(self, total: Callable[[Tensor], Tensor], count: int) -> None:
        """Puts the sums of several processes together. total: a tensor of this one -> its sum over all. count: rows of all of them."""
        self.sums, self.products, self.count = [*map(total, self.sums)], [*map(total, self.products)], count

    def value(self) -> float:
        """0 to 1; 0 where one side is constant."""
        (x, y), pairs = self.sums, ((0, 0), (1, 1), (0, 1))
        xx, yy, xy = (
            (product - torch.outer((x, y)[a], (x, y)[b]) / self.count).norm() for product, (a, b) in zip(self.products, pairs, strict=True)
        )
        return float(xy.square() / (xx * yy).clamp_min(1e-30))
