"""Images in, batches out; this room knows no model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Self

import pydantic

from ..config import AsTuple, Factor, Settings, Share, Workers, one_of
from ..lazy import lazily
from .holdout import Part
from .mixture import MixtureSettings
from .source import Source, SourceSettings
from .sources import SINGLE_SOURCES

SOURCES: tuple[type[SourceSettings], ...] = (*SINGLE_SOURCES, MixtureSettings)

if TYPE_CHECKING:
    from .batch import Batch
    from .loader import Feed

    AnySource = SourceSettings
else:
    AnySource = one_of(SOURCES)

__all__ = [
    "SOURCES",
    "AnySource",
    "Batch",
    "DataSettings",
    "Feed",
    "Source",
    "SourceSettings",
    "check",
    "describe",
    "train_batches",
    "val_batches",
]

__getattr__ = lazily(__name__, {"Batch": "batch", "Feed": "loader"})


class DataSettings(Settings):
    """Where images come from and how views are cut out of them."""

    train: AnySource
    """The source of every partition that names none of its own."""
    val: AnySource | None = None
    """Held-out images, for validation."""
    hold_out: Annotated[float, pydantic.Field(gt=0, le=0.5)] | None = None
    """Share of `train` that is never trained on and serves as `val`: for those who have one folder. Every k-th image in the fixed order."""
    crop_scale: Annotated[tuple[Share, Share], AsTuple] = (0.4, 1.0)
    """Part of the image's area that a view shows, drawn uniformly between the two."""
    crop_ratio: Annotated[tuple[Factor, Factor], AsTuple] = (3 / 4, 4 / 3)
    """Width to height of the part that becomes a (square) view, drawn log-uniformly between the two."""
    flip: Share = 0.5
    """How often a view is mirrored left to right."""
    num_workers: Workers | None = None
    """Loading processes for each process of the run; null: the cores that are there, less one; 0: none."""

    @pydantic.model_validator(mode="after")
    def _in_range(self) -> Self:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: two numbers in (0, 1], the smaller first, found {list(self.crop_scale)}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: two numbers above 0, the smaller first, found {list(self.crop_ratio)}")
        if self.val is not None and self.hold_out is not None:
            raise ValueError("hold_out: there is a val source already; leave one of the two out (hold_out=null)")
        return self

    @property
    def has_val(self) -> bool:
        """Whether there are held-out images."""
        return self.val is not None or self.hold_out is not None

    def open_train(self, source: SourceSettings) -> Source:
        """`source`, less what is held out where it is `train`."""
        opened = source.build()
        return Part(opened, self.hold_out, held_out=False) if self.hold_out is not None and source == self.train else opened

    def open_val(self) -> Source:
        """The held-out images; there must be some."""
        if self.val is not None:
            return self.val.build()
        assert self.hold_out is not None, "there is neither val nor hold_out"
        return Part(self.train.build(), self.hold_out, held_out=True)


def train_batches(settings: DataSettings, source: SourceSettings, feed: "Feed", start_step: int = 0) -> "Iterator[Batch]":
    """Batches of the steps start_step, start_step + 1, ... without end; closing the iterator ends its workers.

    Images are uint8 [feed.batch_size / feed.world_size, 3, feed.image_size, feed.image_size]. Step k of one seed is the same
    on any number of processes and workers and after any resume. UnreadableError images are replaced and named in `skipped`.
    Raises UserError where the source is missing or gives out.
    """
    from .loader import Crop, train_loader

    crop = Crop(settings.crop_scale, settings.crop_ratio, settings.flip)
    return train_loader(settings.open_train(source), feed, crop, start_step, settings.num_workers)


def val_batches(settings: DataSettings, source: SourceSettings | None, feed: "Feed", limit: int | None = None) -> "Iterator[Batch]":
    """The first `limit` images (None: all), each once and in a fixed order: short side resized, central square.

    source: None for the held-out images of `settings`.

    The last batch may be smaller, none is empty; unreadable images are left out and named in `skipped`. Each process gets
    its share of every batch. Raises UserError where not one image can be read.
    """
    from .loader import val_loader

    return val_loader(source.build() if source else settings.open_val(), feed, limit, settings.num_workers)


def describe(source: SourceSettings) -> str:
    """`3,490 images in /path`, and what was passed over there; raises UserError where the source is missing."""
    built = source.build()
    return "; ".join((built.describe(), *built.notes()))


def check(source: SourceSettings) -> None:
    """Raises UserError where the source is missing, empty, or holds not a single readable image."""
    source.build().check()
