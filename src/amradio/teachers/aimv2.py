"""AIMv2 as in transformers: `Aimv2VisionModel` (the tower alone) and `Aimv2Model` (`lit`: with a text tower)."""

from typing import Any

from torch import Tensor, nn

from ..features import Features
from .adapter import Adapter, Origin
from .base import Teacher, to_grid
from .catalogue import licence_of
from .loading import Source, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .settings import Aimv2Settings, Precision
from .text_tower import TextTower


def build(settings: Aimv2Settings) -> Teacher:
    """Loads the Aimv2(Vision)Model of `settings`; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    model, folder = load_transformers(source, {"aimv2": "Aimv2Model", "aimv2_vision_model": "Aimv2VisionModel"})
    with_text = model.config.model_type == "aimv2"
    vision = model.config.vision_config if with_text else model.config
    native = {"height": vision.image_size, "width": vision.image_size}
    processor = load_processor(folder, "CLIPImageProcessor", size={"shortest_edge": vision.image_size}, crop_size=native)
    origin = Origin(settings.model, licence_of(settings.model, folder))
    input_size = None if vision.is_native else vision.image_size
    if not with_text:
        return Aimv2Teacher(
            model, of_processor(processor), (vision.hidden_size, vision.hidden_size), input_size, origin, settings.precision
        )
    dims = (model.config.projection_dim, vision.hidden_size)
    teacher = Aimv2TextTeacher(model, of_processor(processor), dims, input_size, origin, settings.precision)
    teacher.folder = folder
    return teacher


class Aimv2Teacher(Adapter):
    """summary [B, hidden_size]: attention-pooled where there is that head, else the mean token; spatial [B, H, W, hidden_size]."""

    def __init__(
        self, model: Any, preprocess: Preprocess, dims: tuple[int, int], input_size: int | None, origin: Origin, precision: Precision
    ):
        """model: an Aimv2VisionModel; dims: channels of (summary, spatial); input_size: see `Adapter`."""
        vision: Any = self._tower(model).config
        super().__init__(
            model,
            preprocess,
            patch_size=vision.patch_size,
            dims=dims,
            input_size=input_size,
            origin=origin,
            precision=precision,
        )

    def _tower(self, model: Any) -> Any:
        return model

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The pooled tokens and the tokens, after the final norm.
        """
        seen = self._tower(self.model)(images)
        tokens, pooled = seen.last_hidden_state, seen.pooler_output
        return Features(tokens.mean(1) if pooled is None else pooled, to_grid(tokens, images, self.patch_size))


class Aimv2TextTeacher(TextTower, Aimv2Teacher):
    """summary [B, projection_dim], not normalised; spatial [B, H, W, hidden_size], after the final norm."""

    def _tower(self, model: Any) -> Any:
        return model.vision_model

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The projected embedding, and the tokens after the final norm.
        """
        pooled, spatial = super().encode(images)
        return Features(self.model.visual_projection(pooled), spatial)

    def drop_encoder(self) -> None:
        """Frees the layers of the image tower; the pooling head and the projection stay, for maps in text space."""
        self.model.vision_model.embeddings = self.model.vision_model.encoder = nn.Identity()

    def _project_cells(self, cells: Tensor) -> Tensor:
        """The attention pooling over one patch alone, and the projection."""
        projection, tower = self.model.visual_projection, self.model.vision_model
        alone = cells[:, None].to(projection.weight.dtype)
        return projection(tower.head(alone) if tower.use_head else alone[:, 0])
