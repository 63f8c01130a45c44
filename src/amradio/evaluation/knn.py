"""k nearest neighbours with the weighted vote of DINO: what a feature knows of classes without training anything."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .base import Bench, Evaluation, EvaluationSettings, Metric, Positive, Predict, Result
from .images import Broken
from .labelled import AnyLabelled, LabelledSet, labels_in
from .pixels import PIXELS_NOTE, pixels
from .summaries import summaries

DATABASE_CHUNK, QUERY_CHUNK = 16384, 1024
"""Rows at a time: the similarities of a chunk are 64 MiB in float32."""
GROUP = 32
"""Similarities of which the largest is looked at first."""


class KnnSettings(EvaluationSettings):
    """Cosine k-NN, votes weighted by exp(similarity / temperature) (DINO; AM-RADIO uses k = 20 and 0.07)."""

    type: Literal["knn"] = "knn"
    database: AnyLabelled
    """Images whose classes are known."""
    queries: AnyLabelled
    """Images whose classes are asked for."""
    k: list[Positive] = pydantic.Field([20], min_length=1)
    """Numbers of neighbours, all measured at once."""
    temperature: float = pydantic.Field(0.07, gt=0)
    """Of the vote."""

    def build(self) -> "Knn":
        """Opens both sets; raises UserError where one is missing or their classes do not match."""
        return Knn(self.database.build(), self.queries.build(), self.k, self.temperature)


class Neighbours(NamedTuple):
    """The nearest rows of a database, nearest first."""

    similarities: Tensor
    """float [Q, k], cosines."""
    indices: Tensor
    """int64 [Q, k], rows of the database."""


def nearest_rows(
    queries: Tensor, database: Tensor | np.ndarray, k: int, device: torch.device | str = "cpu", chunks: tuple[int, int] | None = None
) -> Neighbours:
    """The k most similar rows (cosine) of `database` [N, D] to each of `queries` [Q, D]; any float type, computed in float32
    (float64 where the queries are). The answer lies on the CPU.

    The database may be a memory map: it is read once, in chunks; memory is that of the queries, one chunk and its similarities.
    chunks: rows of (database, queries) at a time. Raises UserError where the database has fewer than k rows.
    """
    if k > len(database):
        raise UserError(f"k: {k} neighbours were asked for, the database has {len(database)} images")
    database_chunk, query_chunk = chunks or (DATABASE_CHUNK, QUERY_CHUNK)
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    normalised = F.normalize(queries.to(device, dtype), dim=1)
    best = normalised.new_full((len(queries), k), -torch.inf)
    where = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    for start in range(0, len(database), database_chunk):
        chunk = database[start : start + database_chunk]
        rows = (chunk if isinstance(chunk, Tensor) else torch.from_numpy(np.array(chunk))).to(device, dtype)
        rows = F.normalize(rows, dim=1)
        for first in range(0, len(queries), query_chunk):
            part = slice(first, first + query_chunk)
            values, indices = _top(normalised[part] @ rows.T, k)
            _merge(best[part], where[part], values, indices + start)
    return Neighbours(best.cpu(), where.cpu())


def _top(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of [Q, N] (all, where there are fewer), exactly.

    They lie in the k groups with the largest maxima, so only these are looked through.
    """
    count = similarities.shape[1]
    whole = count // GROUP * GROUP
    if whole // GROUP <= 4 * k or whole != count:
        return _plain_top(similarities, k)
    groups = similarities.unflatten(1, (-1, GROUP))
    leaders = groups.amax(-1).topk(k, sorted=False).indices
    candidates = groups.gather(1, leaders[..., None].expand(-1, -1, GROUP)).flatten(1)
    values, places = candidates.topk(k)
    return values, leaders.gather(1, places // GROUP) * GROUP + places % GROUP


def _plain_top(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = similarities.topk(min(k, similarities.shape[1]))
    return values, indices


def _merge(best: Tensor, where: Tensor, values: Tensor, indices: Tensor) -> None:
    """Puts the better ones into `best` and `where` [Q, k], in place."""
    merged, places = torch.cat((best, values), 1).topk(best.shape[1])
    where.copy_(torch.cat((where, indices), 1).gather(1, places))
    best.copy_(merged)


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
    for part in _parts(len(wanted), QUERY_CHUNK):
        some = Neighbours(found.similarities[part], found.indices[part])
        for each in k:
            right[each] += int((vote(some, labels, num_classes, each, temperature).argmax(1) == wanted[part]).sum())
    return {each: 100 * count / len(wanted) for each, count in right.items()}


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


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
            rows[name] = {f"k={k}": value for k, value in reached.items()}
        floors = rows.pop("pixels")
        counts = {"database": len(self.database), "queries": len(self.queries), "classes": len(self.database.classes)}
        return Result(
            metrics=[Metric(f"k={k}") for k in self.k],
            rows=rows,
            counts=counts | {"broken": len(broken.reasons)},
            fingerprint=f"{self.database.fingerprint()}-{self.queries.fingerprint()}",
            floors=floors,
            notes=(*broken.note(), PIXELS_NOTE),
        )
