"""A file of `amradio embed`, read again: the images of a set that are nearest to another one."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.decode import UnreadableError, decode
from ..data.full_images import open_images
from ..errors import UserError, shown
from ..features import Features
from ..files import user_path
from ..image_input import Picture
from ..neighbours import nearest_rows
from ..tensors import check_weights

COLUMNS = ("summary", "spatial")
"""Of the backbone; the first that a file has is compared."""


class Embedder(Protocol):
    """What is needed of a model (`amradio.Model`)."""

    @property
    def config(self) -> Any:
        """As in config.json."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Weights by name."""
        ...

    def features(self, images: Any, heads: Any = None, size: Any = None) -> Any:
        """Features of a picture."""
        ...


class Neighbour(NamedTuple):
    """An image of the set."""

    key: str
    similarity: float
    """Cosine of its features and those that were asked for."""


class EmbeddedSet:
    """Features of many images as `amradio embed` wrote them, and where these images are."""

    def __init__(self, keys: list[str], features: Tensor, about: Mapping[str, str], images: str | Path | None = None):
        """keys: N names. features: [N, D]. about: the metadata of the file.

        images: the folder, list or shards that were embedded, from which pictures are read; None where only names are wanted.
        """
        self.keys, self.features, self.about = keys, features, about
        self._source = None if images is None else open_images(images)
        self._numbers: dict[str, int] = {}

    @classmethod
    def read(cls, file: str | Path, images: str | Path | None = None) -> Self:
        """Reads a .safetensors or .parquet file of `amradio embed`; arguments as of the class.

        Raises UserError where it is missing, damaged, or holds neither summaries nor pooled maps of the backbone.
        """
        path = user_path(file, "embeddings")
        if not path.is_file():
            raise UserError(f"{shown(path)}: there is no such file; give one that `amradio embed` wrote")
        keys, features, about = _read_parquet(path) if path.suffix == ".parquet" else _read_safetensors(path)
        is_whole = features is not None and features.is_floating_point() and features.ndim == 2 and len(keys) == len(features) > 0
        if features is None or not is_whole or "model" not in about or not all(isinstance(key, str) for key in keys):
            raise UserError(
                f"{shown(path)}: it holds no summary (or pooled map) for each of its images; write it with `amradio embed`, whose default "
                "is the summary, or with spatial=pooled for a model that has none"
            )
        return cls(keys, features, about, images)

    @property
    def image_size(self) -> int | Literal["own"]:
        """px of the short side at which the images were embedded, or `own`."""
        size = self.about.get("image_size", "own")
        return int(size) if size.isdigit() else "own"

    def nearest(self, model: Embedder, image: Picture, k: int) -> list[Neighbour]:
        """The k images of the set that are nearest to a picture, or all of fewer, the nearest first.

        Raises UserError where the set was embedded by another model.
        """
        stated, present = self.about["model"], fingerprint(model)
        if stated != present:
            raise UserError(
                f"neighbours: the set was embedded by another model (fingerprint {stated}, this one has {present}); run `amradio embed` "
                "with this model"
            )
        query = _vector(model.features(image, None, self.image_size))
        best = nearest_rows(query.float().cpu(), self.features.float(), min(k, len(self.keys)))
        pairs = zip(best.indices[0].tolist(), best.similarities[0].tolist(), strict=True)
        return [Neighbour(self.keys[row], similarity) for row, similarity in pairs]

    def picture(self, key: str) -> Picture:
        """An image of the set. Raises UserError where its images were not given, it is not among them, or cannot be read."""
        if self._source is None:
            raise UserError("neighbours: the images of the set were not given, so there is nothing to draw; name their folder")
        if not self._numbers:
            self._numbers = {self._source.key(self._source.nth(number)): number for number in range(self._source.count())}
        if key not in self._numbers:
            raise UserError(f"neighbours: {shown(key)} is not in {self._source.describe()}; name the images that were embedded")
        try:
            return decode(self._source.read(self._source.nth(self._numbers[key])), None)
        except (UnreadableError, OSError) as error:
            raise UserError(f"neighbours: {shown(key)}: it cannot be read as a picture: {error}") from None


def fingerprint(model: Embedder) -> str:
    """16 hex digits of SHA-256 over the model's config, weights and their names."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _vector(features: Features) -> Tensor:
    """[1, D], as it is in a file."""
    if features.summary is not None:
        return features.summary
    assert features.spatial is not None, "a backbone has a summary or a map"
    return features.spatial.mean((1, 2))


_Read = tuple[list[str], Tensor | None, Mapping[str, str]]


def _read_safetensors(path: Path) -> _Read:
    check_weights(path)
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            column = next((name for name in COLUMNS if name in names and f"{name}.grid" not in names), None)
            keys = json.loads(file.get_tensor("keys").numpy().tobytes()) if "keys" in names else []
            return keys, None if column is None else file.get_tensor(column), dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None


def _read_parquet(path: Path) -> _Read:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{shown(path)}: Parquet takes the library pyarrow; pip install 'amradio[data]', or embed to .safetensors"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        about = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        types = {field.name: field.type for field in file.schema_arrow}
        column = next((name for name in COLUMNS if pyarrow.types.is_fixed_size_list(types.get(name))), None)
        if column is None:
            return [], None, about
        table = file.read(columns=["key", column])
        rows = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
        return table["key"].to_pylist(), torch.from_numpy(rows.copy()), about
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return UserError(f"{shown(path)}: not a whole file of `amradio embed` ({reason[:200]}); write it again")
