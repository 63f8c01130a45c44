"""The baseline of k-NN: thumbnails."""

from torch import Tensor

from ..features import Features
from ..images import resize
from .predictors import Joint, Predictor

SIDE = 16
PIXELS_NOTE = f"the floor is the same on thumbnails of {SIDE}x{SIDE} pixels"


def pixels() -> Predictor:
    """A baseline without weights: summary [B, 768], the centred RGB of a thumbnail of 16 x 16 px."""
    return Predictor(Joint(_thumbnail, _flat, "pixels"))


def _thumbnail(images: Tensor) -> Tensor:
    return resize(images, (SIDE, SIDE), "bilinear")


def _flat(images: Tensor) -> Features:
    return Features(images.flatten(1) - images.flatten(1).mean(1, keepdim=True), None)
