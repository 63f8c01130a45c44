"""Augmentation of a batch of pictures, on whatever device they are on. Nothing here changes a hue that can be named."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop(images: Tensor, scale: tuple[float, float], side: int, spread: float = 1.0) -> Tensor:
    """One random crop a picture, flipped half the time: uint8 [B, 3, S, S] -> float32 [B, 3, side, side] in [0, 1].

    `scale` bounds the share of the area; `spread` in [0, 1] is how far from the middle a crop may lie.
    """
    device, batch = images.device, len(images)
    area = torch.empty(batch, device=device).uniform_(*scale)
    aspect = torch.empty(batch, device=device).uniform_(-0.25, 0.25).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    flip = torch.where(torch.rand(batch, device=device) < 0.5, -1.0, 1.0)
    x, y = ((1 - extent) * spread * torch.empty(batch, device=device).uniform_(-1, 1) for extent in (width, height))
    zero = torch.zeros_like(x)
    theta = torch.stack((torch.stack((width * flip, zero, x), 1), torch.stack((zero, height, y), 1)), 1)
    grid = F.affine_grid(theta, [batch, 3, side, side], align_corners=False)
    return F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)


def relight(views: Tensor, strength: float = 1.0, grey_share: float = 0.0) -> Tensor:
    """Another exposure, fall and tint of the light, contrast, saturation and grain: float32 [B, 3, H, W], about in [0, 1].

    `grey_share` of the pictures lose their colour altogether.

    The tint shifts the hue of what has little colour of its own (in scenes, the background) and hardly that of the rest.
    """

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return 1 + strength * torch.empty(len(views), channels, 1, 1, device=views.device).uniform_(low, high)

    views = views * draw(-0.3, 0.35) * draw(-0.15, 0.15, channels=3)
    field = torch.rand(len(views), 1, 3, 3, device=views.device) * 2 - 1
    views = views * (
        1 + 0.45 * min(strength, 1.5) * F.interpolate(field, views.shape[-2:], mode="bicubic", align_corners=True).clamp(-1.2, 1.2)
    )
    grey, middle = views.mean(1, keepdim=True), views.mean((1, 2, 3), keepdim=True)
    coloured = torch.rand(len(views), 1, 1, 1, device=views.device) >= grey_share
    views = grey + (views - grey) * draw(-0.3, 0.2) * coloured
    views = middle + (views - middle) * draw(-0.3, 0.3)
    views = turn_hue(views, 12 * strength)
    return views + torch.randn_like(views) * (0.05 * strength * torch.rand(len(views), 1, 1, 1, device=views.device))


def turn_hue(views: Tensor, degrees: float) -> Tensor:
    """Turns each picture's colours about the grey axis by up to `degrees`: float32 [B, 3, H, W] in and out."""
    angle = torch.empty(len(views), 1, 1, device=views.device).uniform_(-degrees, degrees).deg2rad()
    ones = torch.ones(3, 3, device=views.device) / 3
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=views.device) / 3**0.5
    turn = angle.cos() * (torch.eye(3, device=views.device) - ones) + ones + angle.sin() * cross
    return (turn @ views.flatten(2)).view_as(views)


def repaint(views: Tensor, share: float = 0.8) -> Tensor:
    """Another brightness for what has little colour, in `share` of the pictures: float32 [B, 3, H, W], about in [0, 1].

    The ground of a picture is the same in all of its crops and the easiest thing to recognise them by; repainted, it tells
    nothing, and what is left to learn is the objects (seen: without, 20-NN accuracy falls while the loss improves).
    """

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(len(views), channels, 1, 1, device=views.device).uniform_(low, high)

    most = views.amax(1, keepdim=True)
    saturation = (most - views.amin(1, keepdim=True)) / most.clamp(min=0.05)
    dull = torch.sigmoid(14 * (0.38 - saturation)) * (draw(0, 1) < share)
    return views + dull * (views * draw(0.3, 1.1) + draw(-0.1, 0.4) + draw(-0.06, 0.06, channels=3) - views)
