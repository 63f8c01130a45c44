"""CLIP as in transformers (`CLIPModel`): OpenAI's checkpoints and all that were converted to this format."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ..config import Pixels
from ..features import Features
from .adapter import Adapter, Origin
from .base import Precision, TeacherSettings, to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor
from .text import in_batches, load_tokenizer


class ClipSettings(TeacherSettings):
    """CLIP. Summary: the image embedding of text space; map: the last patch tokens, without the final norm."""

    type: Literal["clip"] = "clip"
    model: str
    """Hub name (openai/clip-vit-large-patch14-336) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    input_size: Pixels | None = None
    """px of the square input; the model's own by default, else the position embedding is interpolated."""

    def build(self) -> "ClipTeacher":
        """Loads the model; see `TeacherSettings.build`."""
        source = Source(self.type, self.model, self.revision)
        model, folder = load_transformers(source, {"clip": "CLIPModel"})
        vision = model.config.vision_config
        check_override(source, self.input_size, vision.patch_size, vision.image_size)
        native = {"height": vision.image_size, "width": vision.image_size}
        processor = load_processor(folder, "CLIPImageProcessor", size={"shortest_edge": vision.image_size}, crop_size=native)
        origin = Origin(self.model, licence_of(self.model, folder))
        teacher = ClipTeacher(model, of_processor(processor), self.input_size or vision.image_size, origin, self.precision)
        teacher.folder = folder
        return teacher


class ClipTeacher(Adapter):
    """summary [B, projection_dim], not normalised; spatial [B, H, W, hidden_size], before the final norm (as AM-RADIO's teachers)."""

    has_text = True
    folder = Path()
    """Where the tokenizer lies."""

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
        """See `Teacher.encode`."""
        seen = self.model.vision_model(pixel_values=images, interpolate_pos_encoding=self.interpolates)
        patches = to_grid(seen.last_hidden_state[:, 1:], images, self.patch_size)
        return Features(self.model.visual_projection(seen.pooler_output), patches)

    def drop_encoder(self) -> None:
        """See the base."""
        self.model.vision_model = nn.Identity()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See the base."""
        return in_batches(texts, self._encode_text)

    def _encode_text(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(self.mean.device)
        seen = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return self.model.text_projection(seen.pooler_output)

    @cached_property
    def tokenizer(self) -> Any:
        """Of transformers."""
        return load_tokenizer(self.folder, self.source)
