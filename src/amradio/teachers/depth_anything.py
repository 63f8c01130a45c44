"""The encoder of Depth Anything as in transformers (`DepthAnythingForDepthEstimation`): a DINOv2 that learnt to see depth."""

from typing import Any

from torch import Tensor

from ..features import Features
from ..images import resize
from .adapter import Adapter, Origin
from .base import to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import MODES, Preprocess, three
from .settings import DepthAnythingSettings, Precision


def build(settings: DepthAnythingSettings) -> "DepthAnythingTeacher":
    """Loads the encoder of `settings`; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    model, folder = load_transformers(source, {"depth_anything": "DepthAnythingForDepthEstimation"})
    patch_size = model.config.backbone_config.patch_size
    check_override(source, settings.input_size, patch_size)
    published = {"size": {"height": 518, "width": 518}, "keep_aspect_ratio": True, "ensure_multiple_of": patch_size}
    processor = load_processor(folder, "DPTImageProcessor", **published)
    origin = Origin(settings.model, licence_of(settings.model, folder))
    return DepthAnythingTeacher(model.backbone, processor, settings.input_size, origin, settings.precision)


class DepthAnythingTeacher(Adapter):
    """spatial [B, H, W, hidden_size]: the last of the maps that the depth head reads; no summary."""

    def __init__(self, model: Any, processor: Any, input_size: int | None, origin: Origin, precision: Precision):
        """model: a Dinov2Backbone; processor: a DPTImageProcessor, whose sizes rule what `prepare` gives; input_size: see `Adapter`."""
        config = model.config
        self.target, self.keeps_aspect = (processor.size["height"], processor.size["width"]), processor.keep_aspect_ratio
        super().__init__(
            model,
            Preprocess(three(processor.image_mean), three(processor.image_std), "none", (0, 0), mode=MODES[int(processor.resample)]),
            patch_size=config.patch_size,
            dims=(None, config.hidden_size),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )

    def prepare(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> multiples of the patch: the aspect kept, the side that changes least at the processor's size.

        With an `input_size` the whole image in that square.
        """
        height, width = images.shape[-2:]
        rows, columns = self.target
        if self.keeps_aspect:
            scale = min(rows / height, columns / width, key=lambda factor: abs(1 - factor))
            rows, columns = scale * height, scale * width
        size = (self.input_size, self.input_size) if self.input_size else (rows, columns)
        return resize(images, self.size_for(*size), self.preprocess.mode)

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        No summary, and the patch tokens of the last layer that the depth head reads.
        """
        tokens = self.model(images).feature_maps[-1]
        if tokens.ndim == 4:  # the configuration may ask for maps
            return Features(None, tokens.permute(0, 2, 3, 1))
        return Features(None, to_grid(tokens[:, 1:], images, self.patch_size))
