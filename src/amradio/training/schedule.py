"""Stages and partitions of a recipe, and the batches of each."""

from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from ..batch import Batch
from ..config import sides_of
from ..data import Feed, OpenData, SourceSettings
from ..data.stateless_random import uniform
from ..distillation.views import Partition, ViewMaker
from ..engine.distributed import Processes
from ..network import Network
from ..recipe import PartitionSettings, Recipe, StageSettings
from ..teachers.base import Teacher

PARTITION_SEED_STRIDE = 7919
"""Partition k of a stage draws its images with seed + k times this: so two partitions see different images. A prime, so that no two seeds
that a user would try meet; runs that have several partitions resume exactly only while it stays as it is."""

SIZES = 2
"""The stream of random numbers from which sizes are drawn; 0 and 1 are those of data loading."""


class Group(NamedTuple):
    """A partition in training: what the task needs, and where its images come from."""

    settings: PartitionSettings
    partition: Partition
    """As held-out images are seen: at one size, without shifts."""
    sizes: Sequence[Partition]
    """At each size of training."""
    view_size: int
    """px of the square crops that are read, at least as large as what any model sees of them."""
    source: SourceSettings
    seed: int

    def drawn(self, step: int) -> Partition:
        """At the size of a step: a function of the seed and the step, so the same on all processes and after a resume."""
        if len(self.sizes) == 1:
            return self.sizes[0]
        bounds = list(accumulate(size.weight for size in self.settings.sizes))
        number = float(uniform(self.seed, SIZES, step, 0, 1, 8)[0, 0])
        return self.sizes[bisect(bounds, number * bounds[-1], hi=len(bounds) - 1)]


class Stage(NamedTuple):
    """Steps `start` (included) to `end` (excluded) of a run, on one set of partitions."""

    number: int
    start: int
    end: int
    groups: Sequence[Group]
    settings: StageSettings
    token_exponent: float = 0.0
    """Maps weigh as their number of cells to this power."""

    def is_frozen(self, step: int) -> bool:
        """Whether the student keeps its weights in step number `step` of the run."""
        return step < self.start + self.settings.frozen_steps

    @property
    def teachers(self) -> list[str]:
        """The names of the stage's teachers, once each."""
        return list(dict.fromkeys(name for group in self.groups for name in group.partition.teachers))

    def partitions(self, step: int) -> list[Partition]:
        """Every group's partition at the size of a step.

        Its maps weigh as an image's cells to the power of `token_exponent`, over the mean of that over the images of the step.
        """
        drawn = [group.drawn(step) for group in self.groups]
        powers = [float(height * width) ** self.token_exponent for height, width in (partition.size for partition in drawn)]
        counts = [group.settings.batch_size for group in self.groups]
        mean = sum(count * power for count, power in zip(counts, powers, strict=True)) / sum(counts)
        return [partition._replace(map_weight=power / mean) for partition, power in zip(drawn, powers, strict=True)]


def find_stages(recipe: Recipe, views: ViewMaker) -> Iterator[Stage]:
    """The stages of a recipe, in order, with their first and last step."""
    start = 0
    for index, stage in enumerate(recipe.stages):
        groups = [_group(recipe, views, f"{index}.{number}", settings) for number, settings in enumerate(stage.partitions)]
        yield Stage(index, start, start + stage.steps, groups, stage, recipe.loss.token_exponent)
        start += stage.steps


def _group(recipe: Recipe, views: ViewMaker, name: str, settings: PartitionSettings) -> Group:
    teachers = tuple(settings.teachers or recipe.teachers)
    sizes = [
        Partition(
            name,
            teachers,
            sides_of(size.size),
            settings.weight,
            teacher_sizes={teacher: sides_of(sides) for teacher, sides in size.teachers.items()},
            shift=settings.shift,
            mosaic=tuple(settings.mosaic),
        )
        for size in settings.sizes
    ]
    held_out = next(partition for partition in sizes if partition.size == sides_of(settings.image_size))._replace(shift=0)
    view_size = settings.view_size or max(side for partition in sizes for side in views.largest_size(partition))
    seed = recipe.seed + PARTITION_SEED_STRIDE * int(name.partition(".")[2])
    return Group(settings, held_out, sizes, view_size, settings.source or recipe.data.train, seed)


def describe_views(recipe: Recipe, network: Network, teachers: Mapping[str, Teacher]) -> Iterator[tuple[str, str, str, str, str]]:
    """What models see: (partition, px of the crops that are read, px of the student, share of the steps, px of each teacher)."""
    views = ViewMaker(teachers, network.student.patch_size)
    for group in (group for stage in find_stages(recipe, views) for group in stage.groups):
        total = sum(size.weight for size in group.settings.sizes)
        for partition, size in zip(group.sizes, group.settings.sizes, strict=True):
            seen = ", ".join(f"{name} {views.teacher_frame(name, partition)}" for name in partition.teachers)
            yield partition.name, str(group.view_size), str(views.student_frame(partition)), f"{size.weight / total:.0%}", seen


class Feeds:
    """The batches of every partition that fall to this process."""

    def __init__(self, recipe: Recipe, data: OpenData, processes: Processes):
        self.recipe, self.data, self.processes = recipe, data, processes

    def of(self, group: Group) -> Feed:
        """Size, seed and share of a partition."""
        return Feed(group.view_size, group.settings.batch_size, group.seed, self.processes.rank, self.processes.world_size)

    def training(self, group: Group, step: int) -> Iterator[Batch]:
        """Batches of training from `step` on, without end."""
        return self.data.train_batches(group.source, self.of(group), step)

    def held_out(self, group: Group) -> Iterator[Batch]:
        """The held-out images, `evaluate.batches` batches at most."""
        limit = self.recipe.evaluate.batches * group.settings.batch_size
        return self.data.val_batches(self.of(group), limit)

    @cached_property
    def description(self) -> str:
        """`3,490 images in /path`, of the training source."""
        return self.data.train(self.recipe.data.train).describe()
