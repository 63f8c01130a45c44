"""Operations on batches of images that every room needs: conversion to float, resizing, cropping."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Antialiased resize of [B, 3, H, W] in [0, 1] to [B, 3, *size], clamped to [0, 1]; mode: bicubic, bilinear or nearest."""
    if tuple(images.shape[-2:]) == size:
        return images
    if mode == "nearest":
        return F.interpolate(images, size, mode="nearest-exact")
    return F.interpolate(images, size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def central_square(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> the central square [B, 3, S, S] of its short side."""
    side = min(images.shape[-2:])
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return images[..., top : top + side, left : left + side]


def scaled(images: Tensor, short_side: int | None) -> tuple[int, int]:
    """(height, width) of [B, 3, H, W] with the short side brought to `short_side` px, aspect kept, rounded; unchanged for None."""
    height, width = images.shape[-2:]
    if short_side is None:
        return height, width
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)


def centre_crop(images: Tensor, image_size: int) -> Tensor:
    """[B, 3, H, W]: short side to `image_size` px (bicubic, antialiased), then the central square."""
    images = resize(images, scaled(images, image_size))
    top, left = (images.shape[-2] - image_size) // 2, (images.shape[-1] - image_size) // 2
    return images[..., top : top + image_size, left : left + image_size]


def to_float(images: Tensor) -> Tensor:
    """uint8 [0, 255] of any shape -> float32 [0, 1]; floats are returned as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
