"""Whether batches and steps suit the number of images."""

from collections.abc import Iterator

from ..data import OpenData
from ..recipe import Recipe

ENOUGH_IMAGES = 27_000
"""Seen by a run in all; with 20,000 (1,250 steps of 16) the quickstart's small student was 5 points below its best teacher in
k-NN, with 27,200 it was 2 (docs/LOG.md, 2026-11-26 and 2026-11-27)."""
MOST_PASSES = 250
"""Over all images; from 250 to 500 passes over 1,536 scenes no loss that was tried gained (docs/LOG.md, 2026-11-26, 3,000 and 6,000 steps
of 128), whereas from 37 to 110 passes over 3,490 photographs all of them did."""


def doubts_about_amounts(recipe: Recipe, data: OpenData) -> Iterator[str]:
    """Where batches and steps look wrong for the number of images, one sentence each: batches larger than the data, and runs that see too
    few images, or the same ones too often. Data whose number of images is not known before they are read are left out."""
    seen: dict[str, int] = {}
    for (key, settings), steps in zip(recipe.partitions(), _steps_of_partitions(recipe), strict=True):
        source = "data.train" if settings.source in (None, recipe.data.train) else f"{key}.source"
        seen[source] = seen.get(source, 0) + steps * settings.batch_size
        count = data.train(settings.source or recipe.data.train).count(settings.batch_size)
        if count < settings.batch_size:
            yield (
                f"{key}.batch_size: {settings.batch_size:,} images a step of data with {count:,}, so that a step holds an image several "
                "times; take a smaller batch_size or more images"
            )
    sources = recipe.sources()
    for key, images in seen.items():
        count = data.train(sources[key]).size()
        if count and (images < ENOUGH_IMAGES or images > MOST_PASSES * count):
            yield f"{key}: {_doubt(images, count)}"


def _steps_of_partitions(recipe: Recipe) -> list[int]:
    """Steps of the stage of every partition, in the order of `Recipe.partitions`."""
    return [stage.steps for stage in recipe.stages for _ in stage.partitions]


def _doubt(images: int, count: int) -> str:
    """What is doubtful about a run that sees `images` images, of which there are `count`."""
    passes = f"{images / count:,.0f}" if images >= 10 * count else f"{images / count:.2g}"
    amount = f"the run sees {images:,} images, {passes} passes over the {count:,} that there are"
    if images > MOST_PASSES * count:
        return f"{amount}; more than {MOST_PASSES} gained nothing where it was measured (docs/choosing.md): take fewer steps or more images"
    fix = "take more steps" if MOST_PASSES * count >= ENOUGH_IMAGES else f"{MOST_PASSES} passes would not suffice: take more images"
    return f"{amount}; even the small student of the quickstart needed {ENOUGH_IMAGES:,} (docs/choosing.md): {fix}"
