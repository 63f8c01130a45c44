"""`amradio embed`: features of many images into one file."""

import time
from pathlib import Path
from typing import Any

import torch

from ..config import validate
from ..console import PHASES, outlive_console, print_text
from ..data import Source, SourceSettings
from ..data.full_images import open_images
from ..devices import find_device
from ..embedding import Embedded, EmbedSettings, embed_images
from ..embedding.files import find_writer
from ..errors import together
from ..files import user_path
from ..model import Model, head_names, load

NAMED = 5
"""Broken images that are printed."""


def embed(path: str | Path, images: str | Path | SourceSettings, out: str | Path, **options: Any) -> Embedded:
    """Writes the features of all images to one file, with their keys, and prints what was done.

    Whole images are resized to a legal size, never cropped. After a stop at any time the same call resumes.

    Args:
        path: whatever `amradio.load` reads.
        images: a folder, a text file with a path on each line, tar shards, or a source as in recipes.
        out: a new file that ends with .safetensors or .parquet.
        options: those of `EmbedSettings`, e.g. `heads=["clip"]`.

    Raises UserError with all problems at once.
    """
    settings, file, device, model, source = together(
        lambda: validate(EmbedSettings, options),
        lambda: _out(out),
        lambda: _device(options.get("device", "auto")),
        lambda: _model(path, options.get("heads", ())),
        lambda: _source(images),
    )
    description = source.describe()
    model = model.to(device)
    start = time.perf_counter()
    with PHASES.phase(f"features of {description}"), outlive_console():
        done = embed_images(model, source, file, settings, PHASES.progress)
    seconds = time.perf_counter() - start
    computed = done.num_images + len(done.broken) - done.num_resumed
    print_text(f"{done.num_images:,} of {source.describe()} -> {done.path}: {computed / seconds:.0f} images/s, {seconds:.1f} s")
    if done.num_resumed:
        print_text(f"{done.num_resumed:,} of them were there from an earlier call")
    for note in source.notes():
        print_text(note)
    if done.broken:
        named = "; ".join(f"{key}: {reason}" for key, reason in list(done.broken.items())[:NAMED])
        print_text(f"{len(done.broken):,} could not be read and were left out, all named in {done.path.name}.broken.txt: {named}")
    return done


def _out(out: str | Path) -> Path:
    file = user_path(out, "--out")
    find_writer(file)
    return file


def _device(name: Any) -> torch.device | None:
    return find_device(name, "device") if isinstance(name, str) else None  # else `validate` refuses it


def _model(path: str | Path, heads: Any) -> Model:
    """The model on the CPU, after seeing that it has these heads."""
    with PHASES.phase(f"reading {path}"):
        model = load(path)
    if isinstance(heads, str | list | tuple):  # else `validate` refuses them
        head_names(heads, model.heads)
    return model


def _source(images: str | Path | SourceSettings) -> Source:
    """The images, counted: of shards that is reading their headers."""
    with PHASES.phase(f"looking at {images}"):
        source = open_images(images)
        source.count()
    return source
