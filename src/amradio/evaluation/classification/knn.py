"""k nearest neighbours with the weighted vote of DINO: what a feature knows of classes without training anything."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from ...config import Positive
from ...labelled.classification import AnyLabelled, LabelledSet, labels_in
from ...neighbours import QUERY_CHUNK, Neighbours, blocks, nearest_rows
from ..base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result
from ..baselines import PIXELS_NOTE, pixels
from ..reading import Broken
from ..summaries import summaries


class KnnSettings(EvaluationSettings):
    """Cosine k-NN, votes weighted by exp(similarity / temperature) (DINO; AM-RADIO uses k = 20 and 0.07)."""

    type: Literal["knn"] = "knn"
    database: AnyLabelled
    """Images whose classes are known."""
    queries: AnyLabelled
    """Images whose classes are asked for."""
    k: list[Positive] = pydantic.Field([20], min_length=1)
    """Numbers of neighbours, all measured at once."""
    temperature: Annotated[float, pydantic.Field(gt=0, le=1000)] = 0.07
    """Of the vote."""

    def build(self) -> "Knn":
        """Opens both sets; raises UserError where one is missing or their classes do not match."""
        return Knn(self.database.build(), self.queries.build(), self.k, self.temperature)


def vote(found: Neighbours, labels: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    """Shares of the classes [Q, num_classes] in the vote of the nearest k, in the type of the similarities; rows sum to 1.

    labels: int64 [N] of the database. A neighbour's weight is exp(similarity / temperature).
    """
    similarities = found.similarities[:, :k]
    weights = ((similarities - similarities[:, :1]) / temperature).exp()  # relative to the nearest: shares stay the same
    shares = weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels[found.indices[:, :k]], weights)
    return shares / weights.sum(1, keepdim=True)


def accuracies(found: Neighbours, labels: Tensor, wanted: Tensor, k: Sequence[int], temperature: float) -> dict[int, float]:
    """{k: per cent of the queries that are given their class}; wanted: int64 [Q]."""
    num_classes = int(max(labels.max(), wanted.max())) + 1
    right = dict.fromkeys(k, 0)
    for part in blocks(len(wanted), QUERY_CHUNK):
        some = Neighbours(found.similarities[part], found.indices[part])
        for each in k:
            right[each] += int((vote(some, labels, num_classes, each, temperature).argmax(1) == wanted[part]).sum())
    return {each: 100 * count / len(wanted) for each, count in right.items()}


class Knn(Evaluation):
    """See `KnnSettings`."""

    def __init__(self, database: LabelledSet, queries: LabelledSet, k: Sequence[int], temperature: float):
        self.database, self.queries, self.k, self.temperature = database, queries, list(k), temperature
        self.wanted = labels_in(database, queries)

    def run(self, predict: Predict, bench: Bench) -> Result:
        """Accuracy for each k of every model; the floor is k-NN on thumbnails."""
        broken = Broken()
        every = {**predict, "pixels": pixels()}
        known, asked = (summaries(images, every, bench, broken) for images in (self.database, self.queries))
        labels = torch.tensor(self.database.labels)
        rows: dict[str, dict[str, float]] = {}
        for name in every:
            found = nearest_rows(asked[name].features, known[name].features, max(self.k), bench.device)
            own, wanted = labels[known[name].indices], self.wanted[asked[name].indices]
            reached = accuracies(found, own, wanted, self.k, self.temperature)
            rows[name] = {f"k{k}": value for k, value in reached.items()}
        floors = rows.pop("pixels")
        counts = {"database": len(self.database), "queries": len(self.queries), "classes": len(self.database.classes)}
        return Result(
            metrics=[Metric(f"k{k}", f"k={k}") for k in self.k],
            rows=rows,
            counts=counts | {"broken": len(broken.reasons)},
            fingerprint=f"{self.database.fingerprint()}-{self.queries.fingerprint()}",
            floors=floors,
            floor="raw pixels",
            notes=(*broken.note(), PIXELS_NOTE),
        )
