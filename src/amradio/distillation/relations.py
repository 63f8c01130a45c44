"""Losses on relations: between the cells of an image, and between the images of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .pointwise import Gather, mean_of_cells, ungathered, wide

SHORTEST = 1e-8
"""Vectors shorter than this have no direction; torch's own bound for cosines."""
NEVER = -1e9
"""A logit of what has no share in a softmax; finite, so that zero times it is zero."""
SMALLEST_MEAN = 1e-12
"""Of distances: where all images are alike nothing is divided by zero."""


def token_similarity(prediction: Tensor, target: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence KL(teacher || student) of each cell's softmax over its cosines with the other cells; mean over cells.

    Maps [B, H, W, D] -> [B]. valid: bool [B, H, W]; other cells neither compare nor are compared with. 0 for a map of one cell.
    """
    cells = prediction.shape[1] * prediction.shape[2]
    compared = ~torch.eye(cells, dtype=torch.bool, device=prediction.device)[None]
    if valid is not None:
        compared = compared & valid.flatten(1)[:, None, :]
    student, teacher = (_log_shares(wide(feature).flatten(1, 2), temperature, compared) for feature in (prediction, target))
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    return mean_of_cells(divergence.unflatten(1, prediction.shape[1:3]), valid)


def _log_shares(tokens: Tensor, temperature: float, compared: Tensor) -> Tensor:
    """[B, N, D] -> log softmax [B, N, N]."""
    directions = F.normalize(tokens, dim=-1, eps=SHORTEST)
    return F.log_softmax((directions @ directions.mT / temperature).masked_fill(~compared, NEVER), dim=-1)


def relational(prediction: Tensor, target: Tensor, gather: Gather = ungathered, is_asymmetric: bool = False) -> Tensor:
    """Smooth L1 between the student's and the teacher's distances from each image to all others, over their means; mean over the others.

    Summaries [B, D] -> [B] (RKD, equations 4 to 6). gather: brings together the images of all processes. is_asymmetric: a pair counts only
    where it is nearer than the median in the teacher's space and farther apart in the student's, or not nearer and too near. 0 for a single
    image.
    """
    rows, local_rows = gather(wide(prediction))
    student, teacher = _distances(rows), _distances(gather(wide(target))[0])
    errors = F.smooth_l1_loss(student, teacher, reduction="none")
    if is_asymmetric:
        pairs = torch.triu_indices(len(teacher), len(teacher), 1, device=teacher.device)
        near = teacher < teacher[pairs[0], pairs[1]].median() if pairs.shape[1] else teacher < 0
        errors = errors.where(torch.where(near, student > teacher, student < teacher), 0)
    return errors.sum(1)[local_rows] / max(len(rows) - 1, 1)


def _distances(rows: Tensor) -> Tensor:
    """[N, D] -> [N, N], over their mean without the diagonal."""
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / (distances.sum() / max(len(rows) * (len(rows) - 1), 1)).clamp_min(SMALLEST_MEAN)
