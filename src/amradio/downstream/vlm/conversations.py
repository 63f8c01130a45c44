"""Conversations on images in LLaVA's JSON layout (558k, 665k), as rows for TRL."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError, brief, shown
from ...files import LARGEST_ANNOTATIONS, read_json, unusable, user_path
from ...labelled.annotations import Problems, WrongError, field, raise_all, within
from ...labelled.classification import spread
from ...labelled.paired_files import image_size
from .settings import ConversationsSettings

IMAGE = "<image>"
HEADERS_READ = 1000
"""Images, evenly spread, of which the header is read before anything is trained; the others are read when their turn comes."""
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


class Sample(NamedTuple):
    """One conversation."""

    image: str | None
    """Path below the folder of images; None of a text alone."""
    turns: tuple[tuple[str, str], ...]
    """(role, text), without the placeholder of the image."""


def read_conversations(settings: ConversationsSettings) -> list[Sample]:
    """The samples of a file, checked: roles, placeholders, paths, and that the images are there. Raises UserError with all problems."""
    file, folder = user_path(settings.annotations), user_path(settings.images)
    rows = read_json(file, list, LARGEST_ANNOTATIONS)[: settings.limit]
    if not folder.is_dir():
        raise UserError(f"{shown(folder)}: there is no such folder; give the folder of the images")
    problems, samples = Problems(file), []
    for number, row in enumerate(rows):
        try:
            samples.append(_sample(row, folder))
        except WrongError as error:
            name = f" (id {brief(row['id'])})" if isinstance(row, dict) and "id" in row else ""
            problems.add(f"sample {number}{name}", str(error))
    problems.refuse()
    if not samples:
        raise UserError(f"{shown(file)}: there is no conversation in it; give a list of samples in LLaVA's layout")
    for image in dict.fromkeys(sample.image for sample in samples if sample.image is not None):
        if problem := unusable(folder / image):
            problems.add("", f"its image {shown(folder / image)} {problem}; give the folder of its images")
    problems.refuse()
    images = [sample.image for sample in samples if sample.image is not None]

    def check(number: int) -> None:
        image_size(folder / images[number])

    raise_all((partial(check, number) for number in spread(len(images), HEADERS_READ)), shown(file))
    return samples


def _sample(row: Any, folder: Path) -> Sample:
    if not isinstance(row, dict):
        raise WrongError(f"{brief(row)}; expected an object")
    image = field(row, "image", lambda value: within(value, folder)) if row.get("image") is not None else None
    stated = field(row, "conversations", _list)
    turns = tuple(_turn(turn, number) for number, turn in enumerate(stated))
    spoken = [role for role, _ in turns if role != "system"]
    if spoken[:1] != ["user"] or "assistant" not in spoken:
        raise WrongError("a conversation begins with a turn of human and has one of gpt")
    count = sum(text.count(IMAGE) for _, text in turns)
    if count != (image is not None):
        what = "an image" if image is not None else "no image"
        raise WrongError(f"it has {what} and {count} times {IMAGE}; expected it once where there is an image")
    return Sample(image, tuple((role, text.replace(IMAGE, "").strip()) for role, text in turns))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise WrongError(f"found {brief(value)}; expected a list")
    return value


def _turn(turn: Any, number: int) -> tuple[str, str]:
    if not isinstance(turn, dict) or turn.get("from") not in ROLES or not isinstance(turn.get("value"), str):
        raise WrongError(f"conversations[{number}]: {brief(turn)}; expected from ({', '.join(ROLES)}) and value, a text")
    return ROLES[turn["from"]], turn["value"]


def captions_of(samples: Sequence[Sample], folder: Path) -> Any:
    """Stage 1's table: the image alone, then the caption and a line break, on which the loss is (LLaVA's `plain`). For TRL.

    Samples without an image are left out, as there is nothing to align. Raises UserError where there is no other.
    """
    rows = [sample for sample in samples if sample.image is not None]
    if not rows:
        raise UserError("alignment.data: no sample has an image; give captions of images")
    captions = [next(text for role, text in sample.turns if role == "assistant") + "\n" for sample in rows]
    return _table({"images": _paths(rows, folder), "prompt": [IMAGE] * len(rows), "completion": captions})


def messages_of(samples: Sequence[Sample], folder: Path) -> Any:
    """Stage 2's table: whole conversations, with the loss on what the assistant says. For TRL."""
    messages = [[{"role": role, "content": text} for role, text in sample.turns] for sample in samples]
    return _table({"images": _paths(samples, folder), "messages": messages})


def _paths(samples: Sequence[Sample], folder: Path) -> list[list[str]]:
    return [[] if sample.image is None else [str(folder / sample.image)] for sample in samples]


def _table(columns: dict[str, list[Any]]) -> Any:
    """A `datasets.Dataset` whose images are paths, which the trainer reads."""
    from datasets import Dataset, Features, List, Value

    turn = {"role": Value("string"), "content": Value("string")}
    kinds = {"images": List(Value("string")), "messages": List(turn), "prompt": Value("string"), "completion": Value("string")}
    return Dataset.from_dict(columns, Features({name: kinds[name] for name in columns}))
