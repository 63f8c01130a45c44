"""SigLIP and SigLIP 2 as in transformers: `SiglipModel` (fixed square input) and `Siglip2Model` (NaFlex: any grid of patches)."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..features import Features
from ..images import resize
from .adapter import Adapter, Origin
from .base import Teacher, to_grid
from .catalogue import licence_of
from .loading import Source, check_override, load_processor, load_transformers
from .preprocess import Preprocess, of_processor, three
from .settings import Precision, SiglipSettings
from .text_encoder import canonical, in_batches, load_tokenizer, warn_of_cut_texts


def build(settings: SiglipSettings) -> "Teacher":
    """Loads the Siglip(2)Model of `settings`; raises UserError where it is not there or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    model, folder = load_transformers(source, {"siglip": "SiglipModel", "siglip2": "Siglip2Model"})
    vision = model.config.vision_config
    origin = Origin(settings.model, licence_of(settings.model, folder))
    if model.config.model_type == "siglip2":
        check_override(source, settings.input_size, vision.patch_size)
        processor = load_processor(folder, "Siglip2ImageProcessor", patch_size=vision.patch_size)
        naflex = NaflexTeacher(model, processor, settings.input_size, origin, settings.precision)
        naflex.folder = folder
        return naflex
    check_override(source, settings.input_size, vision.patch_size, vision.image_size)
    published = {"size": {"height": vision.image_size, "width": vision.image_size}}
    preprocess = of_processor(load_processor(folder, "SiglipImageProcessor", **published))
    teacher = SiglipTeacher(model, preprocess, settings.input_size or vision.image_size, origin, settings.precision)
    teacher.folder = folder
    return teacher


class _WithText(Adapter):
    """What both kinds share: the text tower."""

    has_text = True
    folder = Path()
    """The folder of the tokenizer."""

    def drop_encoder(self) -> None:
        """Frees the layers of the image tower; the pooling head stays, for maps in text space."""
        self.model.vision_model.embeddings = self.model.vision_model.encoder = nn.Identity()

    def _pool(self, tokens: Tensor) -> Tensor:
        """The tower's attention pooling of tokens [N, 1, D] -> [N, D]."""
        return self.model.vision_model.head(tokens)

    def _project_cells(self, cells: Tensor) -> Tensor:
        """The attention pooling over one patch alone: its value projection, output projection and MLP."""
        return self._pool(cells[:, None].to(next(self.model.vision_model.head.parameters()).dtype))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, float32 [N, summary_dim], not normalized.

        Texts are lower-cased, lose their punctuation and are padded to the tower's length, without a mask; longer ones are cut.
        """
        words = [canonical(text) for text in texts]
        limit = self.model.config.text_config.max_position_embeddings
        warn_of_cut_texts((len(ids) for ids in self.tokenizer(words, verbose=False)["input_ids"]), limit, self.source)
        return in_batches(texts, self._encode_text)

    def _encode_text(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        words = [canonical(text) for text in texts]
        tokens = self.tokenizer(words, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return self.model.text_model(input_ids=tokens["input_ids"].to(self.mean.device)).pooler_output

    @cached_property
    def tokenizer(self) -> Any:
        """Of transformers."""
        return load_tokenizer(self.folder, self.source)


class SiglipTeacher(_WithText):
    """summary [B, hidden_size], not normalised; spatial [B, H, W, hidden_size]."""

    def __init__(self, model: Any, preprocess: Preprocess, input_size: int, origin: Origin, precision: Precision):
        """model: a SiglipModel; input_size: px of the square input (384 px make 27 patches of 14; what is left over is not seen)."""
        vision: Any = model.config.vision_config
        super().__init__(
            model,
            preprocess,
            patch_size=vision.patch_size,
            dims=(vision.hidden_size, vision.hidden_size),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )
        self.interpolates = input_size != vision.image_size

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The attention-pooled embedding and the tokens after the final norm.
        """
        seen = self.model.vision_model(pixel_values=images, interpolate_pos_encoding=self.interpolates)
        return Features(seen.pooler_output, to_grid(seen.last_hidden_state, images, self.patch_size))


class NaflexTeacher(_WithText):
    """SigLIP 2 NaFlex: summary [B, hidden_size], not normalised; spatial [B, H, W, hidden_size] of any grid.

    A batch has one size, so nothing is padded and no token is masked.
    """

    def __init__(self, model: Any, processor: Any, input_size: int | None, origin: Origin, precision: Precision):
        """model: a Siglip2Model; processor: its own, whose `max_num_patches` rules what `prepare` gives; input_size: see `Adapter`."""
        vision: Any = model.config.vision_config
        mean, std = three(processor.image_mean), three(processor.image_std)
        super().__init__(
            model,
            Preprocess(mean, std, "none", (0, 0), mode="bilinear"),
            patch_size=vision.patch_size,
            dims=(vision.hidden_size, vision.hidden_size),
            input_size=input_size,
            origin=origin,
            precision=precision,
        )
        self.max_num_patches = processor.max_num_patches

    def _pool(self, tokens: Tensor) -> Tensor:
        return self.model.vision_model.head(tokens, None)

    def prepare(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> the largest size of nearly the same aspect with at most `max_num_patches` patches."""
        from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

        if self.input_size is not None:
            return resize(images, (self.input_size, self.input_size), "bilinear")
        height, width = images.shape[-2:]
        size = get_image_size_for_max_num_patches(height, width, self.patch_size, self.max_num_patches)
        return resize(images, size, "bilinear")

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The attention-pooled embedding and the tokens after the final norm.
        """
        step, (height, width) = self.patch_size, images.shape[-2:]
        patches = images.unflatten(3, (-1, step)).unflatten(2, (-1, step)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        seen = self.model.vision_model(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device),
            spatial_shapes=torch.tensor([[height // step, width // step]] * len(images)),
        )
        return Features(seen.pooler_output, to_grid(seen.last_hidden_state, images, step))
