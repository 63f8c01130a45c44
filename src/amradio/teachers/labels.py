"""Class labels in the place of a teacher: a student trained on them, from scratch, is what distillation has to beat."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, shown
from ..features import Features
from .base import Teacher
from .settings import LabelsSettings


def build(settings: LabelsSettings) -> "Teacher":
    """Lists the classes of `settings`; raises UserError where the folder is not there or holds fewer than two."""
    path = Path(settings.path)
    try:
        classes = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith((".", "@", "__")))
    except OSError as error:
        raise UserError(f"path: {shown(path)}: {error.strerror}; give a folder with one folder a class") from None
    if len(classes) < 2:
        raise UserError(f"path: {shown(path)}: {len(classes)} folders in it; two classes at least are needed, one folder each")
    return LabelsTeacher(classes, str(path))


class LabelsTeacher(Teacher):
    """summary [B, number of classes]: 1 for the class of an image and 0 elsewhere, known by the folder in its key; no map.

    The loss is the squared error of the classes, each standardized (`normalize.summary`), which trains classifiers as cross entropy does
    (Hui & Belkin, ICLR 2021).
    """

    needs_keys = True

    def __init__(self, classes: Sequence[str], source: str):
        """classes: names of the folders, in their order."""
        super().__init__(
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            patch_size=1,
            dims=(len(classes), None),
            input_size=None,
            licence="none: labels are no weights",
            source=source,
        )
        self._labels = {name: label for label, name in enumerate(classes)}
        self.freeze()

    def of_keys(self, keys: Sequence[str]) -> Features:
        """float32 [B, number of classes] on the CPU. Raises UserError for a key without a folder of a class in it."""
        return Features(torch.stack([self._row(key) for key in keys]), None)

    def _row(self, key: str) -> Tensor:
        label = next((self._labels[folder] for folder in key.split("/")[:-1] if folder in self._labels), None)
        if label is None:
            raise UserError(
                f"teacher '{self.source}': image '{shown(key)}' is in no folder of a class there; labels need a source of type folder "
                "whose path holds one folder a class, for data.train and for data.val"
            )
        return torch.nn.functional.one_hot(torch.tensor(label), len(self._labels)).float()

    def encode(self, images: Tensor) -> Features:  # noqa: ARG002 - the interface of teachers
        """Raises UserError: pixels have no labels."""
        raise UserError(f"teacher '{self.source}' has labels of the images of a run and no features of others")
