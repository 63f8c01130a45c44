"""Images in, batches out; this room knows no model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Self

import pydantic

from ..config import AsTuple, Factor, ReadingProcesses, Settings, Share, one_of
from ..lazy import lazily
from .holdout import HoldOut
from .mixture import MixtureSettings
from .source import Source, SourceSettings
from .sources import SINGLE_SOURCES

SOURCES: tuple[type[SourceSettings], ...] = (*SINGLE_SOURCES, MixtureSettings)

if TYPE_CHECKING:
    from ..batch import Batch
    from .loader import Feed

    AnySource = SourceSettings
else:
    AnySource = one_of(SOURCES)

__all__ = [
    "SOURCES",
    "AnySource",
    "DataSettings",
    "Feed",
    "OpenData",
    "Source",
    "SourceSettings",
    "describe",
]

__getattr__ = lazily(__name__, {"Feed": "loader"})


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
    """Width to height of the part that becomes a square view, drawn log-uniformly between the two; that of others is it times theirs."""
    flip: Share = 0.5
    """How often a view is mirrored left to right."""
    num_workers: ReadingProcesses = None

    @pydantic.model_validator(mode="after")
    def _in_range(self) -> Self:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: two numbers in (0, 1], the smaller first, found {list(self.crop_scale)}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio: two numbers above 0, the smaller first, found {list(self.crop_ratio)}")
        if self.val is not None and self.hold_out is not None:
            raise ValueError(
                "val and hold_out are two ways to name held-out images, and both are set; set one of them to null: data.hold_out=null "
                "measures on data.val, data.val=null on a share of data.train"
            )
        return self

    @property
    def has_val(self) -> bool:
        """Whether there are held-out images."""
        return self.val is not None or self.hold_out is not None


class OpenData:
    """The sources of a run, each opened once and handed to everyone who reads them: to open a folder is to list it."""

    def __init__(self, settings: DataSettings):
        self.settings = settings
        self._sources: dict[str, Source] = {}

    def source(self, settings: SourceSettings) -> Source:
        """The opened source of these settings; raises UserError where it is missing or holds no images."""
        key = settings.model_dump_json()
        if key not in self._sources:
            self._sources[key] = settings.build()
        return self._sources[key]

    def train(self, settings: SourceSettings) -> Source:
        """The source of a partition, less what is held out where it is `data.train`."""
        source, share = self.source(settings), self.settings.hold_out
        return HoldOut(source, share, held_out=False) if share is not None and settings == self.settings.train else source

    def val(self) -> Source:
        """The held-out images; there must be some (`DataSettings.has_val`)."""
        if self.settings.val is not None:
            return self.source(self.settings.val)
        assert self.settings.hold_out is not None, "there is neither val nor hold_out"
        return HoldOut(self.source(self.settings.train), self.settings.hold_out, held_out=True)

    def train_batches(self, source: SourceSettings, feed: "Feed", start_step: int = 0, num_workers: int | None = None) -> "Iterator[Batch]":
        """Batches of the steps start_step, start_step + 1, ... without end; closing the iterator ends its workers.

        Images are uint8 [feed.batch_size / feed.world_size, 3, *feed.sides]. Step k of one seed is the same
        on any number of processes and workers and after any resume. Unreadable images are replaced; each is listed in `skipped`.
        num_workers: loading processes; None for those of the settings.
        Raises UserError where the source is missing or gives out.
        """
        from .loader import Crop, train_loader

        settings = self.settings
        crop = Crop(settings.crop_scale, settings.crop_ratio, settings.flip)
        workers = settings.num_workers if num_workers is None else num_workers
        return train_loader(self.train(source), feed, crop, start_step, workers)

    def val_batches(self, feed: "Feed", limit: int | None = None) -> "Iterator[Batch]":
        """The first `limit` held-out images (None: all), each once and in a fixed order: the central part of the aspect of the feed.

        The last batch may be smaller, none is empty; unreadable images are left out, each is listed in `skipped`. Each process gets
        its share of every batch. Raises UserError where not one image can be read.
        """
        from .loader import val_loader

        return val_loader(self.val(), feed, limit, self.settings.num_workers)


def describe(source: Source) -> str:
    """`3,490 images in /path`, and what was passed over there."""
    return "; ".join((source.describe(), *source.notes()))
