"""Questions on images with the answers of people, read from the official files of GQA, POPE, TextVQA and VQAv2."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError, brief, shown
from ...files import LARGEST_ANNOTATIONS, read_json, read_lines, unusable
from ...labelled.annotations import Id, Problems, WrongError, entries, field, identifier, plain_text, whole_number, within
from ...labelled.paired_files import image_size

INSTRUCTION = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 puts behind every question of these four sets."""
LABELS = ("yes", "no")
SPLITS = ("train2014", "val2014", "test2015")
"""In the names of COCO's images."""


class Question(NamedTuple):
    """A question on one image."""

    id: Id
    image: str
    """Path below the folder of images."""
    text: str
    answers: tuple[str, ...]
    """Of people; empty where the file has none (VQAv2's test-dev)."""
    kind: str = ""
    """VQAv2's `answer_type` (`yes/no`, `number`, `other`); empty in the other sets."""
    hint: str = ""
    """A line between question and instruction: TextVQA's OCR tokens."""

    @property
    def prompt(self) -> str:
        """The text that the model is asked."""
        return "\n".join(part for part in (self.text, self.hint, INSTRUCTION) if part)


def read_gqa(file: Path, images: Path) -> list[Question]:
    """`testdev_balanced_questions.json` or `val_balanced_questions.json` of GQA.

    images: the folder of `{imageId}.jpg`. Raises UserError with all problems, as the other readers do.
    """
    content = read_json(file, dict, LARGEST_ANNOTATIONS)
    rows = ((f"question {brief(name)}", row | {"id": name} if isinstance(row, dict) else row) for name, row in content.items())

    def parse(row: Mapping[str, Any], name: Any) -> Question:
        image = within(f"{field(row, 'imageId', identifier)}.jpg", images)
        return Question(name, image, field(row, "question", plain_text), (field(row, "answer", plain_text),))

    return _read(file, images, rows, "id", parse)


def read_pope(file: Path, images: Path) -> list[Question]:
    """`coco_pope_random.json`, `coco_pope_popular.json` or `coco_pope_adversarial.json`: one JSON object a line.

    images: the folder of COCO's val2014, in which the file names the images.
    """
    rows = ((f"line {number}", _object(line)) for number, line in enumerate(read_lines(file, LARGEST_ANNOTATIONS), 1) if line.strip())

    def parse(row: Mapping[str, Any], name: Any) -> Question:
        return Question(name, field(row, "image", lambda value: within(value, images)), _text(row, "text"), (field(row, "label", _label),))

    return _read(file, images, rows, "question_id", parse)


def read_textvqa(file: Path, images: Path, ocr: Path | None = None) -> list[Question]:
    """`TextVQA_0.5.1_val.json`.

    images: the folder of `{image_id}.jpg` (`train_images`). ocr: `TextVQA_Rosetta_OCR_v0.2_val.json`, whose tokens become a hint as in
    LLaVA-1.5's evaluation; None for none.
    """
    tokens = _ocr_tokens(ocr) if ocr is not None else {}

    def parse(row: Mapping[str, Any], name: Any) -> Question:
        image = field(row, "image_id", identifier)
        hint = f"Reference OCR token: {', '.join(tokens[image])}" if tokens.get(image) else ""
        return Question(name, within(f"{image}.jpg", images), _text(row, "question"), field(row, "answers", _texts), hint=hint)

    return _read(file, images, _listed(file, "data"), "question_id", parse)


def read_vqav2(file: Path, annotations: Path | None, images: Path) -> list[Question]:
    """`v2_OpenEnded_mscoco_{SPLIT}_questions.json` with `v2_mscoco_{SPLIT}_annotations.json`.

    annotations: None for test-dev, whose answers are not public. images: the folder of `COCO_{SPLIT}_{image_id, 12 digits}.jpg`; test-dev
    has the images of test2015.
    """
    split = _split_of(read_json(file, dict, LARGEST_ANNOTATIONS), file)
    answered = _annotated(annotations) if annotations is not None else None

    def parse(row: Mapping[str, Any], name: Any) -> Question:
        image = f"COCO_{split}_{field(row, 'image_id', whole_number):012d}.jpg"
        if answered is not None and name not in answered:
            raise WrongError(f"{shown(annotations)} has no answers to it")
        answers, kind = ((), "") if answered is None else answered[name]
        return Question(name, image, _text(row, "question"), answers, kind)

    return _read(file, images, _listed(file, "questions"), "question_id", parse)


def _read(file: Path, images: Path, rows: Iterable[tuple[str, Any]], id_key: str, parse: Any) -> list[Question]:
    """The questions that `parse(row, id)` makes of the rows `(where, row)`; raises UserError with all problems."""
    if not images.is_dir():
        raise UserError(f"{shown(images)}: there is no such folder; give the folder of the images")
    problems, questions, seen = Problems(file), [], set()
    for where, row in rows:
        try:
            if not isinstance(row, dict):
                raise WrongError(f"{brief(row)}; expected an object")
            name = field(row, id_key, identifier)
            if name in seen:
                raise WrongError(f"a question before it has the same {id_key} {brief(name)}")
            seen.add(name)
            questions.append(parse(row, name))
        except WrongError as error:
            problems.add(where, str(error))
    problems.refuse()
    if not questions:
        raise UserError(f"{shown(file)}: there is no question in it; give the official file")
    for image in dict.fromkeys(question.image for question in questions):
        if problem := unusable(images / image):
            problems.add("", f"its image {shown(images / image)} {problem}; give the folder of its images")
            continue
        try:
            image_size(images / image)
        except UserError as error:  # now rather than after hours of answers
            problems.add("", error.problems[0])
    problems.refuse()
    return questions


def _listed(file: Path, key: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of the list under a key of a JSON object."""
    content, problems = read_json(file, dict, LARGEST_ANNOTATIONS), Problems(file)
    if key not in content:
        raise UserError(f"{shown(file)}: it lacks '{key}'; give the official file")
    yield from entries(content, key, problems)
    problems.refuse()


def _object(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def _text(row: Mapping[str, Any], key: str) -> str:
    return field(row, key, plain_text)


def _label(value: Any) -> str:
    if value not in LABELS:
        raise WrongError(f"found {brief(value)}; expected yes or no")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    """Answers of at least two annotators, some of which may be empty. Raises WrongError."""
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(item, str) for item in value):
        raise WrongError(f"found {brief(value)}; expected a list of texts, two or more")
    return tuple(value)


def _ocr_tokens(file: Path) -> dict[Id, Sequence[str]]:
    """{image: tokens} of a file of OCR."""
    tokens: dict[Id, Sequence[str]] = {}
    problems = Problems(file)
    for where, row in _listed(file, "data"):
        try:
            texts = field(row, "ocr_tokens", lambda value: value)
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise WrongError(f"ocr_tokens: found {brief(texts)}; expected a list of texts")
            tokens[field(row, "image_id", identifier)] = texts
        except WrongError as error:
            problems.add(where, str(error))
    problems.refuse()
    return tokens


def _annotated(file: Path) -> dict[Id, tuple[tuple[str, ...], str]]:
    """{question: (answers, answer_type)} of VQAv2's annotations."""
    answered: dict[Id, tuple[tuple[str, ...], str]] = {}
    problems = Problems(file)
    for where, row in _listed(file, "annotations"):
        try:
            given = field(row, "answers", lambda value: value)
            is_list = isinstance(given, list) and all(isinstance(answer, dict) for answer in given)
            answers = _texts([answer.get("answer") for answer in given] if is_list else given)
            answered[field(row, "question_id", identifier)] = answers, str(row.get("answer_type") or "")
        except WrongError as error:
            problems.add(where, str(error))
    problems.refuse()
    return answered


def _split_of(content: Mapping[str, Any], file: Path) -> str:
    """The split in the names of images: `val2014`, `test2015`. Raises UserError where the file does not state it."""
    stated = content.get("data_subtype")
    split = "test2015" if stated == "test-dev2015" else stated
    if split not in SPLITS:
        raise UserError(f"{shown(file)}: data_subtype is {brief(stated)}; expected {', '.join(SPLITS)} or test-dev2015")
    return split
