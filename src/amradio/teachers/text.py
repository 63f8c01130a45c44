"""Text as the towers of CLIP and SigLIP want it: tokenizers of a checkpoint, SigLIP's canonical spelling."""

import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .loading import first_line, quiet

BATCH = 256
"""Texts that are encoded at once."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def load_tokenizer(folder: Path, source: str) -> Any:
    """The tokenizer of transformers that lies beside a model's weights; raises UserError where there is none."""
    import transformers

    with quiet():
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the library raises whatever its readers do
            raise UserError(
                f"teacher '{source}': there is no tokenizer in {folder} that can be read ({first_line(error)}); its text encoder "
                "needs one: copy tokenizer.json and tokenizer_config.json there"
            ) from None


def canonical(text: str) -> str:
    """As SigLIP and SigLIP 2 were trained: lower case, no punctuation, single spaces."""
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())


@torch.inference_mode()
def in_batches(texts: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
    """Embeddings [N, D] in float32 of N texts, `BATCH` at a time."""
    parts = [encode(list(texts[start : start + BATCH])).float() for start in range(0, len(texts), BATCH)]
    return torch.cat(parts)
