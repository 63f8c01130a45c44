"""Retrieval of images by captions and of captions by images."""

from collections.abc import Callable, Sequence
from typing import Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import Positive
from ...labelled.classification import AnyCaptioned, CaptionedSet
from ..base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result
from ..reading import Broken
from ..summaries import summaries
from ..text_classifier import summary_rows, taught, texted

CHUNK = 1024
"""Rows of the table of similarities that are looked at at once."""
WAYS = {"image_text": "image-text", "text_image": "text-image"}
"""Texts that are found for images, and images for texts: name in metrics -> title."""


class RetrievalSettings(EvaluationSettings):
    """Recall of images by caption and of captions by image, in the text space of CLIP, OpenCLIP and SigLIP."""

    type: Literal["retrieval"] = "retrieval"
    data: AnyCaptioned
    """Images with captions."""
    recall: list[Positive] = pydantic.Field([1, 5, 10], min_length=1)
    """At how many found ones the right one counts."""
    captions_per_image: Positive | None = 5
    """The first captions of an image that are used, five as in the published protocol on COCO; null for all."""
    heads: list[str] | None = None
    """Names of teachers; null for all that have a text encoder."""

    def build(self) -> "Retrieval":
        """Opens the data; raises UserError where they are missing."""
        return Retrieval(self.data.build(), self.recall, self.captions_per_image, self.heads)


class Retrieval(Evaluation):
    """Recall of captions by images and of images by captions: the evaluation `retrieval`."""

    is_shared = True

    def __init__(self, images: CaptionedSet, recall: Sequence[int], captions: int | None, heads: Sequence[str] | None):
        self.images, self.recall, self.heads = images, recall, heads
        self.captions = [list(texts[:captions]) for texts in images.captions]

    def check(self, predict: Predict, bench: Bench) -> None:
        """Raises UserError where no teacher has a text encoder, or none of the rows is in its space."""
        texted(predict, bench, self.heads)

    def run(self, predict: Predict, bench: Bench) -> Result:
        """Recall both ways of every row in text space."""
        broken = Broken()
        groups = texted(predict, bench, self.heads)
        features_of = summaries(self.images, taught(summary_rows(groups.values()), bench, "summary"), bench, broken)
        kept = next(iter(features_of.values())).indices.tolist()
        texts = [caption for index in kept for caption in self.captions[index]]
        owner = torch.tensor([row for row, index in enumerate(kept) for _ in self.captions[index]])
        owns, which = ownership(texts, owner, len(kept))
        rows: dict[str, dict[str, float]] = {}
        for teacher, calls in groups.values():
            words = F.normalize(teacher.encode_text(texts), dim=1).cpu()
            for name in calls:
                if name in features_of:
                    rows[name] = self._recall(F.normalize(features_of[name].features, dim=1), words, owns, which)
        return Result(
            metrics=[Metric(f"{way}_recall{k}", f"{title} R@{k}") for way, title in WAYS.items() for k in self.recall],
            rows=rows,
            counts={"images": len(kept), "captions": len(texts), "broken": len(broken.reasons)},
            fingerprint=self.images.fingerprint(),
            floors={f"{way}_recall{k}": value for k in self.recall for way, value in chance(owns[:, which], k).items()},
            floor="chance",
            notes=(*broken.note(), "the floor is chance"),
        )

    def _recall(self, images: Tensor, texts: Tensor, owns: Tensor, which: Tensor) -> dict[str, float]:
        by_image = ranks(images, texts, lambda part: owns[part][:, which])
        by_text = ranks(texts, images, lambda part: owns[:, which[part]].T)
        by_way = dict(zip(WAYS, (by_image, by_text), strict=True))
        return {f"{way}_recall{k}": 100 * float((rank < k).double().mean()) for way, rank in by_way.items() for k in self.recall}


def chance(right: Tensor, k: int) -> dict[str, float]:
    """{`image_text`, `text_image`: recall at k of a random order, in %}. right: bool [N, M], which of M texts are right for N images.

    Of M texts of which r are right none is among the first k with the chance (1 - r/M) (1 - r/(M-1)) ... of k factors.
    """
    recalls = {}
    for way, table in zip(WAYS, (right, right.T), strict=True):
        counts, num = table.sum(1).double(), table.shape[1]
        missed = torch.ones_like(counts)
        for drawn in range(min(k, num)):
            missed *= ((num - counts - drawn) / (num - drawn)).clamp_min(0)
        recalls[way] = 100 * float(1 - missed.mean())
    return recalls


def ownership(texts: Sequence[str], owner: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """(bool [num_images, U], int64 [M]): which of U different texts an image owns, and which of them each of the M texts is.

    Images that have the same caption own it all alike: to find any of them is right. owner: int64 [M], the image of each text.
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    which = torch.tensor([numbers[text] for text in texts])
    owns = torch.zeros(num_images, len(numbers), dtype=torch.bool)
    owns[owner, which] = True
    return owns, which


def ranks(queries: Tensor, gallery: Tensor, correct: Callable[[slice], Tensor]) -> Tensor:
    """How many wrong rows of `gallery` [M, D] are at least as similar as the best right one, for each row of `queries` [N, D]: int64 [N].

    A tie counts against the model, so that a constant answer finds nothing. correct: some rows of [N, M] -> which are right, bool.
    """
    counts = []
    for start in range(0, len(queries), CHUNK):
        part = slice(start, start + CHUNK)
        similar, right = queries[part] @ gallery.T, correct(part)
        best = similar.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        counts.append(((similar >= best) & ~right).sum(1))
    return torch.cat(counts)
