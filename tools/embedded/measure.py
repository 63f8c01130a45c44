"""What the embedded teachers can do, on scenes they have not seen."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amradio.data.scenes import CLASS_NAMES

from .pictures import Pictures


@torch.inference_mode()
def encode(model: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 250) -> Tensor:
    """Runs `model` (uint8 [B, 3, S, S] -> [B, D]) over all images: float32 [N, D] on the CPU."""
    return torch.cat([model(batch).float().cpu() for batch in images.split(batch_size)])


def nearest_neighbours(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20) -> float:
    """Share of `test` [M, D] whose label is that of most of its `k` nearest in `train` [N, D] by cosine."""
    near = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(k, dim=1).indices
    votes = F.one_hot(train_labels[near], len(CLASS_NAMES)).sum(1)
    return float((votes.argmax(1) == test_labels).float().mean())


def knn_of(model: Callable[[Tensor], Tensor], train: Pictures, test: Pictures) -> float:
    """20-NN accuracy of what `model` says about a picture."""
    return nearest_neighbours(encode(model, train.images), train.labels, encode(model, test.images), test.labels)


def pixels(images: Tensor) -> Tensor:
    """The floor that a model must beat: the picture itself, as a vector."""
    return images.flatten(1).float() / 255


@torch.inference_mode()
def likeness_iou(model: Callable[[Tensor], Tensor], test: Pictures, smallest: int = 64) -> float:
    """Masks from one click by likeness alone, for models that draw no masks: mean IoU over objects of `smallest` px.

    `model` says uint8 [B, 3, S, S] -> [B, h, w, C]. A mask is where a patch's cosine to the clicked patch, both less the mean
    of the picture, exceeds a threshold: the best single one for all of `test`, which flatters.
    """
    thresholds = torch.linspace(-0.2, 0.9, 12)
    found = []
    for index in range(len(test.images)):
        masks = test.masks[index]
        masks = masks[masks.sum((1, 2)) >= smallest]
        if not len(masks):
            continue
        image = test.images[index : index + 1]
        spatial = model(image).float().cpu().permute(0, 3, 1, 2)
        spatial = F.normalize(spatial - spatial.mean((2, 3), keepdim=True), dim=1)
        spatial = F.interpolate(spatial, image.shape[-2:], mode="bilinear", align_corners=False)[0]
        spatial = F.normalize(spatial, dim=0)
        x, y = middles(masks[None])[0, :, 0].long().unbind(1)
        alike = torch.einsum("chw,nc->nhw", spatial, spatial[:, y, x].T)
        drawn = alike[:, None] > thresholds[:, None, None]
        wanted = masks[:, None]
        found.append((drawn & wanted).sum((2, 3)) / (drawn | wanted).sum((2, 3)))
    return float(torch.cat(found).mean(0).max())


def middles(masks: Tensor) -> Tensor:
    """One click a mask, at the pixel farthest from its outline: bool [B, P, S, S] -> x, y in px, float32 [B, P, 1, 2]."""
    flat = masks.flatten(0, 1).float()[:, None]
    depth, left = torch.zeros_like(flat), flat
    while left.any():
        depth += left
        # What touches the outside, across or along a diagonal, is worn away; the border of the picture counts as outside.
        left = 1 - F.max_pool2d(F.pad(1 - left, (1, 1, 1, 1), value=1.0), 3, 1)
    # Of equally deep pixels, the one whose surroundings are deepest.
    depth = depth + 0.5 * F.avg_pool2d(depth, 5, 1, 2) / depth.amax((1, 2, 3), keepdim=True).clamp(min=1)
    return points(depth.flatten(1).argmax(1, keepdim=True), masks)


def points(index: Tensor, masks: Tensor) -> Tensor:
    """Flat pixel numbers [B * P, 1] of masks [B, P, S, S] -> x, y in px, float32 [B, P, 1, 2]."""
    side = masks.shape[-1]
    return torch.stack((index % side, index // side), -1).float().view(*masks.shape[:2], 1, 2)
