"""How near depth and normals are to the truth, image by image, with the formulas of Probe3D (mbanani/probe3d, evals/utils/metrics.py)."""

import torch
from torch import Tensor

RATIO = 1.25
"""Depth is right to the first, second and third degree within this factor, its square and its cube."""
DEGREES = (11.25, 22.5, 30.0)
"""Within which a normal is right, three ways."""
CONSTANT = 1e-10
"""Of the squared mean; predictions that vary less are constant but for rounding."""
LEAST = 1e-9
"""m; what is less counts as this in a ratio."""


def depth_scores(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Scores of N images, [N] each: `delta1` to `delta3`, % of the pixels within the factor to the power k, their mean, and `rmse` in m.

    Args:
        predicted: [N, H, W] in m.
        truth: [N, H, W] in m, 0 where it is not known: such pixels do not count.
    """
    known = truth > 0
    count = known.sum((1, 2)).clamp(min=1)
    predicted = predicted * known
    ratio = torch.maximum(truth / predicted.clamp(min=LEAST), predicted / truth.clamp(min=LEAST))
    shares = [100 * ((ratio < RATIO**degree) & known).sum((1, 2)) / count for degree in (1, 2, 3)]
    rmse = ((truth - predicted).square() * known).sum((1, 2)).div(count).sqrt()
    return {"mean_delta": torch.stack(shares).mean(0)} | {f"delta{k}": share for k, share in enumerate(shares, 1)} | {"rmse": rmse}


def scale_and_shift(predicted: Tensor, truth: Tensor) -> Tensor:
    """a * predicted + b [N, H, W], with the a and b of each image that are best by least squares; a is 1 where predictions are constant.

    Args:
        predicted: [N, H, W].
        truth: [N, H, W], 0 where it is not known.
    """
    known, values = (truth > 0).double(), predicted.double()
    count = known.sum((1, 2)).clamp(min=1)
    mean, target = (known * values).sum((1, 2)) / count, (known * truth).sum((1, 2)) / count
    varied, wanted = known * (values - mean[:, None, None]), known * (truth - target[:, None, None])
    variance = varied.square().sum((1, 2))
    varies = variance > CONSTANT * count * mean.square()
    scale = torch.where(varies, (varied * wanted).sum((1, 2)) / torch.where(varies, variance, 1), 1)
    return (values * scale[:, None, None] + (target - scale * mean)[:, None, None]).to(predicted.dtype)


def normal_scores(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Scores of N images, [N] each: % of the pixels within 11.25, 22.5 and 30 degrees, the mean of the three, and `rmse` in degrees.

    Args:
        predicted: [N, 3, H, W] of any length.
        truth: [N, 3, H, W], 0 where it is not known: such pixels do not count.
    """
    known = (truth != 0).any(1)
    count = known.sum((1, 2)).clamp(min=1)
    error = torch.cosine_similarity(predicted, truth, dim=1).clamp(-1, 1).acos().rad2deg() * known
    shares = [100 * ((error < degrees) & known).sum((1, 2)) / count for degrees in DEGREES]
    names = ("within_11", "within_22", "within_30")
    rmse = error.square().sum((1, 2)).div(count).sqrt()
    return {"mean_recall": torch.stack(shares).mean(0)} | dict(zip(names, shares, strict=True)) | {"rmse": rmse}
