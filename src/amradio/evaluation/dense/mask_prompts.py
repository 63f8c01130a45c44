"""Prompts out of masks: one inner point, one box; and what a mask made of the prompt alone would score."""

import numpy as np
import torch
from torch import Tensor

EPSILON = 1e-7
"""Added to the union, as in the published harness."""
DISC_PARTS = (1 / 64, 1 / 32, 3 / 64, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8)
"""Radii of the discs that are tried, in parts of the image's long side."""


def inner_point(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) px of the pixel of a mask bool [H, W] that is farthest from all pixels outside (also beyond the image's edge).

    The first such pixel in rows from the top. The mask must not be empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    squares = squared_distances(np.pad(part, 1))[1:-1, 1:-1]
    y, x = divmod(int(squares.argmax()), squares.shape[1])
    return left + x, top + y


def squared_distances(mask: np.ndarray) -> np.ndarray:
    """Exact squared Euclidean distance of each pixel of a mask bool [H, W] to the nearest pixel outside, int64 [H, W]; 0 outside.

    The mask must be empty along its edge. First along columns, then the least of (distance in another column)^2 + offset^2.
    """
    height, width = mask.shape
    far = height + width
    along = np.where(mask, far, 0).astype(np.int64)
    for y in range(1, height):
        along[y] = np.minimum(along[y], along[y - 1] + 1)
    for y in range(height - 2, -1, -1):
        along[y] = np.minimum(along[y], along[y + 1] + 1)
    squares = along**2
    distances = squares.copy()
    offset = 1
    while offset < width and offset**2 < distances.max(initial=0):  # columns further away cannot be nearer
        np.minimum(distances[:, offset:], squares[:, :-offset] + offset**2, out=distances[:, offset:])
        np.minimum(distances[:, :-offset], squares[:, offset:] + offset**2, out=distances[:, :-offset])
        offset += 1
    return distances


def ious(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection / (union + 1e-7) of masks bool [N, H, W], float64 [N] in [0, 1]."""
    both = (predicted & truth).flatten(1).sum(1).double()
    either = (predicted | truth).flatten(1).sum(1).double()
    return both / (either + EPSILON)


def filled_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks bool [N, H, W] of boxes [N, 4] (x0, y0, x1, y1) px: the pixels whose centre is within."""
    y, x = _centres(height, width, boxes.device)
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def discs(points: Tensor, radius: float, height: int, width: int) -> Tensor:
    """Masks bool [N, H, W]: the pixels at most `radius` px from points [N, 2] (x, y), which name pixels."""
    y, x = _centres(height, width, points.device)
    middle = points[:, :, None, None] + 0.5
    return (x - middle[:, 0]) ** 2 + (y - middle[:, 1]) ** 2 <= radius**2


def _centres(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None] + 0.5
    return y, torch.arange(width, device=device, dtype=torch.float32)[None] + 0.5
