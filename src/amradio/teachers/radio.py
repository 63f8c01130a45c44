"""RADIO as in transformers (`RadioModel`): an agglomerative student as a teacher."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..features import Features
from .adapter import Adapter, Origin
from .base import to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .settings import Precision, RadioSettings


def build(settings: RadioSettings) -> "RadioTeacher":
    """Loads the RadioModel of `settings` with its LayerScale; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    model, folder = load_transformers(source, {"radio": "RadioModel"})
    load_layer_scales(model, folder)
    check_override(source, settings.input_size, model.config.patch_size)
    processor = load_processor(folder, "CLIPImageProcessor", do_resize=False, do_center_crop=False)
    origin = Origin(settings.model, licence_of(settings.model, folder))
    return RadioTeacher(model, of_processor(processor), settings.input_size, origin, settings.precision)


class RadioTeacher(Adapter):
    """summary [B, len(summary_idxs) * hidden_size]; spatial [B, H, W, hidden_size]."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int | None, origin: Origin, precision: Precision):
        """model: a RadioModel; its input conditioner is taken out; mean and std of this teacher are the conditioner's, in float32."""
        config = model.config
        conditioner = model.make_preprocessor_external()
        super().__init__(
            model,
            preprocess,
            patch_size=config.patch_size,
            dims=(len(config.summary_idxs) * config.hidden_size, config.hidden_size),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )
        self.mean.copy_(conditioner.norm_mean)
        self.std.copy_(conditioner.norm_std)

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The summary tokens, one after another, and the patch tokens.
        """
        seen = self.model(images)
        return Features(seen.summary, to_grid(seen.features, images, self.patch_size))


def load_layer_scales(model: Any, folder: Path) -> None:
    """Fills the LayerScale weights of a RadioModel in from checkpoints with the published names, which transformers passes over in silence.

    Seen with transformers 5.23: `blocks.N.ls1.grandma` (and `.gamma`) is not renamed to `layer_scale1.lambda1`, and the missing key is
    on the ignore list, so every scale stays 1.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - no dict
                match = re.search(r"blocks\.(\d+)\.ls([12])\.(?:gamma|grandma)$", key)
                if match:
                    scale = model.get_parameter(f"encoder.layer.{match[1]}.layer_scale{match[2]}.lambda1")
                    with torch.no_grad():
                        scale.copy_(weights.get_tensor(key))
