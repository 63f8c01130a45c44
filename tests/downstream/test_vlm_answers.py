"""Metrics of answers against values of the official scripts, and the official files of GQA, POPE, TextVQA and VQAv2."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from amradio.downstream.vlm.answers import is_exact, is_yes, normalized, vqa_accuracy, yes_no_scores
from amradio.downstream.vlm.questions import INSTRUCTION, read_gqa, read_pope, read_textvqa, read_vqav2
from amradio.errors import UserError

REFERENCE = json.loads((Path(__file__).parent / "vqa_reference.json").read_text(encoding="utf-8"))
"""Computed with the code of TextVQA's evaluation (M4C, from Pythia)."""


def test_normal_forms_are_the_official_ones() -> None:
    assert len(REFERENCE["normalized"]) == 63
    assert {text: normalized(text) for text, _ in REFERENCE["normalized"]} == dict(REFERENCE["normalized"])


def test_accuracies_are_the_official_ones() -> None:
    assert len(REFERENCE["accuracy"]) == 60
    for prediction, answers, accuracy in REFERENCE["accuracy"]:
        assert vqa_accuracy(prediction, answers) == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_annotators_are_left_out_one_at_a_time(matches: int, accuracy: float) -> None:
    assert vqa_accuracy("Red.", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(accuracy)


def test_gqa_matches_whole_answers() -> None:
    assert is_exact(" Left.\n", "left")
    assert not is_exact("to the left", "left")


@pytest.mark.parametrize(
    ("answer", "said"), [("Yes", True), ("No, there is no dog. Yes", False), ("There is not", False), ("nothing", True), ("Yes. No", True)]
)
def test_pope_reads_the_first_sentence(answer: str, said: bool) -> None:
    assert is_yes(answer) is said


def test_pope_counts_what_was_predicted() -> None:
    scores = yes_no_scores([True, True, True, False], [True, False, False, False])
    assert scores == pytest.approx((0.5, 1 / 3, 1.0, 0.5, 0.75))
    assert yes_no_scores([False], [True]).f1 == 0.0


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def vqav2(tmp_path: Path) -> tuple[Path, Path, Path]:
    images = pictures(tmp_path / "images", "COCO_val2014_000000000042.jpg")
    question = {"image_id": 42, "question": "What is it?", "question_id": 42000}
    questions = written(tmp_path / "questions.json", {"data_subtype": "val2014", "questions": [question]})
    answers = [{"answer": "cat", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    rows = [{"question_id": 42000, "answers": answers, "answer_type": "other"}]
    return questions, written(tmp_path / "annotations.json", {"annotations": rows}), images


def test_official_layouts(tmp_path: Path) -> None:
    questions, annotations, coco = vqav2(tmp_path)
    (question,) = read_vqav2(questions, annotations, coco)
    assert (question.id, question.image, question.answers, question.kind) == (42000, coco_name(42), ("cat",) * 10, "other")
    assert question.prompt == f"What is it?\n{INSTRUCTION}"
    assert read_vqav2(questions, None, coco)[0].answers == ()

    images = pictures(tmp_path / "gqa", "n1.jpg", "2.jpg")
    file = written(tmp_path / "gqa.json", {"07": {"imageId": "n1", "question": "Red?", "answer": "yes", "types": {}}})
    assert read_gqa(file, images)[0][:4] == ("07", "n1.jpg", "Red?", ("yes",))

    lines = [{"question_id": number, "image": coco_name(42), "text": "Is there a cat?", "label": "no"} for number in (1, 2)]
    (tmp_path / "pope.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert [question.answers for question in read_pope(tmp_path / "pope.json", coco)] == [("no",), ("no",)]

    rows = {"data": [{"question_id": 5, "image_id": "2", "question": "brand?", "answers": ["a"] * 10}]}
    ocr = written(tmp_path / "ocr.json", {"data": [{"image_id": "2", "ocr_tokens": ["DAKOTA", "5"]}]})
    text = written(tmp_path / "text.json", rows)
    assert read_textvqa(text, images)[0].prompt == f"brand?\n{INSTRUCTION}"
    assert read_textvqa(text, images, ocr)[0].prompt == f"brand?\nReference OCR token: DAKOTA, 5\n{INSTRUCTION}"


def coco_name(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_gqa, {"1": {"imageId": "a", "question": "Q"}}, "question '1': it lacks 'answer'"),
        (read_gqa, {"1": {"imageId": "b", "question": "Q", "answer": "a"}}, r"its image .*b\.jpg is missing"),
        (read_gqa, {"1": {"imageId": "../b", "question": "Q", "answer": "a"}}, "expected the path of a file below"),
        (read_gqa, {"1": [1]}, r"question '1': \[1\]; expected an object"),
        (read_gqa, {}, "there is no question in it"),
        (
            read_pope,
            {"question_id": 1, "image": "a.jpg", "text": "Q", "label": "maybe"},
            "line 1: label: found 'maybe'; expected yes",
        ),
        (read_textvqa, {"data": [{"question_id": 1, "image_id": "a", "question": "Q", "answers": ["x"]}]}, "expected a list of texts, two"),
        (read_textvqa, {"rows": []}, "it lacks 'data'; give the official file"),
        (lambda file, images: read_vqav2(file, None, images), {"questions": []}, "data_subtype is null; expected train2014, val2014"),
    ],
)
def test_wrong_files_are_named_with_the_place(read: Callable, content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(written(tmp_path / "file.json", content), pictures(tmp_path / "images", "a.jpg"))


def test_all_problems_at_once(tmp_path: Path) -> None:
    content = {"1": {"imageId": "a"}, "2": {"imageId": "a", "question": "Q"}, "3": {"imageId": "a", "question": "Q", "answer": 1}}
    with pytest.raises(UserError) as found:
        read_gqa(written(tmp_path / "file.json", content), pictures(tmp_path / "images", "a.jpg"))
    assert len(found.value.problems) == 3


def test_a_question_without_annotations_is_refused(tmp_path: Path) -> None:
    questions, _, images = vqav2(tmp_path)
    other = written(tmp_path / "other.json", {"annotations": [{"question_id": 1, "answers": ["a", "b"]}]})
    with pytest.raises(UserError, match=r"questions\[0\].*other\.json has no answers to it"):
        read_vqav2(questions, other, images)
