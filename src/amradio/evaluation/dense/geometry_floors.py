"""What depth and normals are without a look at the image: the mean over all pixels, and the mean at each place."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from ...labelled.geometry import GeometryMaps

IMAGES = 1000
"""Of how many training images, evenly spread, the answers are made."""
NOTHING_KNOWN = "no pixel of them is known: depth is 0 or beyond max_depth, or normals are grey or black; look at the files"
LONG_SIDE = 256
"""px of the long side of the map of means, at most."""


def constant_answers(maps: GeometryMaps, prepare: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """{name of the answer: [C, h, w]}; a place where nothing is known has the mean over all. Reads at most IMAGES labels.

    prepare: a label as it is read -> [C, H, W], 0 where it is not known. Raises UserError where nothing is known in any of them.
    """
    total = count = torch.zeros(())
    is_known = False
    for number in range(0, len(maps), max(1, len(maps) // IMAGES)):
        label = prepare(torch.from_numpy(np.array(maps.read(number)[1])))
        if not total.ndim:
            scale = min(1.0, LONG_SIDE / max(label.shape[1:]))
            grid = max(1, round(label.shape[1] * scale)), max(1, round(label.shape[2] * scale))
            total, count = torch.zeros(label.shape[0], *grid, dtype=torch.float64), torch.zeros(1, *grid, dtype=torch.float64)
        is_known = is_known or bool((label != 0).any())
        cells = F.interpolate(label[None], count.shape[1:], mode="nearest-exact")[0]
        total += cells
        count += (cells != 0).any(0)
    if not is_known:
        raise UserError(f"{maps.describe()}: {NOTHING_KNOWN}; nothing can be learnt from them")
    overall = (total.sum((1, 2), keepdim=True) / count.sum().clamp(min=1)).expand_as(total)
    by_place = torch.where(count > 0, total / count.clamp(min=1), overall)
    return {"mean": overall.float(), "mean by place": by_place.float()}
