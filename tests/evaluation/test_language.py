"""GQA, POPE, TextVQA and VQAv2 from the command line: files, scores, floors, answers on disk, and bad input."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import amradio
import vlms
from amradio.__main__ import main
from amradio.downstream.vlm import generation
from amradio.downstream.vlm.assembly import Vlm, assemble
from amradio.downstream.vlm.files import load_vlm, write_vlm
from amradio.downstream.vlm.generation import Replies
from amradio.evaluation.sharing import Share
from amradio.evaluation.suite import Suite, plain, run_suite
from ranks import on_several

COCO = "COCO_val2014_{:012d}.jpg"
SUITE = """
evaluations:
  GQA: {{type: gqa, questions: {0}/gqa.json, images: {0}/images, models: [vlm, vlm/without_image], answers: {0}/gqa.jsonl}}
  POPE: {{type: pope, questions: [{0}/random.json, {0}/popular.json], images: {0}/images, batch_size: 3}}
  text: {{type: textvqa, questions: {0}/text.json, images: {0}/images, ocr: {0}/ocr.json, limit: 2}}
  VQA: {{type: vqav2, questions: {0}/vqa.json, annotations: {0}/annotations.json, images: {0}/images, submission: {0}/evalai.json}}
device: cpu
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained vision-language model that sees 64 px."""
    place = tmp_path_factory.mktemp("vlm")
    torch.manual_seed(0)
    vlm = assemble(amradio.load(vlms.write_student(place / "student")), None, 64, str(vlms.write_language_model(place / "language_model")))
    write_vlm(vlm, place / "vlm", "# A model")
    return place / "vlm"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Four questions of each set about three pictures, in the official layouts."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (40 + 8 * number, 60), (80 * number, 0, 0)).save(tmp_path / "images" / COCO.format(number))
        Image.new("RGB", (64, 64), (0, 80 * number, 0)).save(tmp_path / "images" / f"{number}.jpg")
    kinds = ("yes/no", "number", "other", "other")
    people = [[{"answer": answer} for answer in answers] for answers in (["yes"] * 10, ["2"] * 10, ["red"] * 2 + ["a"] * 8, ["red"] * 10)]
    questions = [{"question_id": number, "image_id": number % 3, "question": f"{number}?"} for number in range(4)]
    text = [{**row, "image_id": str(row["image_id"]), "answers": ["Red"] * 10} for row in questions]
    pope = [{"question_id": n, "image": COCO.format(n % 3), "text": f"{n}?", "label": "yes" if n < 2 else "no"} for n in range(4)]
    content = {
        "gqa": {str(n): {"imageId": str(n % 3), "question": f"{n}?", "answer": "red" if n else "blue"} for n in range(4)},
        "text": {"data": text},
        "ocr": {"data": [{"image_id": str(number), "ocr_tokens": ["A"]} for number in range(3)]},
        "vqa": {"data_subtype": "val2014", "questions": questions},
        "annotations": {"annotations": [{"question_id": n, "answers": people[n], "answer_type": kinds[n]} for n in range(4)]},
    }
    for name, rows in content.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    for name in ("random", "popular"):
        (tmp_path / f"{name}.json").write_text("\n".join(map(json.dumps, pope)))
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE.format(tmp_path))
    return file


@pytest.mark.slow
def test_answers_are_scored_and_written(folder: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """With the model's generation replaced, so that it is known what is said: red with an image, yes without."""
    asked: list[str] = []

    def say(vlm: Vlm, prompts, images, **options: object) -> Replies:
        asked.extend(prompts)
        return Replies(["yes" if images is None else "Red."] * len(prompts), [image.size[::-1] for image in images or ()])

    monkeypatch.setattr(generation, "answer", say)
    out = suite.parent / "results.json"
    assert main(["evaluate", str(folder), str(suite), "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert results["GQA"]["rows"] == {"vlm": {"accuracy": 75.0}, "vlm/without_image": {"accuracy": 0.0}}
    assert results["GQA"]["floors"] == {"accuracy": 75.0}
    assert results["POPE"]["rows"]["vlm"] == pytest.approx(
        {"f1": 200 / 3, "accuracy": 50.0, "precision": 50.0, "recall": 100.0, "yes_share": 100.0}
    )
    assert results["POPE"]["details"]["by_file"]["vlm"].keys() == {"random", "popular"}
    assert results["text"]["rows"] == {"vlm": {"accuracy": 100.0}}
    assert results["text"]["counts"] == {"questions": 2, "images": 2}
    assert results["VQA"]["rows"]["vlm"] == pytest.approx(
        {"accuracy": 40.0, "accuracy_yes_no": 0.0, "accuracy_number": 0.0, "accuracy_other": 80.0}
    )
    assert results["VQA"]["inputs"]["vlm"]["short_side"] == [40, 56]
    assert "0?\nReference OCR token: A\nAnswer the question using a single word or phrase." in asked
    lines = [json.loads(line) for line in (suite.parent / "gqa.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert [line["score"] for line in lines] == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert json.loads((suite.parent / "evalai.json").read_text())[3] == {"question_id": 3, "answer": "Red."}
    printed = capsys.readouterr().out
    assert "vlm/without_image" in printed
    assert main(["evaluate", str(folder), str(suite)]) == 2
    assert "gqa.jsonl is there already; nothing was touched" in capsys.readouterr().err


def test_the_suite_has_the_published_numbers_beside(
    folder: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The same files under their official names."""
    data = suite.parent
    names = {
        "gqa": "val_balanced_questions",
        "popular": "coco_pope_popular",
        "text": "TextVQA_0.5.1_val",
        "ocr": "TextVQA_Rosetta_OCR_v0.2_val",
        "vqa": "v2_OpenEnded_mscoco_val2014_questions",
        "annotations": "v2_mscoco_val2014_annotations",
    }
    for ours, official in names.items():
        (data / f"{ours}.json").rename(data / f"{official}.json")
    for images in ("val2014", "train_images"):
        (data / images).symlink_to(data / "images")
    paths = data / "benchmarks.yaml"
    paths.write_text("".join(f"{key}: {data}\n" for key in ("coco", "gqa", "pope", "textvqa", "vqav2")))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(generation, "answer", lambda vlm, prompts, images, **options: Replies(["red"] * len(prompts), [(64, 64)]))
    assert main(["evaluate", str(folder), "--suite", "vlm", "--data", str(paths), "device=cpu"]) == 0
    printed = capsys.readouterr().out
    table = [" ".join(line.split()) for line in printed[printed.index("Beside published numbers") :].splitlines()]
    assert "GQA vlm 75.0 63.0 +12.0 RADIO ViT-H/16, 432 px arXiv 2312.06709, table 1" in table
    assert any(line.startswith("VQAv2 vlm 40.0 79.3 -39.3") for line in table), table
    assert any(line.startswith("POPE vlm 66.7 87.4 -20.7 RADIOv2.5-H, 768 px") for line in table), table
    paths.write_text(f"gqa: {data}\n")
    assert main(["evaluate", str(folder), "--suite", "vlm", "--data", str(paths), "device=cpu"]) == 2
    assert "coco is missing; write `coco: FOLDER` into it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_model_answers_at_the_size_that_is_asked_for(folder: Path, suite: Path) -> None:
    words = [
        f"evaluations={{g: {{type: gqa, questions: {suite.parent / 'gqa.json'}, images: {suite.parent / 'images'}, max_new_tokens: 2}}}}"
    ]
    words += ["device=cpu", "evaluations.g.image_size=32"]
    whole = amradio.evaluate(folder, *words, "evaluations.g.batch_size=1")
    assert whole["g"].inputs == {"vlm": {(32, 32): 4}}
    assert amradio.evaluate(folder, *words)["g"].rows == whole["g"].rows


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one_and_the_first_one_writes(folder: Path, suite: Path) -> None:
    vlm = load_vlm(folder)
    names = [f"evaluations.{name}.max_new_tokens=2" for name in ("GQA", "POPE", "text", "VQA")]
    wanted = Suite.load(str(suite), *names, "evaluations.GQA.batch_size=1", "evaluations.VQA.batch_size=3")
    written = [suite.parent / name for name in ("gqa.jsonl", "evalai.json")]

    def work(share: Share) -> dict[str, Any]:
        torch.set_num_threads(1)
        bench = wanted.bench(vlm.student, {})
        bench.share, bench.vlm = share, deepcopy(vlm)  # threads play the processes, and a tokenizer is for one thread
        return {name: {**plain(result), "seconds": 0, "counted": result.inputs} for name, result in run_suite(wanted, bench).items()}

    def contents() -> list[str]:
        texts = [file.read_text() for file in written]
        for file in written:
            file.unlink()
        return texts

    expected, texts = work(Share()), contents()
    assert sum(expected["GQA"]["counted"]["vlm"].values()) == 4
    assert on_several(2, work) == [expected] * 2
    assert contents() == texts


def test_a_tower_is_measured_as_any_student(folder: Path) -> None:
    found = amradio.evaluate(folder, "evaluations={s: {type: statistics, data: {type: scenes, length: 4, image_size: 32}}}", "device=cpu")
    assert "student" in found["s"].rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("image_size=70",), "image_size: 70 px is no side of an image that the student takes; take 64"),
        (("evaluations.GQA.models=[student]",), "evaluations.GQA.models.0: should be 'vlm' or 'vlm/without_image', found 'student'"),
        (("evaluations.VQA.annotations=null", "evaluations.VQA.submission=null"), "annotations: without them nothing can be scored"),
        (("evaluations.GQA.answers=nowhere/x.jsonl",), "evaluations.GQA: answers: there is no folder nowhere"),
        (("evaluations.POPE.answers={0}/gqa.jsonl",), "evaluations.POPE.answers: {0}/gqa.jsonl is the file of evaluations.GQA.answers"),
        (
            ("evaluations.VQA.answers={0}/./evalai.json",),
            "evaluations.VQA.submission: {0}/evalai.json is the file of evaluations.VQA",
        ),
        (("--json", "{0}/evalai.json"), "evaluations.VQA.submission: {0}/evalai.json is the file of --json as well; give another name"),
        (("evaluations.POPE.images=nowhere",), "evaluations.POPE: nowhere: there is no such folder"),
    ],
)
def test_bad_input(words: tuple[str, ...], message: str, folder: Path, suite: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(folder), str(suite), *(word.format(suite.parent) for word in words)]) == 2
    assert message.format(suite.parent) in capsys.readouterr().err


def test_an_image_that_is_no_picture_is_refused_before_a_question_is_asked(
    folder: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(generation, "answer", None)
    (suite.parent / "images" / "1.jpg").write_bytes(b"no picture")
    assert main(["evaluate", str(folder), str(suite), "evaluations.VQA=null", "evaluations.POPE=null"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all("1.jpg: the image cannot be read (not a picture in JPEG" in error for error in errors)


def test_a_student_is_no_vision_language_model(folder: Path, suite: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        main(
            [
                "evaluate",
                str(folder.parent / "student"),
                str(suite),
                f"evaluations.again={{type: gqa, questions: {suite.parent}/gqa.json, images: {suite.parent}/images}}",
            ]
        )
        == 2
    )
    errors = capsys.readouterr().err
    assert "evaluations.GQA (and again): gqa: a vision-language model is needed; give as PATH" in errors
    assert errors.count("gqa: a vision-language model") == 1
