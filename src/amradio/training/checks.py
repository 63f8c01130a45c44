"""What can be refused before a byte is written."""

from collections.abc import Iterator, Mapping

from ..config import sides_of, size_text
from ..data import Feed, OpenData, describe
from ..distillation.mosaic import Tiling
from ..distillation.self_distillation import step_of
from ..engine.rates import rate_factors
from ..errors import UserError
from ..network import Network
from ..recipe import PartitionSettings, Recipe, SizeSettings
from ..teachers.base import Teacher
from .schedule import random_windows


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


def check_network(recipe: Recipe, network: Network, teachers: Mapping[str, Teacher], world_size: int) -> list[str]:
    """Image sizes that the student or a teacher cannot take, batches that cannot be shared out and layers that are not known, one sentence
    each."""
    problems = []
    try:
        rate_factors(network, recipe.optimizer)
    except UserError as error:
        problems += [f"optimizer.layer_decay: {problem}" for problem in error.problems]
    problems += _problems_of_windows(recipe, network)
    for key, settings in recipe.partitions():
        for number, size in enumerate(settings.sizes):
            named = f"{key}.image_sizes.{number}" if settings.image_sizes else f"{key}.image_size"
            illegal = [f"{named}{problem}" for problem in _illegal_sizes(size, network, teachers)]
            problems += illegal or _without_shift(recipe, network, sides_of(size.size))
            problems += _problems_of_shift(key, settings.shift, sides_of(size.size), network.student.patch_size)
        if settings.packed and not network.student.packs:
            problems.append(f"{key}.packed: a student of this kind takes images of one size at a time; a 'vit' student takes several")
        problems += _problems_of_mosaic(key, settings, teachers, settings.batch_size // (world_size * recipe.engine.accumulate))
        try:
            Feed(settings.image_size, settings.batch_size, 0, 0, world_size)
        except UserError as error:
            problems.append(f"{key}.batch_size: {error}")
        share = settings.batch_size // world_size
        if share % recipe.engine.accumulate:
            problems.append(f"engine.accumulate: {recipe.engine.accumulate} does not divide the {share} images a process of {key}")
    return problems


def _problems_of_windows(recipe: Recipe, network: Network) -> Iterator[str]:
    windows = random_windows(recipe, network.student.patch_size)
    if windows is None:
        return
    try:
        network.student.set_windows(windows.sizes[0], windows.num_global)
        network.student.set_windows(None)
    except UserError as error:
        yield from (f"regularize.windows: {problem}" for problem in error.problems)
        return
    sizes = dict.fromkeys(sides_of(size.size) for _, settings in recipe.partitions() for size in settings.sizes)
    if not any(windows.fitting(size) for size in sizes):
        grids = ", ".join(size_text((height // windows.patch_size, width // windows.patch_size)) for height, width in sizes)
        yield f"regularize.windows.sizes: no window divides a map of {grids} patches into several; take divisors of their sides"


def _without_shift(recipe: Recipe, network: Network, size: tuple[int, int]) -> list[str]:
    """Why the crops of self-distillation cannot be shifted at this size; empty where they can."""
    settings = recipe.regularize.self_distillation
    if settings is None:
        return []
    try:
        step_of(network.student, size, settings.max_shift)
    except UserError as error:
        return [f"regularize.self_distillation: {problem}" for problem in error.problems]
    return []


def _illegal_sizes(size: SizeSettings, network: Network, teachers: Mapping[str, Teacher]) -> Iterator[str]:
    """What follows a size's key: `: the student cannot take 50 px; ...`."""
    wanted = sides_of(size.size)
    legal = network.student.nearest_size(*wanted)
    if legal != wanted:
        yield f": the student cannot take {size_text(wanted)} px; the nearest legal size is {size_text(legal)}"
    for name, sides in size.teachers.items():
        wanted = sides_of(sides)
        legal = teachers[name].size_for(*wanted)
        if legal != wanted:
            yield f".teachers.{name}: the teacher cannot take {size_text(wanted)} px; the nearest legal size is {size_text(legal)}"


def _problems_of_shift(key: str, shift: int, size: tuple[int, int], patch_size: int) -> list[str]:
    """key: of the partition. size, patch_size: px, of the student."""
    most = min(size) // (4 * patch_size)
    if shift <= most:
        return []
    fix = f"take at most {most}" if most else "take 0, or a larger size"
    return [f"{key}.shift: {shift} patches are more than a quarter of {size_text(size)} px; {fix}"]


def _problems_of_mosaic(key: str, settings: PartitionSettings, teachers: Mapping[str, Teacher], images: int) -> Iterator[str]:
    """key: of the partition. images: that a process has at a time."""
    for name in settings.mosaic:
        teacher = teachers[name]
        if teacher.input_size is None:
            fix = "leave it out, so that it sees each image at the student's size"
            yield f"{key}.mosaic: '{name}' takes images of any size, and a mosaic is for teachers of one size; {fix}"
            continue
        for size in dict.fromkeys(sides_of(size.size) for size in settings.sizes):
            tiling = Tiling.of(size, teacher.size_for(*size), teacher.patch_size)
            if tiling is not None and images % tiling.num_images:
                yield (
                    f"{key}.batch_size: a canvas of '{name}' has {tiling.num_images} images of {size_text(size)} px, and a process has "
                    f"{images} images at a time; take a multiple of {tiling.num_images}, so that canvases do not depend on the number of "
                    "processes"
                )
