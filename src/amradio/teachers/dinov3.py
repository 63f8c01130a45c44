"""DINOv3 as in transformers (`DINOv3ViTModel`, `DINOv3ConvNextModel`)."""

from typing import Any

from torch import Tensor

from ..features import Features
from .adapter import Adapter, Origin
from .base import to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .settings import Dinov3Settings, Precision

CONVNEXT_STRIDE = 32
"""Four in the stem, then two in each of three stages."""


def build(settings: Dinov3Settings) -> "Dinov3Teacher":
    """Loads the DINOv3 model (ViT or ConvNeXt) of `settings`; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    classes = {"dinov3_vit": "DINOv3ViTModel", "dinov3_convnext": "DINOv3ConvNextModel"}
    model, folder = load_transformers(source, classes)
    preprocess = of_processor(load_processor(folder, "DINOv3ViTImageProcessor"))
    teacher = Dinov3Teacher(
        model, preprocess, settings.input_size, Origin(settings.model, licence_of(settings.model, folder)), settings.precision
    )
    check_override(source, settings.input_size, teacher.patch_size)
    return teacher


class Dinov3Teacher(Adapter):
    """summary [B, D]; spatial [B, H, W, D]; registers dropped."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int | None, origin: Origin, precision: Precision):
        """model: a DINOv3ViTModel or DINOv3ConvNextModel, whose patch is its stride of 32 px; input_size: see `Adapter`."""
        config = model.config
        is_vit = config.model_type == "dinov3_vit"
        dim = config.hidden_size if is_vit else config.hidden_sizes[-1]
        super().__init__(
            model,
            preprocess,
            patch_size=config.patch_size if is_vit else CONVNEXT_STRIDE,
            dims=(dim, dim),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )
        self.num_prefix = 1 + (config.num_register_tokens if is_vit else 0)

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The class token (ConvNeXt: the mean) and the tokens, after the final norm.
        """
        tokens = self.model(images).last_hidden_state
        return Features(tokens[:, 0], to_grid(tokens[:, self.num_prefix :], images, self.patch_size))
