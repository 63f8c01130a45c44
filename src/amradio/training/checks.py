"""What can be refused before a byte is written."""

import importlib.util

from ..data import Feed, OpenData, describe
from ..errors import UserError
from ..network import Network
from ..recipe import Recipe


def check_data(recipe: Recipe, data: OpenData) -> list[str]:
    """What is wrong with the data sources, one sentence each."""
    problems = []
    for key, source in recipe.sources().items():
        try:
            data.source(source).check()
        except UserError as error:
            problems += [f"{key}: {problem}" for problem in error.problems]
    if recipe.data.hold_out is not None and not problems:
        try:
            data.val()
        except UserError as error:
            problems += error.problems
    return problems


def describe_data(recipe: Recipe, data: OpenData) -> dict[str, str]:
    """`{"data.train": "3,490 images in /path"}`."""
    described = {key: describe(data.source(source)) for key, source in recipe.sources().items()}
    return described | ({"data.hold_out": data.val().describe()} if recipe.data.hold_out is not None else {})


def check_extras(recipe: Recipe) -> list[str]:
    """What the recipe asks for and is not installed, one sentence each."""
    if recipe.engine.track and importlib.util.find_spec("tensorboard") is None:
        return ["engine.track: tensorboard is not installed; pip install amradio[track], or leave the key out"]
    return []


def check_sizes(recipe: Recipe, network: Network, world_size: int) -> list[str]:
    """Image sizes that the student cannot take and batches that cannot be shared out, one sentence each."""
    problems = []
    for key, settings in recipe.partitions():
        size = settings.image_size
        legal = network.student.nearest_size(size, size)
        if legal != (size, size):
            problems.append(f"{key}.image_size: the student cannot take {size} px; the nearest legal size is {legal[0]}")
        try:
            Feed(size, settings.batch_size, 0, 0, world_size)
        except UserError as error:
            problems.append(f"{key}.batch_size: {error}")
        share = settings.batch_size // world_size
        if share % recipe.engine.accumulate:
            problems.append(f"engine.accumulate: {recipe.engine.accumulate} does not divide the {share} images a process of {key}")
    return problems
