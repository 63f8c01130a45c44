"""Features of many images into one file; an interrupted call resumes when it is repeated."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from ..data.full_images import CHUNK, WholeImage, whole_images
from ..data.source import Source
from ..devices import DTYPES
from ..engine.lock import Lock
from ..errors import UserError
from ..evaluation.progress import Progress, silent
from ..files import disk_errors, write_aside
from ..model import Model
from ..model.embedded_set import fingerprint
from .batches import InferenceOptions, check_heads, embed_batches, find_options, refuse_nothing
from .files import find_writer, join
from .parts import Columns, Part, Parts, columns
from .settings import EmbedSettings

PART = 512
"""Images of a part; of whole maps fewer, as a part is held in memory."""
PART_OF_MAPS = 64


class Embedded(NamedTuple):
    """What was written."""

    path: Path
    num_images: int
    """Rows of the file."""
    broken: dict[str, str]
    """{key: reason} of the images that could not be read; they are also in `OUT.broken.txt`, one a line."""
    num_resumed: int
    """Images, broken ones included, that an earlier call had done."""


def embed_images(model: Model, source: Source, out: Path, settings: EmbedSettings, progress: Progress = silent) -> Embedded:
    """Writes the features of all readable images of a source, in its order, to `out` (.safetensors or .parquet).

    Parts are kept in the folder `OUT.parts` until all are there; memory is that of a few batches and one part. The file is the same, bit
    for bit, however often the job was stopped, and on any number of workers. Raises UserError where the file exists, the parts are of
    another job, a head is unknown, or not one image can be read.
    """
    heads = check_heads(model, settings.heads)
    check_columns(model, heads, settings)
    find_writer(out)
    options = find_options(model, settings.image_size, settings.batch_size, settings.precision)
    size = PART_OF_MAPS if settings.spatial == "full" else PART
    parts = Parts(out.with_name(f"{out.name}.parts"))
    about = {"model": fingerprint(model), "images": str(source.count()), "images_a_part": str(size), **_written(settings, options)}
    if out.exists() and not parts.folder.exists():
        raise UserError(f"out: {out} exists and is not overwritten; delete it, or give another name")
    if out.parent.exists() and not out.parent.is_dir():
        raise UserError(f"out: {out.parent} is a file; give another name")
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with Lock(out.with_name(f".{out.name}.lock"), f"out: {out}") as lock:
        lock.take()
        if out.exists():
            return _joined_before(parts, out, about)
        parts.begin(about)
        ranges = [range(first, min(first + size, source.count())) for first in range(0, source.count(), size)]
        missing = [number for number, numbers in enumerate(ranges) if not _is_done(parts, number, source, numbers)]
        chunks = [chunk for number in missing for chunk in range(ranges[number].start // CHUNK, -(-ranges[number].stop // CHUNK))]
        total = sum(len(ranges[number]) for number in missing)
        with closing(whole_images(source, chunks, options.least, settings.num_workers)) as reading:
            shown = progress(reading, f"features of {source.describe()}", total)
            for number, images in itertools.groupby(shown, lambda image: image.number // size):
                _write_part(parts, number, (model, heads, options), images, settings)
        return _finish(parts, range(len(ranges)), source, out, about)._replace(num_resumed=source.count() - total)


def check_columns(model: Model, heads: Sequence[str], settings: EmbedSettings) -> None:
    """Raises UserError where a head would have nothing in the file."""
    problems = [
        f"heads: '{name}' has no summary, and maps are left out; ask for spatial pooled or full, or leave the head out"
        for name in heads
        if model.config.heads[name].summary is None and settings.spatial == "none"
    ]
    if problems:
        raise UserError(*problems)


def _joined_before(parts: Parts, out: Path, about: Mapping[str, str]) -> Embedded:
    """The result of this very job, where a kill came between its last two acts; UserError where the file is another's."""
    joined = parts.joined(about)
    if joined is None:
        raise UserError(f"out: {out} exists and is not overwritten; delete it, or give another name")
    parts.remove()
    return Embedded(out, joined["rows"], joined["broken"], int(about["images"]))


def _write_part(
    parts: Parts, number: int, by: tuple[Model, tuple[str, ...], InferenceOptions], images: Iterable[WholeImage], settings: EmbedSettings
) -> None:
    model, heads, options = by
    rows: dict[int, Columns] = {}
    keys: dict[int, str] = {}
    broken: dict[str, str] = {}
    for embedding in embed_batches(model, images, heads, options):
        broken |= embedding.broken
        rows |= zip(embedding.numbers, columns(embedding, settings.spatial, DTYPES[settings.dtype]), strict=True)
        keys |= zip(embedding.numbers, embedding.keys, strict=True)
    parts.write(number, Part([keys[image] for image in sorted(keys)], broken), rows)


def _is_done(parts: Parts, number: int, source: Source, numbers: range) -> bool:
    """Whether a part is there and whole; raises UserError where it holds other images than the source has now."""
    part = parts.read(number, verify=True)
    if part is None:
        return False
    changed = {source.key(source.nth(image)) for image in numbers}.symmetric_difference([*part.keys, *part.broken])
    if changed:
        raise UserError(
            f"{parts.folder}: the images have changed since the job started ({len(changed)} in part {number}, e.g. {min(changed)}); "
            "delete the folder to start again"
        )
    return True


def _finish(parts: Parts, numbers: range, source: Source, out: Path, about: dict[str, str]) -> Embedded:
    broken: dict[str, str] = {}
    count = 0
    for number in numbers:
        part = parts.read(number)
        if part is None:
            raise UserError(f"{parts.path(number)}: it has vanished or was damaged meanwhile; run the same command again")
        broken, count = broken | part.broken, count + len(part.keys)
    refuse_nothing(source, count, broken)
    if broken:
        lines = "".join(f"{key}\t{reason}\n" for key, reason in broken.items())
        with disk_errors(out.parent):
            write_aside(out.with_name(f"{out.name}.broken.txt"), lines.encode("utf-8", "surrogateescape"))
    parts.note_joined(count, broken)
    join(parts, numbers, out, about | {"broken": str(len(broken))})
    parts.remove()
    return Embedded(out, count, broken, 0)


def _written(settings: EmbedSettings, options: InferenceOptions) -> dict[str, str]:
    """The metadata of the file: all settings that change its content."""
    shown: dict[str, Any] = settings.model_dump(mode="json", exclude={"num_workers", "image_size", "precision"})
    shown |= {"image_size": options.image_size or "own", "precision": str(options.autocast or "float32").removeprefix("torch.")}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in shown.items()}
