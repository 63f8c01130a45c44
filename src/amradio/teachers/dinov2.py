"""DINOv2 as in transformers (`Dinov2Model`, `Dinov2WithRegistersModel`)."""

from typing import Any

from torch import Tensor

from ..features import Features
from .adapter import Adapter, Origin
from .base import to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .settings import Dinov2Settings, Precision

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def build(settings: Dinov2Settings) -> "Dinov2Teacher":
    """Loads the Dinov2Model (with registers) of `settings`; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    classes = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
    model, folder = load_transformers(source, classes)
    check_override(source, settings.input_size, model.config.patch_size)
    published = {"size": {"shortest_edge": 256}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    preprocess = of_processor(load_processor(folder, "BitImageProcessor", **published))
    origin = Origin(settings.model, licence_of(settings.model, folder))
    return Dinov2Teacher(model, preprocess, settings.input_size, origin, settings.precision)


class Dinov2Teacher(Adapter):
    """summary [B, hidden_size]; spatial [B, H, W, hidden_size]; registers dropped."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int | None, origin: Origin, precision: Precision):
        """model: a Dinov2Model or Dinov2WithRegistersModel, which interpolates its positions; input_size: see `Adapter`."""
        config = model.config
        super().__init__(
            model,
            preprocess,
            patch_size=config.patch_size,
            dims=(config.hidden_size, config.hidden_size),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )
        self.num_prefix = 1 + (config.num_register_tokens if config.model_type == "dinov2_with_registers" else 0)

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The class token and the patch tokens, after the final norm.
        """
        tokens = self.model(images).last_hidden_state
        return Features(tokens[:, 0], to_grid(tokens[:, self.num_prefix :], images, self.patch_size))
