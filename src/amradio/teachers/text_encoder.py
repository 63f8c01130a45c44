"""Text as the towers of CLIP and SigLIP want it: tokenizers of a checkpoint, SigLIP's canonical spelling, an encoder to call."""

import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..console import note
from ..errors import UserError, brief, shown
from ..libraries import first_line, need
from .base import Teacher
from .folder_checks import check_tokenizer
from .loading import quiet

BATCH = 256
"""Texts that are encoded at once."""
NAMED_TEXTS = 5
"""Texts that cannot be encoded of which a message names the place; the rest is counted."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def load_tokenizer(folder: Path, source: str) -> Any:
    """The tokenizer of transformers beside a model's weights; raises UserError where there is none."""
    transformers = need("transformers", f"teacher '{source}'")
    check_tokenizer(f"teacher '{source}'", folder)
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


def checked_texts(texts: Any) -> list[str]:
    """Texts as a list, a bare string being one text. Raises UserError where one is no text, is blank, or is half of a surrogate pair."""
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Iterable):
        raise UserError(f"texts: expected a text or a list of texts, found {brief(texts)}")
    listed = list(texts)
    if not listed:
        raise UserError("texts: there is none; give at least one string")
    problems = [f"texts.{number}: {problem}" for number, text in enumerate(listed) if (problem := _text_problem(text))]
    if problems:
        more = [f"texts: {len(problems) - NAMED_TEXTS} others like these"] if len(problems) > NAMED_TEXTS else []
        raise UserError(*problems[:NAMED_TEXTS], *more)
    return listed


def _text_problem(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"expected a text, found {brief(text)}"
    if not text.strip():
        return "it is empty; give at least one word"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"it contains half of a surrogate pair ('{shown(text[:60])}'), which no encoding can write; give the text as Unicode"
    return None


def warn_of_cut_texts(lengths: Iterable[int], limit: int, source: str) -> None:
    """One line on stderr where texts are longer than the text encoder reads. lengths: tokens of each, special ones included."""
    counts = list(lengths)
    too_long = sum(count > limit for count in counts)
    if too_long:
        note(
            f"warning: texts: {too_long:,} of {len(counts):,} have more than the {limit} tokens that teacher '{source}' reads (the longest "
            f"has {max(counts):,}); the rest of them is cut off, so shorten or split them"
        )


@torch.inference_mode()
def in_batches(texts: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
    """Embeddings [N, D] in float32 of N texts, `BATCH` at a time."""
    try:
        parts = [encode(list(texts[start : start + BATCH])).float() for start in range(0, len(texts), BATCH)]
    except IndexError:
        raise UserError(
            "texts: the tokenizer has words that the text encoder does not; its files are those of another model: download them again"
        ) from None
    return torch.cat(parts)


class TextEncoder(nn.Module):
    """Texts -> embeddings in the space of a teacher's summary, and so of the head that learnt it.

    Compare by cosine: `F.normalize(model(images, heads=["clip"])["clip"].summary) @ encoder(["a dog"]).T`.
    """

    def __init__(self, teacher: Teacher, encode: Callable[[Any, Any], Tensor] | None = None):
        """teacher: one with a text encoder. encode: from pictures and a size to the head's map [B, H, W, D]; None where it has none."""
        super().__init__()
        assert teacher.has_text
        self.teacher, self.encode = teacher, encode

    def forward(self, texts: str | Sequence[str], normalize: bool = True) -> Tensor:
        """Embeddings of texts: float32 [N, D] on the encoder's device.

        Case, punctuation and length are handled as the teacher was trained (SigLIP: lower case, no punctuation). A text of more tokens than
        the teacher reads is cut, and a line on stderr counts those.

        Args:
            texts: N texts; a bare string is one text.
            normalize: scale embeddings to length 1; False for the output of the tower.

        Raises UserError where there is no text, or one is blank, no string or no Unicode.
        """
        embeddings = self.teacher.encode_text(checked_texts(texts)).clone()  # an ordinary tensor, not one of inference mode
        return F.normalize(embeddings, dim=1) if normalize else embeddings

    def map(self, images: Any, texts: str | Sequence[str], size: Any = None) -> Tensor:
        """How well each cell of each image fits each text: cosine similarities, float32 [B, T, H, W] on the encoder's device.

        Each cell of the head's map is projected into text space like the class token or the pooled feature of the teacher
        (`Teacher.project_spatial`). `F.interpolate(maps, (h, w), mode="bilinear")` brings maps to pixels. `(100 * maps).softmax(1)` is the
        share of each text, as in CLIP's zero-shot classifier.

        Args:
            images: as for `Model.features`: a path, a list of paths, or a float tensor [B, 3, h, w] in [0, 1], ...
            texts: T texts; a bare string is one text.
            size: as for `Model.features`.

        Raises UserError where the head has no map, or there is no projection of the teacher's map into text space.
        """
        embeddings = self(texts)
        return torch.einsum("bhwd,td->bthw", self._cells(images, size), embeddings)

    @torch.no_grad()
    def name_masks(self, image: Any, masks: Tensor, texts: str | Sequence[str], size: Any = None) -> Tensor:
        """How well each mask of an image fits each text: cosine similarities, float32 [N, T]; `texts[row.argmax()]` names a mask.

        The cells of the head's map in text space are averaged over the mask, each as far as the mask covers it.

        Args:
            image: one picture as for `map`.
            masks: [N, H, W], bool or weights, on the whole picture, at any resolution (`model.masks(...)`).
            texts: T names or descriptions.
            size: as for `Model.features`.

        Raises UserError as `map`, and where the masks are not [N, H, W] or `image` is several pictures.
        """
        if not isinstance(masks, Tensor) or masks.ndim != 3:
            raise UserError(f"masks: expected a tensor [N, H, W], found {list(masks.shape) if isinstance(masks, Tensor) else brief(masks)}")
        embeddings = self(texts)
        cells = self._cells(image, size)
        if len(cells) != 1:
            raise UserError(f"image: expected one picture, found {len(cells)}; name the masks of each in a call")
        covered = F.interpolate(masks[:, None].to(cells), cells.shape[1:3], mode="area")[:, 0]
        return F.normalize(torch.einsum("nhw,hwd->nd", covered, cells[0]), dim=1) @ embeddings.T

    def _cells(self, images: Any, size: Any) -> Tensor:
        """The head's map in text space, float [B, H, W, D], each cell of length 1."""
        if self.encode is None:
            raise UserError("map: this head has no map; train it with a spatial_weight above 0, or compare its summary with the texts")
        spatial = self.encode(images, size)
        if spatial.shape[-1] != self.teacher.spatial_dim:
            raise UserError(
                f"map: the head's map has {spatial.shape[-1]} channels, that of '{self.teacher.source}' has {self.teacher.spatial_dim}; "
                "it was learnt from another layer, from which there is no known way into text space"
            )
        return F.normalize(self.teacher.project_spatial(spatial), dim=-1)
