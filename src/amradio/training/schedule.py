"""Stages and partitions of a recipe, and where the images of each come from."""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from ..data import Batch, Feed, SourceSettings, train_batches, val_batches
from ..distillation.task import Distillation, Partition
from ..engine.distributed import Processes
from ..engine.loop import Stage
from ..recipe import PartitionSettings, Recipe


class Group(NamedTuple):
    """A partition as the loop carries it around: what the task needs, and where its images come from."""

    settings: PartitionSettings
    partition: Partition
    view_size: int
    source: SourceSettings
    seed: int


def find_stages(recipe: Recipe, task: Distillation) -> Iterator[Stage]:
    """The stages of a recipe, in order, with their first and last step."""
    start = 0
    for index, stage in enumerate(recipe.stages):
        groups = [_group(recipe, task, f"{index}.{number}", settings) for number, settings in enumerate(stage.partitions)]
        yield Stage(index, start, start + stage.steps, groups)
        start += stage.steps


def _group(recipe: Recipe, task: Distillation, name: str, settings: PartitionSettings) -> Group:
    names = tuple(settings.teachers or recipe.teachers)
    size = settings.image_size
    sizes = [size, *(side for teacher in names for side in task.teachers[teacher].size_for(size, size))]
    seed = recipe.seed + 7919 * int(name.partition(".")[2])
    return Group(
        settings,
        Partition(name, names, size, settings.weight),
        settings.view_size or max(sizes),
        settings.source or recipe.data.train,
        seed,
    )


class Feeds:
    """The batches of every partition that fall to this process."""

    def __init__(self, recipe: Recipe, processes: Processes):
        self.recipe, self.processes = recipe, processes

    def of(self, group: Group) -> Feed:
        """Size, seed and share of a partition."""
        return Feed(group.view_size, group.settings.batch_size, group.seed, self.processes.rank, self.processes.world_size)

    def training(self, group: Group, step: int) -> Iterator[Batch]:
        """Batches of training from `step` on, without end."""
        return train_batches(self.recipe.data, group.source, self.of(group), step)

    def held_out(self, group: Group) -> Iterator[Batch]:
        """The held-out images, `evaluate.batches` batches at most."""
        limit = self.recipe.evaluate.batches * group.settings.batch_size
        return val_batches(self.recipe.data, None, self.of(group), limit)

    @cached_property
    def description(self) -> str:
        """`3,490 images in /path`, of the training source."""
        return self.recipe.data.open_train(self.recipe.data.train).describe()
