"""Segment Anything 3 as in transformers (`Sam3TrackerModel`, `Sam3Model`): the trunk as a teacher, neck and mask decoder for evaluation."""

from typing import Any

from torch import Tensor

from ..features import Features
from .adapter import Origin
from .base import to_grid
from .catalogue import licence_of
from .loading import Source, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .prompts import MultiscaleTeacher
from .sam_settings import Sam3Settings
from .settings import Precision

IN_WHOLE_MODEL = {
    r"^(tracker_model\.)+": "",
    r"^tracker_neck\.": "vision_encoder.neck.",
    r"^detector_model\.vision_encoder\.backbone\.": "vision_encoder.backbone.",
    r"^detector_model\.": "detector.",
}
"""Where the tracker's weights are in a checkpoint of the whole SAM 3, whose trunk is the detector's. `save_pretrained` of transformers 5.23
writes the first prefix twice, and its reader would take the detector's neck for the tracker's."""


def build(settings: Sam3Settings) -> "Sam3Teacher":
    """Loads the tracker (of the whole model, too) or the detector of `settings`; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    classes = {"sam3_video": "Sam3TrackerModel", "sam3_tracker": "Sam3TrackerModel", "sam3": "Sam3Model"}
    model, folder = load_transformers(source, classes, IN_WHOLE_MODEL)
    side = model.config.vision_config.backbone_config.image_size
    preprocess = of_processor(load_processor(folder, "Sam3ImageProcessor", size={"height": side, "width": side}))
    return Sam3Teacher(model, preprocess, Origin(settings.model, licence_of(settings.model, folder)), settings.precision)


class Sam3Teacher(MultiscaleTeacher):
    """spatial [B, H, W, hidden_size], before the neck; no summary. The mask decoder is that of clicks and boxes, the tracker's."""

    def __init__(self, model: Any, preprocess: Preprocess, origin: Origin, precision: Precision):
        """model: a Sam3TrackerModel, or a Sam3Model, whose decoder takes concepts instead of clicks and is not used."""
        trunk = model.config.vision_config.backbone_config
        super().__init__(
            model,
            preprocess,
            patch_size=trunk.patch_size,
            dim=trunk.hidden_size,
            input_size=trunk.image_size,
            origin=origin,
            precision=precision,
        )
        self.takes_prompts = model.config.model_type != "sam3"
        self.num_levels = len(model.config.vision_config.backbone_feature_sizes)

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        No summary, and the map [B, H, W, hidden_size] before the neck.
        """
        return Features(None, to_grid(self.model.vision_encoder(images).last_hidden_state, images, self.patch_size))

    def levels(self, spatial: Tensor) -> list[Tensor]:
        """The neck's maps [B, C, h, w] of a map [B, S, S, D] on the teacher's own grid, the finest first."""
        maps, _ = self.neck(spatial.permute(0, 3, 1, 2))
        return list(maps[: self.num_levels])
