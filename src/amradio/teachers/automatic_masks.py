"""Masks of everything in an image: a grid of clicks, and the filters of Segment Anything (Kirillov et al. 2023, appendix B)."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

STABILITY_OFFSET = 1.0
"""By which logits are raised and lowered for the stability of a mask (appendix B)."""
OVERLAP = 512 / 1500
"""Of crops of the first layer, as a share of the short side; half of it in the next layer."""
NEAR_EDGE = 20.0
"""px from the edge of a crop, within which a box is taken to be cut off."""


class MaskFilters(NamedTuple):
    """Which masks of a grid of clicks are kept; the defaults are those of the published generator."""

    min_iou: float = 0.88
    """Predicted IoU, which must be exceeded."""
    min_stability: float = 0.95
    """IoU of the mask with its logits raised and lowered by 1."""
    max_overlap: float = 0.7
    """IoU of two boxes beyond which the mask of the lower predicted IoU is dropped, and between crops that of the larger crop."""


class AutomaticMasks(NamedTuple):
    """N masks of an image, on the CPU; within a crop those of the highest predicted IoU first."""

    masks: Tensor
    """bool [N, H, W]."""
    scores: Tensor
    """float32 [N], the IoU that SAM predicts."""
    stability: Tensor
    """float32 [N]."""
    boxes: Tensor
    """float32 [N, 4]: columns and rows of the first and of the last pixel (x0, y0, x1, y1)."""
    points: Tensor
    """float32 [N, 2]: the click (x, y), px of the image."""

    def select(self, chosen: Tensor) -> "AutomaticMasks":
        """Some of the masks, by their numbers."""
        return AutomaticMasks(*(values[chosen] for values in self))


Decode = Callable[[Tensor, Tensor], Iterator[tuple[Tensor, Tensor, Tensor]]]
"""A crop [3, h, w] and clicks [P, 2] in its px -> some clicks [p, 2] at a time, their logits [p, M, h, w] and predicted IoU [p, M]."""


def automatic_masks(image: Tensor, decode: Decode, points_per_side: int, crop_layers: int, filters: MaskFilters) -> AutomaticMasks:
    """The masks of an image [3, H, W] that pass the filters.

    Args:
        image: as `decode` takes it.
        decode: all masks of clicks on a crop.
        points_per_side: clicks along each side of the image, and of each crop.
        crop_layers: 0 for the image alone; layer i adds 4^i crops that overlap.
        filters: what is kept.
    """
    height, width = image.shape[-2:]
    every: list[AutomaticMasks] = []
    areas: list[Tensor] = []
    for crop in crop_boxes(height, width, crop_layers):
        kept = _of_crop(image, crop, decode, click_grid(points_per_side), filters)
        every.append(kept)
        areas.append(torch.full((len(kept.scores),), float((crop[2] - crop[0]) * (crop[3] - crop[1]))))
    together = AutomaticMasks(*(torch.cat(kind) for kind in zip(*every, strict=True)))
    if len(every) == 1:
        return together
    return together.select(nms(together.boxes, 1 / torch.cat(areas), filters.max_overlap))


def click_grid(per_side: int) -> Tensor:
    """float32 [per_side ** 2, 2]: x and y in [0, 1] of the middles of as many squares, row by row."""
    line = (torch.arange(per_side) + 0.5) / per_side
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1)


def crop_boxes(height: int, width: int, layers: int) -> list[tuple[int, int, int, int]]:
    """(x0, y0, x1, y1) of the image, of 2 x 2 crops that overlap by `OVERLAP`, of 4 x 4 that overlap by half of it, and so on."""
    boxes = [(0, 0, width, height)]
    for layer in range(layers):
        count = 2 ** (layer + 1)
        overlap = int(OVERLAP * min(height, width) * (2 / count))
        sides = [math.ceil((overlap * (count - 1) + length) / count) for length in (width, height)]
        for column in range(count):
            for row in range(count):
                left, top = (sides[0] - overlap) * column, (sides[1] - overlap) * row
                boxes.append((left, top, min(left + sides[0], width), min(top + sides[1], height)))
    return boxes


def stability(logits: Tensor) -> Tensor:
    """float32 [N] of logits [N, H, W]: pixels above `STABILITY_OFFSET` as a share of those above minus that; 0 where there are none."""
    sure = (logits > STABILITY_OFFSET).flatten(1).sum(1)
    possible = (logits > -STABILITY_OFFSET).flatten(1).sum(1)
    return torch.where(possible > 0, sure / possible.clamp_min(1), 0.0).float()


def _of_crop(image: Tensor, crop: tuple[int, int, int, int], decode: Decode, grid: Tensor, filters: MaskFilters) -> AutomaticMasks:
    left, top, right, bottom = crop
    height, width = image.shape[-2:]
    clicks = grid * torch.tensor([right - left, bottom - top])
    parts: list[AutomaticMasks] = [_no_masks(height, width)]
    for points, logits, scores in decode(image[:, top:bottom, left:right], clicks):
        flat, iou = logits.flatten(0, 1), scores.flatten()
        numbers = torch.arange(len(iou), device=iou.device) // scores.shape[1]
        able = iou > filters.min_iou
        flat, iou, numbers = flat[able], iou[able], numbers[able]
        sure = stability(flat)
        able = (sure >= filters.min_stability) & (flat > 0).flatten(1).any(1)
        masks = (flat[able] > 0).cpu()
        boxes = masks_to_boxes(masks) if len(masks) else torch.zeros(0, 4)
        whole = ~_is_cut(boxes, crop, (height, width))
        offset = torch.tensor([left, top], dtype=torch.float32)
        on_image = torch.zeros(int(whole.sum()), height, width, dtype=torch.bool)
        on_image[:, top:bottom, left:right] = masks[whole]
        scores_kept, sure_kept = (values[able].cpu()[whole] for values in (iou.float(), sure))
        clicked = points.cpu()[numbers[able].cpu()[whole]] + offset
        parts.append(AutomaticMasks(on_image, scores_kept, sure_kept, boxes[whole] + offset.repeat(2), clicked))
    together = AutomaticMasks(*(torch.cat(kind) for kind in zip(*parts, strict=True)))
    return together.select(nms(together.boxes, together.scores, filters.max_overlap))


def _is_cut(boxes: Tensor, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """bool [N]: boxes [N, 4] of a crop that end at its edge where the image (height, width) does not end."""
    left, top = crop[:2]
    edges, ends = torch.tensor(crop, dtype=torch.float32), torch.tensor([0.0, 0.0, size[1], size[0]])
    moved = boxes + torch.tensor([left, top, left, top], dtype=torch.float32)
    return (((moved - edges).abs() <= NEAR_EDGE) & ((moved - ends).abs() > NEAR_EDGE)).any(1)


def _no_masks(height: int, width: int) -> AutomaticMasks:
    return AutomaticMasks(
        torch.zeros(0, height, width, dtype=torch.bool), torch.zeros(0), torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, 2)
    )
