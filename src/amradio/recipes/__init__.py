"""The recipes and evaluation files that come with the package; each has a name that stands for its path on the command line."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import UserError, nearest
from ..files import user_path

FOLDER = Path(__file__).parent
CONFIG_FILE = "config.yaml"
"""The resolved recipe in a run folder."""


Kind = Literal["recipe", "part", "evaluation", "detection", "vlm"]
KINDS: tuple[Kind, ...] = ("recipe", "part", "detection", "vlm", "evaluation")
"""In the order of the listing."""


class Shipped(NamedTuple):
    """A file that comes with the package, described by the comment at its head."""

    name: str
    """Stands for the path on the command line."""
    kind: Kind
    """`recipe` for `amradio distill`, `part` to be put behind one, `detection` for `amradio detect train`, `vlm` for `amradio vlm train`,
    `evaluation` for `amradio evaluate`."""
    about: str
    """One sentence."""
    command: str
    """How to run it; several commands are separated by a line break."""
    cost: str
    """Time and machine as measured, or "not yet run"."""
    result: str
    """Numbers as measured, or "not yet run"."""
    path: Path
    """The file."""


def shipped() -> list[Shipped]:
    """Every shipped file, by kind and name."""
    return sorted((_described(path) for path in FOLDER.glob("*.yaml")), key=lambda entry: (KINDS.index(entry.kind), entry.name))


def locate(word: str) -> Path:
    """The file that a word of the command line names.

    word: the path of a file; or of a run folder, which stands for its config.yaml; or the name of a shipped file (`starter`).
    A path in the working directory comes first. Raises UserError with the nearest name where there is no such file.
    """
    path = user_path(word)
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return path / CONFIG_FILE
    names = {file.stem: file for file in FOLDER.glob("*.yaml")}
    if path.is_file():
        return path
    if path.is_dir() and word not in names:
        raise UserError(
            f"{word}: this folder has no {CONFIG_FILE}, so it is no run; give a run folder, a .yaml file, or the name of a shipped recipe "
            f"(amradio recipes); to train on images in it: data.train.path={word}"
        )
    if word in names:
        return names[word]
    if path.suffix in (".yaml", ".yml") and path.stem in names:
        raise UserError(
            f"{word}: there is no such file; the recipe of this name that comes with amradio is written without a path: {path.stem}"
        )
    near = nearest(path.stem if path.suffix in (".yaml", ".yml") else word, names)
    hint = f"; {near}" if near.startswith("did you mean") else ""
    raise UserError(
        f"{word}: there is no such file{hint}; give a .yaml file, the name of a shipped one (amradio recipes), "
        "a run folder, or a word like key=value"
    )


def kind_of(keys: Iterable[str]) -> Kind:
    """What a file with these keys at its top is; `part` where it names no teachers, detector, language model or evaluations."""
    marks: tuple[tuple[str, Kind], ...] = (
        ("evaluations", "evaluation"),
        ("detector", "detection"),
        ("language_model", "vlm"),
        ("teachers", "recipe"),
    )
    for key, kind in marks:
        if key in keys:
            return kind
    return "part"


def _described(path: Path) -> Shipped:
    head = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line[1:].strip())
    parts: dict[str, list[str]] = {"about": []}
    key = "about"
    for line in head:
        if not line:
            key = "more"
        title = re.match(r"([A-Z][a-z]+):\s*(.*)", line)
        if title:
            key, line = title[1].lower(), title[2]
        parts.setdefault(key, []).append(line)
    keys = set(re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.M))
    text = {key: " ".join(lines).strip() for key, lines in parts.items()}
    commands = re.split(r" (?=torchrun )|(?<!-m) (?=amradio )", text.get("command", ""))
    command = "\n".join(command.replace("\\ ", "") for command in commands)
    return Shipped(path.stem, kind_of(keys), text["about"], command, text.get("cost", ""), text.get("result", ""), path)
