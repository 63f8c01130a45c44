"""One folder a class: which images belong to which."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.names import PassedOver, is_hidden
from ..data.walk import walk
from ..errors import UserError, shown


class ClassList(NamedTuple):
    """Images by class."""

    folders: Sequence[str]
    """The classes in the order of their names."""
    names: Sequence[str]
    """Paths of the images relative to the folder of the classes, class after class."""
    labels: Sequence[int]
    """Of each image the index of its class in `folders`."""
    passed: PassedOver


def list_classes(path: Path) -> ClassList:
    """The images of all folders of `path`, however deep within their class.

    A folder without an image is no class; it is passed over, as are images beside the classes. Raises UserError where no class is left.
    """
    if not path.is_dir():
        problem = "this is a file" if path.exists() else "there is no such folder"
        raise UserError(f"{shown(path)}: {problem}; give a folder with one folder a class")
    passed = PassedOver()
    by_class: dict[str, list[str]] = {}
    for name in walk(path, passed):
        folder, slash, _ = name.partition("/")
        if slash:
            by_class.setdefault(folder, []).append(name)
        else:
            passed.add("an image beside the folders of classes", name)
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.name not in by_class and entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
            passed.add("a folder without an image that can be listed, which is no class", entry.name)
    if not by_class:
        raise UserError(
            f"{shown(path)}: there is no folder with images in it; one folder a class is expected, CLASS/*.jpg", *passed.note(path)
        )
    folders = sorted(by_class)
    names = [name for folder in folders for name in sorted(by_class[folder])]
    labels = [label for label, folder in enumerate(folders) for _ in by_class[folder]]
    return ClassList(folders, names, labels, passed)
