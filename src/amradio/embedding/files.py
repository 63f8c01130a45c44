"""All parts of a job as one file: safetensors or Parquet, in memory of one part."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..files import aside, disk_errors
from .parts import Parts

CODES = {torch.float16: "F16", torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}
"""Of the safetensors format."""


class Column(NamedTuple):
    """One tensor of the whole file."""

    name: str
    dtype: torch.dtype
    rows: int
    dim: int


def write_safetensors(parts: Parts, numbers: Sequence[int], out: BinaryIO, about: Mapping[str, str]) -> None:
    """One tensor a column, rows in the order of the images, and `keys`: uint8, the letters of a JSON list.

    The library writes only what is in memory, so the header (a length of 8 bytes, then JSON) is written here, and the tensors behind it
    part by part: https://huggingface.co/docs/safetensors, "Format". Keys are a tensor because the header is limited to 100 MB.
    """
    columns = sorted(_columns(parts, numbers), key=lambda column: (-column.dtype.itemsize, column.name))
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for column in columns:
        begin, end = end, end + column.rows * column.dim * column.dtype.itemsize
        header[column.name] = {"dtype": CODES[column.dtype], "shape": [column.rows, column.dim], "data_offsets": [begin, end]}
    length = sum(len(piece) for piece in _keys(parts, numbers))
    header["keys"] = {"dtype": "U8", "shape": [length], "data_offsets": [end, end + length]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for column in columns:
        for number in numbers:
            if column.name in parts.shapes(number):
                out.write(parts.tensor(number, column.name).contiguous().numpy().tobytes())
    for piece in _keys(parts, numbers):
        out.write(piece)


def _columns(parts: Parts, numbers: Sequence[int]) -> list[Column]:
    columns: dict[str, Column] = {}
    for number in numbers:
        shapes = parts.shapes(number)
        for name, (rows, dim) in shapes.items():
            if name not in columns:
                columns[name] = Column(name, parts.tensor(number, name).dtype, 0, dim)
            columns[name] = columns[name]._replace(rows=columns[name].rows + rows)
    return list(columns.values())


def _keys(parts: Parts, numbers: Sequence[int]) -> Iterator[bytes]:
    """A JSON list of all keys, piece by piece."""
    yield b"["
    is_first = True
    for number in numbers:
        part = parts.read(number)
        if part is not None and part.keys:
            yield (b"" if is_first else b", ") + json.dumps(part.keys).encode()[1:-1]
            is_first = False
    yield b"]"


def write_parquet(parts: Parts, numbers: Sequence[int], out: BinaryIO, about: Mapping[str, str]) -> None:
    """Columns `key`, and one a name; a row an image, a row group a part. Vectors are lists of a fixed size, maps lists of vectors."""
    import pyarrow
    from pyarrow import parquet

    writer: Any = None
    for number in numbers:
        part = parts.read(number)
        if part is None or not part.keys:
            continue
        tensors = dict(parts.tensors(number))
        arrays = {"key": pyarrow.array(part.keys, pyarrow.string())}
        arrays |= {name: _arrow(pyarrow, tensors[name], tensors.get(f"{name}.grid")) for name in sorted(tensors)}
        table = pyarrow.table(arrays)
        if writer is None:
            writer = parquet.ParquetWriter(out, table.schema.with_metadata(dict(about)))
        writer.write_table(table.cast(writer.schema), row_group_size=len(part.keys))
    writer.close()


def _arrow(pyarrow: Any, rows: Tensor, grid: Tensor | None) -> Any:
    """[N, D] as N lists; with the grids of N images, [cells, D] as N lists of lists."""
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1).numpy()), rows.shape[1])
    if grid is None:
        return vectors
    ends = [0, *itertools.accumulate(grid.prod(1).tolist())]
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(ends, pyarrow.int64()), vectors)


Writer = Callable[[Parts, Sequence[int], BinaryIO, Mapping[str, str]], None]
WRITERS: dict[str, Writer] = {".safetensors": write_safetensors, ".parquet": write_parquet}
"""By the ending of the file."""


def find_writer(out: Path) -> Writer:
    """The writer for a file's ending; raises UserError where there is none, or its library is missing."""
    if out.suffix not in WRITERS:
        raise UserError(f"out: {out}: the ending gives the format; available: {', '.join(WRITERS)}")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(f"out: {out}: Parquet takes the library pyarrow; pip install 'amradio[data]', or write .safetensors") from None
    return WRITERS[out.suffix]


def join(parts: Parts, numbers: Sequence[int], out: Path, about: Mapping[str, str]) -> None:
    """Writes the file aside, then renames it; the parts stay. A failure leaves no unfinished file behind."""
    with disk_errors(out.parent), aside(out) as unfinished, unfinished.open("wb") as file:
        find_writer(out)(parts, numbers, file, about)
