"""The text tower of models in CLIP's layout of transformers: `text_model`, `text_projection` and a tokenizer beside the weights."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from .adapter import Adapter
from .text_encoder import in_batches, load_tokenizer, warn_of_cut_texts


class TextTower(Adapter):
    """An adapter whose model encodes texts too (CLIP, MetaCLIP 2, AIMv2 `lit`)."""

    has_text = True
    folder = Path()
    """The folder of the tokenizer."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, float32 [N, summary_dim], not normalized; longer texts are cut, with a warning."""
        limit = self.model.config.text_config.max_position_embeddings
        warn_of_cut_texts((len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]), limit, self.source)
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
