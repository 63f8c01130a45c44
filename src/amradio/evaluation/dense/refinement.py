"""Refinement of maps in text space: each cell becomes a mean of cells that are like it or beside it (NACLIP, RADSeg), without training."""

from typing import Annotated

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import Positive, Settings


class Refinement(Settings):
    """Weights are a softmax of the cosine over `temperature` plus a Gaussian of the distance, as in the last attention of NACLIP.

    NACLIP (Hajimiri et al. 2025) compares the keys of that attention. Here the cells in text space are compared with one another, so that
    it works for any head.
    """

    temperature: Annotated[float, pydantic.Field(gt=0, le=100)] = 0.1
    """Of the cosines; a higher one takes more of cells that are less alike."""
    sigma: Annotated[float, pydantic.Field(gt=0, le=1000)] = 5.0
    """Cells: standard deviation of the Gaussian (NACLIP: 5)."""
    rounds: Positive = 1
    """How often it is done, each time with the cosines of the refined cells (the recursion of RADSeg)."""


@torch.no_grad()
def refined(cells: Tensor, refinement: Refinement) -> Tensor:
    """Cells of length 1, float [B, h, w, D] -> the same after the refinement, again of length 1."""
    batch, height, width, dim = cells.shape
    near = closeness(height, width, refinement.sigma).to(cells)
    results = []
    for image in cells.reshape(batch, height * width, dim):  # one at a time: the weights take (h w)^2 numbers
        current = image
        for _ in range(refinement.rounds):
            weights = ((current @ current.T) / refinement.temperature + near).softmax(-1)
            current = F.normalize(weights @ current, dim=-1)
        results.append(current)
    return torch.stack(results).reshape(cells.shape)


def closeness(height: int, width: int, sigma: float) -> Tensor:
    """float32 [h w, h w]: exp(-d^2 / (2 sigma^2)) of the distance d of two cells."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack((y, x), -1).flatten(0, 1).float()
    return (-torch.cdist(at, at).square() / (2 * sigma**2)).exp()
