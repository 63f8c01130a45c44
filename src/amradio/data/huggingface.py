"""The image column of a `datasets` data set: saved to disk, in Parquet files, or on the Hugging Face hub."""

from typing import Any, Literal

from ..errors import UserError, nearest, shown
from ..files import user_path
from .guard import MAX_BYTES, UnreadableError, read_file
from .source import ImageId, Source, SourceSettings


class HuggingFaceSettings(SourceSettings):
    """One split of a data set of the library `datasets`; keys are row numbers."""

    type: Literal["huggingface"] = "huggingface"
    path: str
    """A folder written by `save_to_disk`, a Parquet file or a folder of them, or a name on the hub such as `owner/name`."""
    split: str = "train"
    """The split, where there are several."""
    image: str = "image"
    """The column with the images."""

    def build(self) -> "HuggingFace":
        """Opens the data set (downloads it where `path` is a name on the hub); raises UserError where that fails."""
        return HuggingFace(self.path, self.split, self.image)


class HuggingFace(Source):
    """Images of one column."""

    def __init__(self, path: str, split: str, image: str) -> None:
        self.path, self.split, self.image = path, split, image
        try:
            import datasets
        except ImportError:
            raise UserError(f"{path}: reading it takes the library 'datasets'; pip install 'amradio[data]'") from None
        table = _open_table(datasets, path, split)
        if image not in table.column_names:
            raise UserError(f"{path}: there is no column '{image}'; {nearest(image, table.column_names)}")
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        self.table = table.select_columns([image])
        if not len(self.table):
            raise UserError(f"{path}: the split '{split}' has no rows; name another one")

    def describe(self) -> str:
        """`1,000 images in owner/name (split train, column image)`."""
        return f"{self.count():,} image{'s' * (self.count() != 1)} in {shown(self.path)} (split {self.split}, column {self.image})"

    def count(self, limit: int | None = None) -> int:
        """How many rows there are, at most `limit`."""
        return len(self.table) if limit is None else min(limit, len(self.table))

    def key(self, image_id: ImageId) -> str:
        """`split/row`."""
        return f"{self.split}/{image_id:09d}"

    def read(self, image_id: ImageId) -> bytes:
        """The bytes of the image. Raises UnreadableError or OSError."""
        try:
            value = self.table[image_id][self.image]
        except Exception as error:  # damaged columns raise what pyarrow and the library have
            raise UnreadableError(f"the row cannot be read ({type(error).__name__}: {error})") from None
        if isinstance(value, dict):
            value = value.get("bytes") or (value.get("path") and read_file(value["path"]))
        if not isinstance(value, bytes):
            raise UnreadableError(f"column '{self.image}' holds no image here, but {type(value).__name__}")
        if len(value) > MAX_BYTES:
            raise UnreadableError(f"{len(value):,} bytes are more than the limit of {MAX_BYTES:,} for one picture")
        return value


def _open_table(datasets: Any, path: str, split: str) -> Any:
    """A `datasets.Dataset`; everything that can be wrong with it becomes a UserError."""
    local = user_path(path)
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"{shown(local)}: there is no such folder or file; give one, or a name on the hub such as owner/name")
    try:
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            table = datasets.load_from_disk(str(local))
        elif local.is_file():
            table = datasets.load_dataset("parquet", data_files={split: [str(local)]}, split=split)
        else:
            table = datasets.load_dataset(str(local) if local.exists() else path, split=split)
    except Exception as error:  # the library raises its own, pyarrow's, the hub's and the network's
        raise UserError(f"{path} (split {split}): datasets cannot open it: {type(error).__name__}: {error}") from error
    if isinstance(table, dict):
        if split not in table:
            raise UserError(f"{path}: there is no split '{split}'; {nearest(split, table)}")
        table = table[split]
    return table
