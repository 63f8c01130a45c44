"""The vision tower of InternVL (InternViT) as in transformers (`InternVLVisionModel`)."""

from typing import Any

from torch import Tensor

from ..features import Features
from .adapter import Adapter, Origin
from .base import to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .settings import InternvlSettings, Precision

IN_WHOLE_MODEL = {r"^(model\.)?vision_tower\.": ""}
"""Where the tower's weights are in a checkpoint of the whole InternVL."""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def build(settings: InternvlSettings) -> "InternvlTeacher":
    """Loads the InternVLVisionModel of `settings`; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    classes = {"internvl": "InternVLVisionModel", "internvl_vision": "InternVLVisionModel"}
    model, folder = load_transformers(source, classes, IN_WHOLE_MODEL)
    patch_size, native = model.config.patch_size[0], model.config.image_size[0]
    check_override(source, settings.input_size, patch_size, native)
    processor = load_processor(folder, "GotOcr2ImageProcessor", size={"height": native, "width": native}, **IMAGENET)
    origin = Origin(settings.model, licence_of(settings.model, folder))
    return InternvlTeacher(model, of_processor(processor), settings.input_size or native, origin, settings.precision)


class InternvlTeacher(Adapter):
    """summary [B, hidden_size]; spatial [B, H, W, hidden_size]; an image is seen whole, in one square, and not in tiles."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int, origin: Origin, precision: Precision):
        """model: an InternVLVisionModel; input_size: px of the square input."""
        config = model.config
        super().__init__(
            model,
            preprocess,
            patch_size=config.patch_size[0],
            dims=(config.hidden_size, config.hidden_size),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The mean patch token, or the class token where the model was not made for the mean (`use_mean_pooling`), and the patch tokens.
        """
        tokens = self.model(images).last_hidden_state
        patches = tokens[:, 1:]
        summary = patches.mean(1) if self.model.config.use_mean_pooling else tokens[:, 0]
        return Features(summary, to_grid(patches, images, self.patch_size))
