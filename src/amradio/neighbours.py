"""Exact nearest neighbours by cosine similarity, in chunks; bfloat16 first where the CPU multiplies it in hardware."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import computes_bfloat16
from .errors import UserError

DATABASE_CHUNK, QUERY_CHUNK = 4096, 1024
"""Rows at a time: the similarities of a chunk are 8 MiB in bfloat16."""
FIRST_TILE = 1024
"""Rows of the first chunk that are looked at before the others."""
GROUP = 32
"""Similarities of which the largest is looked at first."""
MOST = 1 / 5
"""Share of the groups beyond which it is quicker to look at all similarities."""
UNIT, SLACK = 2**-9, 2**-20
"""By what part of itself a number changes at most when it becomes bfloat16; and what is allowed for the rounding of float32 sums."""
COLUMNS = 32
"""Columns that are added for the products around a centre: one, and zeros up to what the hardware multiplies at once."""
PAIRS = 2048
"""Pairs of vectors that are multiplied at once."""


class Neighbours(NamedTuple):
    """The nearest rows of a database, nearest first."""

    similarities: Tensor
    """float [Q, k], cosines."""
    indices: Tensor
    """int64 [Q, k], rows of the database."""


@torch.no_grad()
def nearest_rows(
    queries: Tensor, database: Tensor | np.ndarray, k: int, device: torch.device | str = "cpu", chunks: tuple[int, int] | None = None
) -> Neighbours:
    """The k most similar rows (cosine) of `database` [N, D] to each of `queries` [Q, D]; any float type, computed in float32
    (float64 where the queries are). The answer lies on the CPU.

    The database may be a memory map: it is read once, in chunks; memory is that of the queries, one chunk and its similarities.
    Where the CPU multiplies bfloat16 in hardware, similarities are found in bfloat16 first, and in float32 only for rows that can be among
    the k nearest, whatever bfloat16 has rounded away: the neighbours are those of float32, up to its own rounding.
    chunks: rows of (database, queries) at a time. Raises UserError where the database has fewer than k rows.
    """
    if k > len(database):
        raise UserError(f"k: {k} neighbours were asked for, the database has {len(database)} images")
    database_chunk, query_chunk = chunks or (DATABASE_CHUNK, QUERY_CHUNK)
    device, dtype = torch.device(device), torch.float64 if queries.dtype == torch.float64 else torch.float32
    rounds = device.type == "cpu" and dtype == torch.float32 and computes_bfloat16(device)
    asked, centre = None, None
    best = torch.full((len(queries), k), -torch.inf, dtype=dtype, device=device)
    where = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
    for start in range(0, len(database), database_chunk):
        chunk = database[start : start + database_chunk]
        rows = F.normalize((chunk if isinstance(chunk, Tensor) else torch.from_numpy(np.array(chunk))).to(device, dtype), dim=1)
        if asked is None:
            centre = rows.mean(0) if rounds else None
            asked = _vectors(F.normalize(queries.to(device, dtype), dim=1), centre, is_asked=True)
        known = _vectors(rows, centre)
        for part in blocks(len(queries), query_chunk):
            for tile in _tiles(start, len(chunk)):
                _search(asked.some(part), known.some(tile), best[part], where[part], start + tile.start)
    return Neighbours(best.cpu(), where.cpu())


class _Vectors(NamedTuple):
    """Vectors of length 1, and what is multiplied first: in bfloat16 around a common centre, or the vectors as they are.

    With a centre m, q r = q m + (q - m)(r - m) + m (r - m). The first term is the same for all rows of a query. Features of real images
    have a large common part, and only what differs should be rounded.
    """

    exact: Tensor
    """[N, D]."""
    coarse: Tensor
    """bfloat16 [N, D + COLUMNS]: less the centre; then 1 (queries) or m (r - m) (database); then zeros. Or `exact`."""
    norms: Tensor
    """[N, 1]: length of what was rounded; 0 where nothing was."""
    shift: Tensor
    """[N, 1]: q m (queries) or m (r - m) (database); 0 without a centre."""

    def some(self, part: slice) -> "_Vectors":
        """Some of the vectors."""
        return _Vectors(*(vectors[part] for vectors in self))


def _vectors(exact: Tensor, centre: Tensor | None, is_asked: bool = False) -> _Vectors:
    """exact: [N, D], of length 1; centre: [D], None for no rounding."""
    if centre is None:
        nothing = exact.new_zeros(len(exact), 1)
        return _Vectors(exact, exact, nothing, nothing)
    along, length = (exact @ centre)[:, None], centre @ centre
    coarse = torch.zeros(len(exact), exact.shape[1] + COLUMNS, dtype=torch.bfloat16)
    torch.sub(exact, centre, out=coarse[:, : exact.shape[1]])
    shift = along if is_asked else along - length
    coarse[:, exact.shape[1]] = 1 if is_asked else shift[:, 0]
    return _Vectors(exact, coarse, (1 - 2 * along + length).clamp_min(0).sqrt(), shift)


def _tiles(seen: int, count: int) -> Iterator[slice]:
    """Parts of `count` rows: at first as many as were seen before, so that few of the next ones can be nearer than the k nearest so far."""
    start = 0
    while start < count:
        size = min(max(FIRST_TILE, seen + start), count - start)
        yield slice(start, start + size)
        start += size


def _search(asked: _Vectors, known: _Vectors, best: Tensor, where: Tensor, offset: int) -> None:
    """Puts those of `known` [N, D] that are nearer into `best` and `where` [Q, k], sorted, in place. offset: the number of the first."""
    coarse = asked.coarse @ _padded(known.coarse).T
    # Rounding keeps the order: where the sum of rounded products is not below this, its rounding is not below the rounding of this.
    error = UNIT * ((2 + UNIT) * asked.norms * known.norms.max() + known.shift.abs().max()) + SLACK
    least = (best[:, -1:] - asked.shift - error).to(coarse.dtype)
    pairs = _reaching(coarse, least, len(known.exact))
    if pairs is None:
        values, indices = (asked.exact @ known.exact.T).topk(min(best.shape[1], len(known.exact)))
        _merge(best, where, values, indices + offset)
        return
    rows, columns = pairs
    values = coarse[rows, columns] if coarse.dtype == known.exact.dtype else _products(asked.exact, rows, known.exact, columns)
    nearer = values > best[rows, -1]
    _merge_pairs(best, where, rows[nearer], values[nearer], columns[nearer] + offset)


def _padded(rows: Tensor) -> Tensor:
    """With rows of zeros behind, up to a multiple of `GROUP`."""
    return F.pad(rows, (0, 0, 0, -len(rows) % GROUP))


def _reaching(similarities: Tensor, least: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """(rows, columns) of [Q, N] where a similarity in the first `count` columns is not below `least` [Q, 1], by row; None for too many.

    The largest of each group of `GROUP` columns is looked at first.
    """
    groups = similarities.unflatten(1, (GROUP, -1))
    rows, places = (groups.amax(1) >= least).nonzero(as_tuple=True)
    if len(rows) > MOST * similarities.numel() / GROUP:
        return None
    hits, members = (groups[rows, :, places] >= least[rows]).nonzero(as_tuple=True)
    rows, columns = rows[hits], members * groups.shape[2] + places[hits]
    inside = columns < count
    return (rows[inside], columns[inside]) if len(rows) <= MOST * similarities.numel() / GROUP else None


def _products(one: Tensor, rows: Tensor, other: Tensor, columns: Tensor) -> Tensor:
    """[P]: the products of row `rows[p]` of `one` with row `columns[p]` of `other`."""
    parts = [one.index_select(0, rows[part]).mul_(other.index_select(0, columns[part])).sum(1) for part in blocks(len(rows), PAIRS)]
    return torch.cat(parts) if parts else one.new_empty(0)


def _merge_pairs(best: Tensor, where: Tensor, rows: Tensor, values: Tensor, indices: Tensor) -> None:
    """Puts pairs (sorted by row) into `best` and `where`, in place; rows without a pair are left alone."""
    touched, counts = rows.unique_consecutive(return_counts=True)
    if not len(touched):
        return
    line = torch.arange(len(touched), device=rows.device).repeat_interleave(counts)
    column = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[line]
    shape = len(touched), int(counts.max())
    table = best.new_full(shape, -torch.inf)
    table[line, column] = values
    numbers = where.new_full(shape, -1)
    numbers[line, column] = indices
    some, places = best[touched], where[touched]
    _merge(some, places, table, numbers)
    best[touched], where[touched] = some, places


def _merge(best: Tensor, where: Tensor, values: Tensor, indices: Tensor) -> None:
    """Puts the better ones into `best` and `where` [Q, k], in place."""
    merged, places = torch.cat((best, values), 1).topk(best.shape[1])
    where.copy_(torch.cat((where, indices), 1).gather(1, places))
    best.copy_(merged)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `count` rows."""
    return (slice(start, start + size) for start in range(0, count, size))
