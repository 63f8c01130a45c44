"""CLIP as in transformers (`CLIPModel`): OpenAI's checkpoints and all that were converted to this format."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..features import Features
from .adapter import Origin
from .base import to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .settings import ClipSettings, Metaclip2Settings, Precision
from .text_tower import TextTower


def build(settings: ClipSettings) -> "ClipTeacher":
    """Loads the CLIPModel of `settings`; raises UserError where it is not there or damaged."""
    return build_as(settings, {"clip": "CLIPModel"})


def build_as(settings: ClipSettings | Metaclip2Settings, classes: Mapping[str, str]) -> "ClipTeacher":
    """The same for every model of CLIP's layout. classes: model type -> its class in transformers."""
    source = Source(settings.type, settings.model, settings.revision)
    model, folder = load_transformers(source, classes)
    vision = model.config.vision_config
    check_override(source, settings.input_size, vision.patch_size, vision.image_size)
    native = {"height": vision.image_size, "width": vision.image_size}
    processor = load_processor(folder, "CLIPImageProcessor", size={"shortest_edge": vision.image_size}, crop_size=native)
    origin = Origin(settings.model, licence_of(settings.model, folder))
    teacher = ClipTeacher(model, of_processor(processor), settings.input_size or vision.image_size, origin, settings.precision)
    teacher.folder = folder
    return teacher


class ClipTeacher(TextTower):
    """summary [B, projection_dim], not normalised; spatial [B, H, W, hidden_size], before the final norm (as AM-RADIO's teachers)."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int, origin: Origin, precision: Precision):
        """model: a CLIPModel; input_size: px of the square input."""
        vision: Any = model.config.vision_config
        super().__init__(
            model,
            preprocess,
            patch_size=vision.patch_size,
            dims=(model.config.projection_dim, vision.hidden_size),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )
        self.interpolates = input_size != vision.image_size

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The projected embedding, and the last patch tokens before the final norm.
        """
        seen = self.model.vision_model(pixel_values=images, interpolate_pos_encoding=self.interpolates)
        patches = to_grid(seen.last_hidden_state[:, 1:], images, self.patch_size)
        return Features(self.model.visual_projection(seen.pooler_output), patches)

    def drop_encoder(self) -> None:
        """Frees the layers of the image tower; the final norm and the projection stay, for maps in text space."""
        self.model.vision_model.embeddings = self.model.vision_model.encoder = nn.Identity()

    def _project_cells(self, cells: Tensor) -> Tensor:
        """The final norm and the visual projection, which the class token goes through, on every patch (as MaskCLIP, arXiv 2112.01071)."""
        projection = self.model.visual_projection
        return projection(self.model.vision_model.post_layernorm(cells.to(projection.weight.dtype)))
