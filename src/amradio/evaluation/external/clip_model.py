"""A row of an evaluation, its data and its texts as clip_benchmark expects models, loaders and tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from ...images import to_float
from ...teachers.base import Teacher
from ..base import Bench, summary_of
from ..predictors import Predictor


@dataclass
class Loader:
    """Batches (images, labels or captions) where the library expects a loader."""

    dataset: Any
    size: int
    collate: Callable[[list[Any]], Any]

    def __iter__(self) -> Iterator[Any]:
        samples = (
            iter(self.dataset) if isinstance(self.dataset, IterableDataset) else map(self.dataset.__getitem__, range(len(self.dataset)))
        )
        while batch := list(islice(samples, self.size)):
            yield self.collate(batch)


class Texts(list[str]):
    """Texts where the library expects tokens on a device."""

    def to(self, _: Any) -> "Texts":
        """The same texts: they are on no device."""
        return self


class ClipModel:
    """A row as a model of the library."""

    def __init__(self, call: Predictor, teacher: Teacher, bench: Bench):
        self.call, self.teacher, self.bench = call, teacher, bench

    def prepare(self, image: Image.Image) -> Tensor:
        """[3, H, W] in [0, 1] on the CPU, of the model's size."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].to(self.bench.device)
        return self.call.joint.prepare(to_float(pixels))[0].cpu()

    def encode_image(self, images: Tensor) -> Tensor:
        """float32 [B, D]."""
        return summary_of(self.call.of_prepared(images.to(self.bench.device)))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, D]."""
        return self.teacher.encode_text(list(texts)).float()
