"""`amradio embed`: features of many images into one file."""

import time
from pathlib import Path
from typing import Any

from ..config import validate
from ..console import PHASES, outlive_console, print_text
from ..data import SourceSettings
from ..data.full_images import open_images
from ..devices import find_device
from ..embedding import Embedded, EmbedSettings, embed_images
from ..files import user_path
from ..model import load

NAMED = 5
"""Broken images that are printed."""


def embed(path: str | Path, images: str | Path | SourceSettings, out: str | Path, **options: Any) -> Embedded:
    """Writes the features of all images to one file, with their keys, and prints what was done.

    path: whatever `amradio.load` reads. images: a folder, a text file with a path on each line, tar shards, or a source of recipes.
    out: a file that does not exist yet, .safetensors or .parquet. options: those of `EmbedSettings`, e.g. heads=["clip"]. Whole images are
    resized to a legal size never cropped. Stopped at any time, the same call goes on. Raises UserError with what is wrong.
    """
    settings, file = validate(EmbedSettings, options), user_path(out, "--out")
    with PHASES.phase(f"reading {path}"):
        model = load(path, find_device(settings.device))
    with PHASES.phase(f"looking at {images}"):
        source = open_images(images)
        description = source.describe()
    begun = time.perf_counter()
    with PHASES.phase(f"features of {description}"), outlive_console():
        done = embed_images(model, source, file, settings, PHASES.progress)
    seconds = time.perf_counter() - begun
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
