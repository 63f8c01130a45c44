"""Segment Anything 2 on images, as in transformers (`Sam2Model`): the Hiera trunk as a teacher, neck and mask decoder for evaluation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import Features
from .adapter import Origin
from .catalogue import licence_of
from .loading import Source, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .prompts import MultiscaleTeacher
from .sam_settings import Levels, Sam2Settings
from .settings import Precision


def build(settings: Sam2Settings) -> "Sam2Teacher":
    """Loads the Sam2Model of `settings` (a video model's too); raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    model, folder = load_transformers(source, {"sam2": "Sam2Model", "sam2_video": "Sam2Model"})
    height, width = model.config.vision_config.backbone_config.image_size
    preprocess = of_processor(load_processor(folder, "Sam2ImageProcessor", size={"height": height, "width": width}))
    origin = Origin(settings.model, licence_of(settings.model, folder))
    return Sam2Teacher(model, preprocess, settings.levels, origin, settings.precision)


class Sam2Teacher(MultiscaleTeacher):
    """spatial [B, H, W, D], before the neck, in cells of the third stage's stride (16 px); no summary.

    The trunk has four stages of 4, 8, 16 and 32 px. A cell has, one after another: the 4 x 4 vectors of the first stage in it, the 2 x 2
    of the second (both row-major), that of the third, and that of the fourth in whose cell it is. From these the neck's maps are exact,
    so the mask decoder reads the teacher's own map and a head's. With `coarse` levels there are the last two only, and no decoder.
    """

    def __init__(self, model: Any, preprocess: Preprocess, levels: Levels, origin: Origin, precision: Precision):
        """model: a Sam2Model."""
        trunk = model.config.vision_config.backbone_config
        widths = list(trunk.embed_dim_per_stage)
        self.takes_prompts = levels == "all"
        self.widths = widths[2:] if levels == "coarse" else [16 * widths[0], 4 * widths[1], *widths[2:]]
        self.num_levels = model.config.vision_config.num_feature_levels
        super().__init__(
            model,
            preprocess,
            patch_size=trunk.patch_stride[0] * trunk.query_stride[0] ** 2,
            dim=sum(self.widths),
            input_size=trunk.image_size[0],
            origin=origin,
            precision=precision,
        )

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        No summary, and the stages of the trunk in cells of one size.
        """
        first, second, third, fourth = self.model.vision_encoder(images).intermediate_hidden_states
        coarse = [third, fourth.repeat_interleave(2, 1).repeat_interleave(2, 2)]
        fine = [_gather(first, 4), _gather(second, 2)] if self.takes_prompts else []
        return Features(None, torch.cat([*fine, *coarse], dim=-1))

    def levels(self, spatial: Tensor) -> list[Tensor]:
        """The neck's maps [B, C, h, w] of a map [B, S, S, D] on the teacher's own grid, the finest first."""
        first, second, third, fourth = spatial.split(self.widths, dim=-1)
        pooled = F.avg_pool2d(fourth.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        maps, _ = self.neck([_scatter(first, 4), _scatter(second, 2), third, pooled])
        return list(maps[-self.num_levels :][::-1])


def _gather(maps: Tensor, factor: int) -> Tensor:
    """[B, H, W, C] -> [B, H / factor, W / factor, factor * factor * C]."""
    return maps.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).transpose(2, 3).flatten(3)


def _scatter(cells: Tensor, factor: int) -> Tensor:
    """The inverse of `_gather`."""
    return cells.unflatten(3, (factor, factor, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
