"""Targets: the raw teacher features of a batch's views, however they are obtained."""

from collections.abc import Mapping
from typing import Protocol

import torch

from ..batch import Batch
from ..features import Features
from ..teachers.base import Teacher
from .views import View, Views


class Targets(Protocol):
    """Anything that knows the teachers' features of a batch. An implementation that looks them up finds them by `batch.keys`."""

    def __call__(self, batch: Batch, views: Views) -> dict[str, Features]:
        """Raw features, float32, of every teacher in `views`, by name. Raises UserError where they cannot be had."""
        ...


class OnlineTeachers:
    """Computes the features with the frozen teachers themselves.

    Teachers are held, not owned: they are in no state dict, no optimizer and no `.train()`.
    """

    def __init__(self, teachers: Mapping[str, Teacher]):
        """teachers: by name, on the device of the batches."""
        self.teachers = dict(teachers)

    def __call__(self, batch: Batch, views: Views) -> dict[str, Features]:
        """Runs each teacher on its view; see `Targets`."""
        count = len(batch.images)
        with torch.no_grad():  # whoever calls: a compiled teacher has a graph for each mode in which it is called
            return {name: view.features_of_images(self._features(name, batch, view), count) for name, view in views.teachers.items()}

    def _features(self, name: str, batch: Batch, view: View) -> Features:
        teacher = self.teachers[name]
        if not teacher.needs_keys:
            return teacher(view.images)
        known = teacher.of_keys(batch.keys)
        return Features(*(None if tensor is None else tensor.to(batch.images.device) for tensor in known))
