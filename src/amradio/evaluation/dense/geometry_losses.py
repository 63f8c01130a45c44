"""Losses of depth and of surface normals, with the formulas of Probe3D (mbanani/probe3d, evals/utils/losses.py)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_SHIFT = 1e-3
"""Added to depth in m before its logarithm, against gradients without bound (DINOv2, Probe3D)."""
SCALE_PART = 0.85
"""How much of an error that all pixels share is forgiven (AdaBins)."""
SIG_WEIGHT, GRADIENT_WEIGHT = 10.0, 0.5
STRIDES = (1, 2, 4, 6)
"""px between the pixels that the gradient loss takes."""
ANGLE_EDGE = 1e-4
"""By which cosines stay within -1 and 1, where the angle has no gradient."""


def depth_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """10 SigLoss + 0.5 gradient loss of depth [N, H, W] in m; truth 0 where it is not known. 0 where no pixel is known."""
    if not bool((truth > 0).any()):
        return predicted.sum() * 0
    return SIG_WEIGHT * sig_loss(predicted, truth) + GRADIENT_WEIGHT * gradient_loss(predicted, truth)


def sig_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """sqrt(mean(g^2) - 0.85 mean(g)^2) over all known pixels; g is the difference of the logarithms (Eigen et al. 2014, eq. 4)."""
    known = truth > 0
    error = (predicted[known] + LOG_SHIFT).log() - (truth[known] + LOG_SHIFT).log()
    return (error.square().mean() - SCALE_PART * error.mean().square()).clamp(min=1e-12).sqrt()


def gradient_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """How differently depth [N, H, W] changes over two pixels, across and down, at four strides (MegaDepth, eq. 6); logarithms.

    Published code that is called with [N, 1, H, W] differs in batch and channel instead; this is what its formula means.
    """
    total = predicted.new_zeros(())
    for stride in STRIDES:
        some, wanted = predicted[:, ::stride, ::stride], truth[:, ::stride, ::stride]
        known = wanted > 0
        error = ((some + LOG_SHIFT).log() - (wanted + LOG_SHIFT).log()) * known
        down = (error[:, :-2] - error[:, 2:]).abs() * (known[:, :-2] & known[:, 2:])
        across = (error[:, :, :-2] - error[:, :, 2:]).abs() * (known[:, :, :-2] & known[:, :, 2:])
        total = total + (down.sum() + across.sum()) / known.sum().clamp(min=1)
    return total


def angular_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Negative logarithm of the likelihood of the angle, with a predicted concentration (Bae et al. 2021, eq. 6): the mean over pixels.

    Args:
        predicted: [N, 4, H, W], a vector of any length and what becomes the concentration kappa = elu + 1.01.
        truth: [N, 3, H, W], 0 where it is not known.
    """
    known = (truth != 0).any(1)
    cosine = torch.cosine_similarity(predicted[:, :3], truth, dim=1).clamp(ANGLE_EDGE - 1, 1 - ANGLE_EDGE)
    kappa = F.elu(predicted[:, 3]) + 1.01
    loss = torch.log1p(torch.exp(-kappa * math.pi)) - torch.log1p(kappa.square()) + kappa * cosine.acos()
    return (loss * known).sum() / known.sum().clamp(min=1)
