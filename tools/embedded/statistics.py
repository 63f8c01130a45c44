"""Texture of a picture in a few numbers, after the structure tensor: what a summary is asked to foretell besides prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def texture_statistics(views: Tensor) -> Tensor:
    """float32 [B, 3, H, W] in about [0, 1] -> float32 [B, 8], whatever the orientation and the hue.

    Where there is colour: contrast, skew, edge energy, how far the edges share one orientation (stripes) or two at right
    angles (checks), and the share of pale and of deep pixels.
    """
    most, least = views.amax(1), views.amin(1)
    saturation = (most - least) / most.clamp(min=0.05)
    near = F.avg_pool2d(torch.sigmoid(14 * (saturation - 0.4))[:, None], 7, 1, 3, count_include_pad=False)[:, 0]
    weight = (near.clamp(min=0.35) - 0.35)[:, 1:-1, 1:-1] + 1e-4
    weight = weight / weight.sum((1, 2), keepdim=True)

    def mean(values: Tensor) -> Tensor:
        return (weight * values).sum((1, 2))

    light = F.avg_pool2d(views.mean(1, keepdim=True), 1)[:, 0]
    inner = light[:, 1:-1, 1:-1]
    level = mean(inner)[:, None, None]
    spread = mean((inner - level) ** 2).sqrt()
    skew = mean((inner - level) ** 3) / (spread**3 + 1e-4)
    gradient = torch.complex(light[:, 1:-1, 2:] - light[:, 1:-1, :-2], light[:, 2:, 1:-1] - light[:, :-2, 1:-1])
    energy = mean(gradient.abs() ** 2)
    double = (weight * gradient**2).sum((1, 2)).abs() / (energy + 1e-4)
    power = gradient**4 / (gradient.abs() ** 2 + 1e-3)
    quadruple = (weight * power).sum((1, 2)).abs() / (energy + 1e-4)
    pale = mean(torch.sigmoid(10 * (least[:, 1:-1, 1:-1] / level.clamp(min=0.05) - 1.1)))
    deep = mean(torch.sigmoid(14 * (0.45 - inner / level.clamp(min=0.05))))
    relative = (spread / level[:, 0, 0].clamp(min=0.05)).clamp(min=1e-3).log()
    energetic = (energy / level[:, 0, 0].clamp(min=0.05) ** 2).clamp(min=1e-4).log()
    return torch.stack((relative, skew.clamp(-3, 3), energetic, double, quadruple, pale, deep, double * energetic.exp().clamp(max=2)), 1)
