"""Stages and partitions of a recipe, and the batches of each."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from ..batch import Batch
from ..data import Feed, OpenData, SourceSettings
from ..distillation.views import Partition, ViewMaker
from ..engine.distributed import Processes
from ..recipe import PartitionSettings, Recipe

PARTITION_SEED_STRIDE = 7919
"""Partition k of a stage draws its images with seed + k times this: so two partitions see different images. A prime, so that no two seeds
that a user would try meet; runs that have several partitions resume exactly only while it stays as it is."""


class Group(NamedTuple):
    """A partition in training: what the task needs, and where its images come from."""

    settings: PartitionSettings
    partition: Partition
    view_size: int
    """px of the square crops that are read, at least as large as what any model sees of them."""
    source: SourceSettings
    seed: int


class Stage(NamedTuple):
    """Steps `start` (included) to `end` (excluded) of a run, on one set of partitions."""

    number: int
    start: int
    end: int
    groups: Sequence[Group]

    @property
    def teachers(self) -> list[str]:
        """The names of the stage's teachers, once each."""
        return list(dict.fromkeys(name for group in self.groups for name in group.partition.teachers))


def find_stages(recipe: Recipe, views: ViewMaker) -> Iterator[Stage]:
    """The stages of a recipe, in order, with their first and last step."""
    start = 0
    for index, stage in enumerate(recipe.stages):
        weights = _map_weights(stage.partitions, recipe.loss.token_exponent)
        groups = [
            _group(recipe, views, f"{index}.{number}", settings, weight)
            for number, (settings, weight) in enumerate(zip(stage.partitions, weights, strict=True))
        ]
        yield Stage(index, start, start + stage.steps, groups)
        start += stage.steps


def _map_weights(partitions: Sequence[PartitionSettings], exponent: float) -> list[float]:
    """Of each partition: an image's cells to this power, over the mean of that over the images of the step."""
    powers = [float(settings.image_size) ** (2 * exponent) for settings in partitions]
    images = sum(settings.batch_size for settings in partitions)
    mean = sum(settings.batch_size * power for settings, power in zip(partitions, powers, strict=True)) / images
    return [power / mean for power in powers]


def _group(recipe: Recipe, views: ViewMaker, name: str, settings: PartitionSettings, map_weight: float) -> Group:
    partition = Partition(name, tuple(settings.teachers or recipe.teachers), settings.image_size, settings.weight, map_weight)
    seed = recipe.seed + PARTITION_SEED_STRIDE * int(name.partition(".")[2])
    return Group(settings, partition, settings.view_size or views.largest_size(partition), settings.source or recipe.data.train, seed)


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
