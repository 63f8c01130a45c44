"""The vision-language benchmark: its questions are right for their scenes, its tower of pixels returns pixels, and answers are scored."""

import json
import random
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import scene_questions
import vlm as benchmark

import amradio
import vlms
from amradio.data.scenes import CLASS_NAMES, draw_scene
from amradio.downstream.vlm.assembly import assemble
from amradio.downstream.vlm.conversations import read_conversations
from amradio.downstream.vlm.settings import ConversationsSettings


@pytest.mark.parametrize("seed", [1, 7])
def test_questions_are_right_for_their_scenes(seed: int):
    for index, scene, bodies in islice(scene_questions.clear_scenes(seed, 64), 12):
        areas = scene.instance_masks.sum((1, 2))
        colours = [CLASS_NAMES[label].split()[1] for label in scene.instance_labels]
        colour, shape, count, present, absent = scene_questions.questions_of(bodies, random.Random(index))
        assert colour.answer == CLASS_NAMES[scene.label].split()[1]
        assert scene.captions[0].split()[-2:] == [colour.answer, shape.answer]
        assert count.answer == str(len(scene.instance_masks))
        assert areas.min() >= 8
        there = {(body.colour, body.shape) for body in bodies}
        assert sorted(colours) == sorted(body.colour for body in bodies)
        for question, answer in ((present, "yes"), (absent, "no")):
            asked = tuple(question.text.removeprefix("Is there a ").removesuffix(" in the image?").split())
            assert question.answer == answer == ("yes" if asked in there else "no")


def test_scenes_with_a_hidden_object_are_left_out():
    taken = [index for index, _, _ in islice(scene_questions.clear_scenes(1, 64), 40)]
    left = set(range(taken[-1])) - set(taken)
    bodies = scene_questions.bodies_back_to_front
    hidden = [(draw_scene(1, index).instance_masks, len(bodies(1, index))) for index in left]
    assert hidden
    assert all(len(masks) < count or masks.mean((1, 2)).min() < scene_questions.LEAST_SHARE for masks, count in hidden)


def test_training_is_in_llavas_layout_and_held_out_questions_are_balanced(tmp_path: Path):
    data = tmp_path / "data"
    scene_questions.write_training(data, 1, 3, 64)
    for name, turns in (("captions", 2), ("questions", 10)):
        samples = read_conversations(ConversationsSettings(annotations=str(data / f"{name}.json"), images=str(data)))
        assert [len(sample.turns) for sample in samples] == [turns] * 3
    first = json.loads((data / "questions.json").read_text())[0]
    assert first["conversations"][0]["value"].startswith("<image>\n")
    asked = scene_questions.held_out(2, 4, 64)
    assert [question.kind for _, question in asked] == [kind for kind in scene_questions.KINDS for _ in range(4)]
    assert [question.answer for _, question in asked[-4:]] == ["yes", "no", "yes", "no"]
    assert np.array_equal(np.asarray(asked[0][0]), np.asarray(asked[4][0]))


def test_the_tower_of_pixels_returns_the_pixels_of_each_patch(tmp_path: Path):
    model = amradio.load(benchmark.write_pixels(tmp_path / "pixels", 8, 32))
    image = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    student = model.network.student
    normalised = (image - student.mean) / student.std
    patches = torch.nn.functional.unfold(normalised, 8, stride=8).transpose(1, 2).reshape(1, 2, 4, 192)
    assert torch.allclose(model(image).spatial, patches, atol=1e-6)


def test_scores_and_differences():
    colour, presence = (scene_questions.Question(*given) for given in (("colour", "", "red"), ("presence", "", "no")))
    assert [benchmark.is_right(text, colour) for text in ("Red.", "dark red", "blue")] == [True, False, False]
    assert [benchmark.is_right(text, presence) for text in ("No.", "yes", "")] == [True, False, False]

    def run(row: str, right: list[int]) -> dict:
        answers = [["", truth, given] for truth, given in zip("aab", right, strict=True)]
        return {"row": row, "answers": dict.fromkeys(scene_questions.KINDS, answers)}

    found = benchmark.summary([run(benchmark.STUDENT, [1, 1, 0]), run(benchmark.PIXELS, [1, 0, 0])])
    assert found["accuracy"][benchmark.STUDENT]["shape"] == {"mean": 66.67, "standard_error": 33.33, "questions": 3}
    assert found["accuracy"]["most frequent answer"]["shape"]["mean"] == 66.67
    assert found["differences"][f"{benchmark.STUDENT} - {benchmark.PIXELS}"]["shape"]["mean"] == 33.33


def test_every_question_is_asked_and_its_reply_kept_by_kind(tmp_path: Path):
    pixels = amradio.load(benchmark.write_pixels(tmp_path / "pixels", 8, 32))
    model = assemble(pixels, None, 32, str(vlms.write_language_model(tmp_path / "language_model")))
    asked = scene_questions.held_out(2, 2, 32)
    trained = benchmark.Trained(model, 1.0, {})
    found = {with_image: benchmark.answers_of(trained, asked, with_image)["answers"] for with_image in (True, False)}
    for answers in found.values():
        assert [(kind, answer) for kind, given in answers.items() for _, answer, _ in given] == [(q.kind, q.answer) for _, q in asked]
    assert found[True] != found[False]
    one, with_image = asked[0], found[True]["colour"][0][0]
    assert benchmark.ask(model, [one], with_image=True) == [(with_image, with_image.lower() == one[1].answer)]
