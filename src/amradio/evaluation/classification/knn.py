"""k nearest neighbours with the weighted vote of DINO: how well features separate classes, without training anything."""

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
    """Images to classify."""
    k: list[Positive] = pydantic.Field([20], min_length=1)
    """Numbers of neighbours, all measured at once."""
    temperature: Annotated[float, pydantic.Field(gt=0, le=1000)] = 0.07
    """Of the vote."""

    def build(self) -> "Knn":
        """Opens both sets; raises UserError where one is missing or their classes do not match."""
        return Knn(self.database.build(), self.queries.build(), self.k, self.temperature)


def vote(neighbours: Neighbours, labels: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    """Shares of the classes [Q, num_classes] in the vote of the nearest k, in the type of the similarities; rows sum to 1.

    labels: int64 [N] of the database. A neighbour's weight is exp(similarity / temperature).
    """
    similarities = neighbours.similarities[:, :k]
    weights = ((similarities - similarities[:, :1]) / temperature).exp()  # relative to the nearest: shares stay the same
    shares = weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels[neighbours.indices[:, :k]], weights)
    return shares / weights.sum(1, keepdim=True)


def accuracies(neighbours: Neighbours, labels: Tensor, wanted: Tensor, k: Sequence[int], temperature: float) -> dict[int, float]:
    """{k: per cent of the queries that are given their class}; wanted: int64 [Q]."""
    num_classes = int(max(labels.max(), wanted.max())) + 1
    right = dict.fromkeys(k, 0)
    for part in blocks(len(wanted), QUERY_CHUNK):
        some = Neighbours(neighbours.similarities[part], neighbours.indices[part])
        for count in k:
            right[count] += int((vote(some, labels, num_classes, count, temperature).argmax(1) == wanted[part]).sum())
    return {count: 100 * num_right / len(wanted) for count, num_right in right.items()}


class Knn(Evaluation):
    """Accuracy of the weighted vote of the nearest summaries of a database: the evaluation `knn`."""

    is_shared = True

    def __init__(self, database: LabelledSet, queries: LabelledSet, k: Sequence[int], temperature: float):
        self.database, self.queries, self.k, self.temperature = database, queries, list(k), temperature
        self.wanted = labels_in(database, queries)

    def run(self, predict: Predict, bench: Bench) -> Result:
        """Accuracy for each k of every model; the floor is k-NN on thumbnails."""
        broken = Broken()
        every = {**predict, "pixels": pixels()}
        database, queries = (summaries(images, every, bench, broken) for images in (self.database, self.queries))
        labels = torch.tensor(self.database.labels)
        rows: dict[str, dict[str, float]] = {}
        for name in every:
            neighbours = _neighbours(queries[name].features, database[name].features, max(self.k), bench)
            database_labels, wanted = labels[database[name].indices], self.wanted[queries[name].indices]
            reached = accuracies(neighbours, database_labels, wanted, self.k, self.temperature)
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


def _neighbours(queries: Tensor, database: Tensor, k: int, bench: Bench) -> Neighbours:
    """The k nearest rows of the database to each query; several processes share the queries out."""
    chunks = list(blocks(len(queries), QUERY_CHUNK))

    def search(numbers: range) -> dict[int, Neighbours]:
        if not numbers:
            return {}
        nearest = nearest_rows(torch.cat([queries[chunks[number]] for number in numbers]), database, k, bench.device)
        parts = zip(numbers, *(tensor.split(QUERY_CHUNK) for tensor in nearest), strict=True)
        return {number: Neighbours(similarities.clone(), indices.clone()) for number, similarities, indices in parts}

    parts = bench.share.collect(search, len(chunks))
    return Neighbours(torch.cat([part.similarities for part in parts]), torch.cat([part.indices for part in parts]))
