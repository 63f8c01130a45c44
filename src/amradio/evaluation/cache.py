"""Summaries of an image set, computed once for each model and shared by the evaluations that need them."""

from typing import NamedTuple

from torch import Tensor

from .inputs import Counts


class Summaries(NamedTuple):
    """The summaries of an image set by one model."""

    features: Tensor
    """float32 [N, D] on the CPU; rows of the readable images, in order."""
    indices: Tensor
    """int64 [N]: which images of the set these are."""
    inputs: Counts
    """Sizes of the images that the model received."""


class FeatureCache:
    """Summaries by (image set, model, view, size); the oldest go first when there are too many."""

    def __init__(self, limit: int = 2**31):
        """limit: bytes."""
        self.limit = limit
        self.entries: dict[tuple, Summaries] = {}
        self.broken: dict[str, dict[str, str]] = {}
        """{fingerprint of an image set: {key: reason}} of the images that could not be read."""

    def get(self, key: tuple) -> Summaries | None:
        """The summaries under `key`, None where there are none or they were dropped; they then count as the newest."""
        if key in self.entries:
            self.entries[key] = self.entries.pop(key)
        return self.entries.get(key)

    def put(self, key: tuple, summaries: Summaries) -> None:
        """Keeps `summaries`, unless they alone are beyond the limit."""
        self.entries[key] = summaries
        while self.entries and sum(_bytes(entry) for entry in self.entries.values()) > self.limit:
            del self.entries[next(iter(self.entries))]


def _bytes(entry: Summaries) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (entry.features, entry.indices))
