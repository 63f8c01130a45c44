"""`amradio quickstart`: the whole job in minutes, offline and without a GPU."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ..data import Feed, train_batches, val_batches
from ..engine.distributed import find_device
from ..evaluation.throughput import images_per_second
from ..model import load
from ..recipe import Recipe
from ..run import RunFolder
from ..task import to_float
from ..teachers.base import Teacher
from ..training import load_teachers
from .distill import distill
from .tables import print_table

RECIPE = Path(__file__).with_name("quickstart.yaml")
BATCH = 64


def quickstart(*words: str) -> Path:
    """Distils the three embedded teachers into one student on generated scenes and prints what came out; returns the run folder.

    words: changes to the built-in recipe, e.g. `out=runs/mine`. Raises UserError as `distill` does.
    """
    recipe = Recipe.load(str(RECIPE), *words)
    folder = RunFolder(distill(recipe))
    state = folder.checkpoints.load()
    if state is None or state[2]["step"] < recipe.num_steps:
        return folder.path
    rows = [
        (name, f"{row['standardised_cosine']:.3f}", f"{row['cosine']:.3f}", f"{row['constant_cosine']:.3f}")
        for name, row in state[2]["agreement"].items()
    ]
    print()
    print_table("Held-out agreement with the teachers", ("feature", "standardised cosine", "raw cosine", "raw cosine of a constant"), rows)
    print_table("Size and speed", ("model", "M parameters", "images/s"), list(_costs(recipe, folder)))
    print(f"The model lies in {folder.model}. Load it:\n")
    print(f'    import amradio, torch\n    model = amradio.load("{folder.model}")\n')
    print(f'and `model(torch.rand(1, 3, 64, 64), heads=["{next(iter(recipe.teachers))}"])` gives its features.')
    return folder.path


def _costs(recipe: Recipe, folder: RunFolder) -> Iterator[tuple[str, str, str]]:
    """Rows of (model, million parameters, images/s) at the size of the recipe's first partition, on its device."""
    device = find_device(recipe.engine.device)
    size = recipe.stages[0].partitions[0].image_size
    feed = Feed(size, BATCH)
    batches = val_batches(recipe.data, None, feed) if recipe.data.has_val else train_batches(recipe.data, recipe.data.train, feed)
    images = to_float(next(batches).images).to(device)
    model = load(folder.model, device)
    speed = images_per_second(lambda batch: model(batch, heads=model.heads), images)
    parameters = _millions(model)
    yield "student with all heads", f"{parameters:.2f}", f"{speed:.0f}"
    total, seconds = 0.0, 0.0
    for name, teacher in load_teachers(recipe, {}).items():
        view, rate = _speed(teacher.to(device), images)
        total, seconds = total + _millions(teacher), seconds + 1 / rate
        yield f"teacher {name} at {view} px", f"{_millions(teacher):.2f}", f"{rate:.0f}"
    yield "all teachers, one after another", f"{total:.2f}", f"{1 / seconds:.0f}"
    yield "student against all teachers", f"{parameters / total:.2f}x", f"{speed * seconds:.2f}x"


def _speed(teacher: Teacher, images: torch.Tensor) -> tuple[int, float]:
    resized = torch.nn.functional.interpolate(images, teacher.size_for(*images.shape[-2:]))
    return resized.shape[-1], images_per_second(teacher, resized)


def _millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6
