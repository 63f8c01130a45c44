"""Stages and partitions of a recipe, and the batches of each."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from ..batch import Batch
from ..config import sides_of, size_text
from ..data import Feed, OpenData, SourceSettings
from ..data.sizes import DrawnSizes
from ..distillation.random_windows import RandomWindows
from ..distillation.views import Partition, ViewMaker
from ..engine.distributed import Processes
from ..network import Network
from ..recipe import PartitionSettings, Recipe, StageSettings
from ..teachers.base import Teacher

PARTITION_SEED_STRIDE = 7919
"""Partition k of a stage draws its images with seed + k times this: so two partitions see different images. A prime, so that no two seeds
that a user would try meet; runs that have several partitions resume exactly only while it stays as it is."""


class Group(NamedTuple):
    """A partition in training: what the task needs, and where its images come from."""

    settings: PartitionSettings
    partition: Partition
    """As held-out images are seen: at one size, without shifts."""
    sizes: Sequence[Partition]
    """At each size of training."""
    view_size: tuple[int, int]
    """(height, width) px of the crops that are read, at least as large as what any model sees of them."""
    source: SourceSettings
    seed: int

    def drawn(self, step: int) -> Partition:
        """At the size of a step, or packed: a function of the seed and the step, so the same on all processes and after a resume."""
        if self.settings.packed:
            return self.partition._replace(packed=tuple(self.sizes))
        return self.sizes[self.drawn_sizes.number(self.seed, step)]

    @property
    def drawn_sizes(self) -> DrawnSizes:
        """The sizes of the student, of which each step has one, or each image."""
        weights = [size.weight for size in self.settings.sizes]
        return DrawnSizes([partition.size for partition in self.sizes], weights, self.settings.packed)

    def counts(self, step: int) -> list[tuple[Partition, int]]:
        """How many images of a step, over all processes, the student sees at each size."""
        drawn = Counter(self.drawn_sizes.numbers(self.seed, step, range(self.settings.batch_size)))
        return [(self.sizes[number], count) for number, count in sorted(drawn.items())]


class Stage(NamedTuple):
    """Steps `start` (included) to `end` (excluded) of a run, on one set of partitions."""

    number: int
    start: int
    end: int
    groups: Sequence[Group]
    settings: StageSettings
    token_exponent: float = 0.0
    """Maps weigh as their number of cells to this power."""
    windows: RandomWindows | None = None
    """Windowed modes of the student; None for none."""

    def is_frozen(self, step: int) -> bool:
        """Whether the student keeps its weights in step number `step` of the run."""
        return step < self.start + self.settings.frozen_steps

    @property
    def teachers(self) -> list[str]:
        """The names of the stage's teachers, once each."""
        return list(dict.fromkeys(name for group in self.groups for name in group.partition.teachers))

    def partitions(self, step: int) -> list[Partition]:
        """Every group's partition at the size of a step, in the windowed mode of the step.

        Its maps weigh as an image's cells to the power of `token_exponent`, over the mean of that over the images of the step.
        """
        counts = [pair for group in self.groups for pair in group.counts(step)]
        mean = sum(count * self._power(partition) for partition, count in counts) / sum(count for _, count in counts)

        def weighted(partition: Partition) -> Partition:
            packed = tuple(weighted(part) for part in partition.packed)
            return partition._replace(map_weight=self._power(partition) / mean, packed=packed)

        partitions = [weighted(group.drawn(step)) for group in self.groups]
        if self.windows is None:
            return partitions
        modes = [self.windows.drawn(partition.size, group.seed, step) for group, partition in zip(self.groups, partitions, strict=True)]
        return [partition._replace(windowing=mode) for partition, mode in zip(partitions, modes, strict=True)]

    def _power(self, partition: Partition) -> float:
        """The weight of a map at the partition's size, before it is divided by the mean of the step."""
        return float(partition.size[0] * partition.size[1]) ** self.token_exponent

    def num_tokens(self, step: int, patch_size: int) -> int:
        """Cells of the student's maps of all images of a step, over all processes. patch_size: px, of the student."""
        return sum(
            count * (partition.size[0] // patch_size) * (partition.size[1] // patch_size)
            for group in self.groups
            for partition, count in group.counts(step)
        )


def find_stages(recipe: Recipe, views: ViewMaker) -> Iterator[Stage]:
    """The stages of a recipe, in order, with their first and last step."""
    start = 0
    for index, stage in enumerate(recipe.stages):
        groups = [_group(recipe, views, f"{index}.{number}", settings) for number, settings in enumerate(stage.partitions)]
        yield Stage(index, start, start + stage.steps, groups, stage, recipe.loss.token_exponent, random_windows(recipe, views.patch_size))
        start += stage.steps


def random_windows(recipe: Recipe, patch_size: int) -> RandomWindows | None:
    """The windowed modes that steps are drawn from, None where there are none. patch_size: px, of the student."""
    settings = recipe.regularize.windows
    return settings and RandomWindows(settings.sizes, settings.probability, settings.num_global, patch_size)


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
    largest = [views.largest_size(partition) for partition in sizes]
    view_size = sides_of(settings.view_size or (max(height for height, _ in largest), max(width for _, width in largest)))
    seed = recipe.seed + PARTITION_SEED_STRIDE * int(name.partition(".")[2])
    return Group(settings, held_out, sizes, view_size, settings.source or recipe.data.train, seed)


def describe_views(recipe: Recipe, network: Network, teachers: Mapping[str, Teacher]) -> Iterator[tuple[str, str, str, str, str]]:
    """What models see: (partition, px of the crops that are read, px of the student, share of the steps, px of each teacher)."""
    views = ViewMaker(teachers, network.student.patch_size)
    for group in (group for stage in find_stages(recipe, views) for group in stage.groups):
        total = sum(size.weight for size in group.settings.sizes)
        for partition, size in zip(group.sizes, group.settings.sizes, strict=True):
            seen = ", ".join(f"{name} {views.teacher_frame(name, partition)}" for name in partition.teachers)
            yield partition.name, size_text(group.view_size), str(views.student_frame(partition)), f"{size.weight / total:.0%}", seen


class Feeds:
    """The batches of every partition that fall to this process."""

    def __init__(self, recipe: Recipe, data: OpenData, processes: Processes):
        self.recipe, self.data, self.processes = recipe, data, processes

    def of(self, group: Group) -> Feed:
        """Size, seed and share of a partition."""
        rank, world_size = self.processes.rank, self.processes.world_size
        return Feed(group.view_size, group.settings.batch_size, group.seed, rank, world_size, group.drawn_sizes)

    def training(self, group: Group, step: int) -> Iterator[Batch]:
        """Batches of training from `step` on, without end."""
        return self.data.train_batches(group.source, self.of(group), step)

    def held_out(self, group: Group) -> Iterator[Batch]:
        """The held-out images, `evaluate.batches` batches at most."""
        limit = self.recipe.evaluate.batches * group.settings.batch_size
        feed = replace(self.of(group), sizes=DrawnSizes([group.partition.size], [1.0]))
        return self.data.val_batches(feed, limit)

    @cached_property
    def description(self) -> str:
        """`3,490 images in /path`, of the training source."""
        return self.data.train(self.recipe.data.train).describe()
