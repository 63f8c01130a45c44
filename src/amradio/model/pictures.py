"""Pictures of any kind as a batch of legal size, on the device of a model."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..image_input import Picture, Size, check_size, least_side, pixels_of, scaled_size
from ..images import resize
from .described_network import DescribedNetwork


def batch_of(model: DescribedNetwork, images: Picture | Sequence[Picture], size: Size | Literal["own"]) -> Tensor:
    """One picture or a list of them as one batch [B, 3, H, W]; UserError where there is none, or they come out at several sizes."""
    pictures: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    if not pictures:
        raise UserError("images: there is none; give at least one picture")
    views = [_view(model, picture, size) for picture in pictures]
    sizes = {tuple(pixels.shape[-2:]) for pixels in views}
    if len(sizes) > 1:
        listed = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:4])
        raise UserError(f"images: resized to legal sizes they differ ({listed} px); give size=(height, width), or one picture at a time")
    return torch.cat(views)


def _view(model: DescribedNetwork, picture: Picture, size: Size | Literal["own"]) -> Tensor:
    """A picture as the model takes it: [B, 3, H, W] of a legal size, on the model's device. size: as of `Model.features`."""
    wanted = model.image_size if size is None else None if size == "own" else size
    check_size(wanted)
    pixels = pixels_of(picture, least_side(wanted)).to(model.device)
    height, width = scaled_size(pixels.shape[-2], pixels.shape[-1], wanted)
    return resize(pixels, model.nearest_size(height, width))
