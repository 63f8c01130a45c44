"""Segment Anything as in transformers (`SamModel`): the encoder as a teacher, its mask decoder for evaluation."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..features import Features
from .adapter import Origin
from .catalogue import licence_of
from .loading import Source, load_processor, load_transformers
from .precision import cast
from .preprocess import Preprocess, of_processor
from .prompts import PromptableTeacher
from .relative_positions import remember_relative_positions
from .sam_settings import SamSettings
from .settings import Precision


def build(settings: SamSettings) -> "SamTeacher":
    """Loads the SamModel of `settings`; raises UserError where it is not there or damaged."""
    model, folder = load_transformers(Source(settings.type, settings.model, settings.revision), {"sam": "SamModel"})
    size = model.config.vision_config.image_size
    published = {"size": {"longest_edge": size}, "pad_size": {"height": size, "width": size}}
    preprocess = of_processor(load_processor(folder, "SamImageProcessor", **published))
    return SamTeacher(model, preprocess, Origin(settings.model, licence_of(settings.model, folder)), settings.precision)


class SamTeacher(PromptableTeacher):
    """spatial [B, H, W, hidden_size], before the neck (as AM-RADIO's teachers); no summary.

    `neck` and `model` (prompt encoder and mask decoder) stay in float32 for `masks`, which reads the teacher's own map or a student's.
    """

    def __init__(self, model: Any, preprocess: Preprocess, origin: Origin, precision: Precision):
        """model: a SamModel; its neck is taken out of the encoder and kept beside it."""
        vision: Any = model.config.vision_config
        neck, model.vision_encoder.neck = model.vision_encoder.neck, nn.Identity()
        remember_relative_positions(model.vision_encoder)
        super().__init__(
            model,
            preprocess,
            patch_size=vision.patch_size,
            dims=(None, vision.hidden_size),
            input_size=vision.image_size,
            origin=origin,
            precision="float32",
        )
        self.compute_dtype = cast(model.vision_encoder, precision)
        self.neck = neck
        self.freeze()

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        No summary, and the map [B, H, W, hidden_size] before the neck.
        """
        return Features(None, self.model.vision_encoder(images).last_hidden_state)

    def embeddings(self, spatial: Tensor) -> Tensor:
        """The neck's map [B, C, S, S] of a map [B, S, S, hidden_size] on the teacher's own grid."""
        return self.neck(spatial)

    def to_image(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Logits [B, P, M, h, w] of a prepared image -> [B, P, M, height, width], on the image before `prepare`."""
        side = self.side
        new_height, new_width = self.preprocess.resized(height, width)
        full = F.interpolate(logits.flatten(0, 1), (side, side), mode="bilinear", align_corners=False)
        valid = full[..., :new_height, :new_width]
        return F.interpolate(valid, (height, width), mode="bilinear", align_corners=False).unflatten(0, logits.shape[:2])
