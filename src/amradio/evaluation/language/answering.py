"""Questions on images, answered by a vision-language model and scored with the metric of their set."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from PIL import Image

from ...data.loading_processes import read_each
from ...downstream.vlm.answers import is_exact, is_yes, normalized, vqa_accuracy, yes_no_scores
from ...downstream.vlm.questions import Question
from ...errors import UserError, shown
from ...files import disk_errors, user_path, write_aside
from ...image_input import one_picture
from ..base import Bench, Evaluation, Metric, Predictors, Result
from ..inputs import Counts
from ..sharing import windows_of
from .settings import QuestionsSettings

GUESSES = 20
"""Most frequent answers of which the floor is the best."""
Files = Mapping[str, Sequence[Question]]
"""{name of a file: its questions}."""
Given = Mapping[str, Sequence[str]]
"""{name of a file: the answers to its questions}."""


class Scoring(Protocol):
    """The metric of a set."""

    floor: str
    """What the trivial answer is."""

    def metrics(self, files: Files) -> list[Metric]:
        """The columns."""
        ...

    def score(self, prediction: str, question: Question) -> float:
        """0 to 1, of one answer."""
        ...

    def row(self, files: Files, given: Given) -> dict[str, float]:
        """The numbers of a model, in %."""
        ...

    def guess(self, questions: Sequence[Question]) -> dict[str, float]:
        """The numbers of the best answer that is the same to every question, in %."""
        ...


class ExactMatch:
    """GQA's."""

    floor = "the most frequent answer"

    def metrics(self, files: Files) -> list[Metric]:
        """Accuracy."""
        del files
        return [Metric("accuracy", "accuracy")]

    def score(self, prediction: str, question: Question) -> float:
        """Whether it is the answer."""
        return float(is_exact(prediction, question.answers[0]))

    def row(self, files: Files, given: Given) -> dict[str, float]:
        """Accuracy."""
        scores = [score for name in files for score in map(self.score, given[name], files[name])]
        return {"accuracy": 100 * sum(scores) / len(scores)}

    def guess(self, questions: Sequence[Question]) -> dict[str, float]:
        """Of the answers that are most often right, the best."""
        counts = Counter(normalized(text) for question in questions for text in question.answers)
        guesses = [text for text, _ in counts.most_common(GUESSES)]
        return max((self.row({"": questions}, {"": [text] * len(questions)}) for text in guesses), key=lambda row: row["accuracy"])


class VqaAccuracy(ExactMatch):
    """TextVQA's and VQAv2's."""

    def metrics(self, files: Files) -> list[Metric]:
        """Accuracy, and of each type of answer that the questions have."""
        kinds = sorted({question.kind for questions in files.values() for question in questions} - {""})
        return [*super().metrics(files), *(Metric(_name(kind), f"accuracy {kind}", headline=False) for kind in kinds)]

    def score(self, prediction: str, question: Question) -> float:
        """VQA accuracy."""
        return vqa_accuracy(prediction, question.answers)

    def row(self, files: Files, given: Given) -> dict[str, float]:
        """The same columns."""
        scores = [
            (question.kind, self.score(text, question)) for name in files for text, question in zip(given[name], files[name], strict=True)
        ]
        parts = {"accuracy": [score for _, score in scores]}
        parts |= {_name(kind): [score for other, score in scores if other == kind] for kind in sorted({kind for kind, _ in scores} - {""})}
        return {name: 100 * sum(part) / len(part) for name, part in parts.items()}


def _name(kind: str) -> str:
    return f"accuracy_{kind.replace('/', '_')}"


class YesOrNo:
    """POPE's."""

    floor = "yes to every question"
    NAMES = ("f1", "accuracy", "precision", "recall", "yes_share")

    def metrics(self, files: Files) -> list[Metric]:
        """F1, accuracy, precision, recall, and the share of answers that are yes."""
        del files
        of_files = [Metric(name, name, headline=name in ("f1", "accuracy")) for name in self.NAMES[:-1]]
        return [*of_files, Metric("yes_share", "yes", better=None)]

    def score(self, prediction: str, question: Question) -> float:
        """Whether yes or no is right."""
        return float(is_yes(prediction) == (question.answers[0] == "yes"))

    def row(self, files: Files, given: Given) -> dict[str, float]:
        """Means over the files."""
        parts = [self._of_file(files[name], given[name]) for name in files]
        return {name: sum(part[name] for part in parts) / len(parts) for name in self.NAMES}

    def _of_file(self, questions: Sequence[Question], given: Sequence[str]) -> dict[str, float]:
        scores = yes_no_scores([is_yes(text) for text in given], [question.answers[0] == "yes" for question in questions])
        return {name: 100 * value for name, value in scores._asdict().items()}

    def guess(self, questions: Sequence[Question]) -> dict[str, float]:
        """Of yes everywhere."""
        scores = self._of_file(questions, ["yes"] * len(questions))
        return {name: scores[name] for name in ("f1", "accuracy")}


class QuestionAnswering(Evaluation):
    """Accuracy of a vision-language model's answers: the evaluations `gqa`, `pope`, `textvqa` and `vqav2`."""

    is_shared = True

    def __init__(self, settings: QuestionsSettings, files: Files, scoring: Scoring, submission: Path | None = None):
        """files: questions by the name of their file. submission: EvalAI's file, to be written.

        Raises UserError where a file to be written is there, or cannot be.
        """
        self.settings, self.scoring, self.submission = settings, scoring, submission
        self.files = {name: _spread(questions, settings.limit) for name, questions in files.items()}
        self.folder = user_path(settings.images)
        self.answers = None if settings.answers is None else user_path(settings.answers)
        written = {"answers": self.answers, "submission": submission}
        problems = [problem for key, path in written.items() if path is not None and (problem := _cannot_write(path, key))]
        if problems:
            raise UserError(*problems)

    def check(self, predict: Predictors, bench: Bench) -> None:
        """Raises UserError where there is no vision-language model, or it takes no images of the size."""
        del predict
        if bench.vlm is None:
            advice = "give as PATH a folder that `amradio vlm train` wrote, or one of LLaVA"
            raise UserError(f"{self.settings.type}: a vision-language model is needed; {advice}")  # pyright: ignore[reportAttributeAccessIssue]
        size = self.settings.image_size or bench.image_size
        if size is not None:
            from ...downstream.vlm.generation import check_size

            check_size(bench.vlm, size)

    def run(self, predict: Predictors, bench: Bench) -> Result:
        """Asks all questions with the image, and where the settings say so without, and scores the answers."""
        self.check(predict, bench)
        inputs: Counts = {}
        given = {row: {name: self._ask(name, row, bench, inputs) for name in self.files} for row in self.settings.models}
        everything = [question for questions in self.files.values() for question in questions]
        is_scored = bool(everything[0].answers)
        bench.share.first_does(lambda: self._write(given, is_scored))
        details = {row: {name: self.scoring.row({name: self.files[name]}, texts) for name in self.files} for row, texts in given.items()}
        return Result(
            self.scoring.metrics(self.files) if is_scored else [],
            {row: self.scoring.row(self.files, texts) for row, texts in given.items()} if is_scored else {},
            {"questions": len(everything), "images": len({question.image for question in everything})},
            _fingerprint(everything),
            self.scoring.guess(everything) if is_scored else {},
            floor=self.scoring.floor if is_scored else "",
            inputs={"vlm": inputs} if is_scored and "vlm" in given else {},
            notes=() if is_scored else ("nothing was scored, as there are no annotations",),
            details={"by_file": details} if len(self.files) > 1 else {},
        )

    def _ask(self, name: str, row: str, bench: Bench, inputs: Counts) -> list[str]:
        """The answers to the questions of a file; several processes share the batches out. inputs: takes the sizes of images that the
        model of this process receives.
        """
        questions = self.files[name]
        batches = windows_of(len(questions), self.settings.batch_size)
        title = f"{row}: {name or 'questions'}"

        def work(numbers: range) -> dict[int, list[str]]:
            chosen = {number: [questions[index] for index in batches[number]] for number in numbers}
            asked = bench.progress(self._answers(chosen.values(), row == "vlm", bench, inputs), title, len(chosen))
            return dict(zip(chosen, asked, strict=True))

        return [text for batch in bench.share.collect(work, len(batches)) for text in batch]

    def _answers(self, batches: Collection[Sequence[Question]], with_image: bool, bench: Bench, inputs: Counts) -> Iterator[list[str]]:
        """The answers to each batch. inputs: as of `_ask`."""
        from ...downstream.vlm.generation import answer

        assert bench.vlm is not None
        settings, names = self.settings, [question.image for batch in batches for question in batch]
        with closing(read_each(_Reader(self.folder, names), range(len(names)), bench.num_workers)) as images:
            for batch in batches:
                replies = answer(
                    bench.vlm,
                    [question.prompt for question in batch],
                    [next(images) for _ in batch] if with_image else None,
                    max_new_tokens=settings.max_new_tokens,
                    image_size=settings.image_size or bench.image_size,
                    autocast=bench.autocast,
                )
                for size in replies.sizes:
                    inputs[size] = inputs.get(size, 0) + 1
                yield replies.texts

    def _write(self, given: Mapping[str, Given], is_scored: bool) -> None:
        """The files of answers that are asked for."""
        if self.answers is not None:
            _write(self.answers, "\n".join(self._lines(given, is_scored)) + "\n")
        if self.submission is not None:
            everything = [question for questions in self.files.values() for question in questions]
            rows = zip(everything, (text for name in self.files for text in given["vlm"][name]), strict=True)
            _write(self.submission, json.dumps([{"question_id": question.id, "answer": text} for question, text in rows]))

    def _lines(self, given: Mapping[str, Given], is_scored: bool) -> Iterator[str]:
        for row, texts in given.items():
            for name, questions in self.files.items():
                for question, text in zip(questions, texts[name], strict=True):
                    line = {"model": row, "file": name, "question_id": question.id, "image": question.image, "question": question.text}
                    line |= {"answer": text} | ({"score": self.scoring.score(text, question)} if is_scored else {})
                    yield json.dumps(line, ensure_ascii=False)


class _Reader:
    """Images by their numbers, for reading processes."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = folder, names

    def __call__(self, number: int) -> Image.Image:
        return Image.fromarray(one_picture(self.folder / self.names[number]).permute(1, 2, 0).numpy())


def _spread(questions: Sequence[Question], limit: int | None) -> Sequence[Question]:
    count = min(limit or len(questions), len(questions))
    return [questions[number * len(questions) // count] for number in range(count)]


def _fingerprint(questions: Sequence[Question]) -> str:
    return hashlib.sha256(json.dumps([tuple(question) for question in questions]).encode()).hexdigest()[:16]


def _cannot_write(path: Path, key: str) -> str | None:
    if path.exists():
        return f"{key}: {shown(path)} is there already; nothing was touched; give another name"
    return None if path.parent.is_dir() else f"{key}: there is no folder {shown(path.parent)}; create it, or give another name"


def _write(path: Path, text: str) -> None:
    with disk_errors(path.parent):
        write_aside(path, text.encode("utf-8", "backslashreplace"))
