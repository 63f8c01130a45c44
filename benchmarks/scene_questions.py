"""Questions on generated scenes with known answers: colour, shape, count, and presence as in POPE; written in LLaVA's layout."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from amradio.data.scene_shapes import SHAPES
from amradio.data.scenes import COLOURS, Body, Scene, bodies_back_to_front, draw_scene

KINDS = ("colour", "shape", "count", "presence")
LEAST_SHARE = 0.002
"""Of the picture that each object has to cover (8 px of 64 x 64); other scenes are left out, as their count would be in doubt."""


class Question(NamedTuple):
    """One question with its answer."""

    kind: str
    text: str
    answer: str


def clear_scenes(seed: int, image_size: int) -> Iterator[tuple[int, Scene, list[Body]]]:
    """(index, scene, its objects) of the world `seed`, without scenes in which an object is hidden or nearly so."""
    index = 0
    while True:
        scene, bodies = draw_scene(seed, index, image_size), bodies_back_to_front(seed, index)
        areas = scene.instance_masks.mean(axis=(1, 2))
        if len(areas) == len(bodies) and areas.min() >= LEAST_SHARE:
            yield index, scene, bodies
        index += 1


def questions_of(bodies: list[Body], draw: random.Random) -> list[Question]:
    """Five questions on a scene: one a kind, and two of presence, the first with yes and the second with no as its answer.

    draw: chooses the object that is there, and one that is not, of all pairs of colour and shape alike (POPE's `random`).
    """
    biggest = max(bodies, key=lambda body: body.radius)
    there = {(body.colour, body.shape) for body in bodies}
    missing = [pair for colour in COLOURS for shape in SHAPES if (pair := (colour, shape)) not in there]
    asked = ((draw.choice(sorted(there)), "yes"), (draw.choice(missing), "no"))
    return [
        Question("colour", "What color is the biggest object?", biggest.colour),
        Question("shape", "What shape is the biggest object?", biggest.shape),
        Question("count", "How many objects are there?", str(len(bodies))),
        *(Question("presence", f"Is there a {colour} {shape} in the image?", answer) for (colour, shape), answer in asked),
    ]


def write_training(folder: Path, seed: int, count: int, image_size: int) -> None:
    """`captions.json` and `questions.json` in LLaVA's layout, and `count` pictures; all questions on a picture are one conversation."""
    folder.mkdir(parents=True)
    captions, conversations = [], []
    for (index, scene, bodies), _ in zip(clear_scenes(seed, image_size), range(count), strict=False):
        name = f"scene-{seed}-{index}.png"
        Image.fromarray(scene.image).save(folder / name)
        draw = random.Random(f"{seed}/{index}")
        asked = questions_of(bodies, draw)
        draw.shuffle(asked)
        turns = [
            turn for question in asked for turn in ({"from": "human", "value": question.text}, {"from": "gpt", "value": question.answer})
        ]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        caption = [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": scene.captions[0]}]
        captions.append({"id": name, "image": name, "conversations": caption})
        conversations.append({"id": name, "image": name, "conversations": turns})
    for name, samples in (("captions", captions), ("questions", conversations)):
        (folder / f"{name}.json").write_text(json.dumps(samples))


def held_out(seed: int, count: int, image_size: int) -> list[tuple[Image.Image, Question]]:
    """A question of each kind on each of `count` scenes, kind after kind; of presence, one half has yes for its answer."""
    drawn = [
        (Image.fromarray(scene.image), questions_of(bodies, random.Random(f"{seed}/{index}")))
        for (index, scene, bodies), _ in zip(clear_scenes(seed, image_size), range(count), strict=False)
    ]
    chosen = []
    for number, kind in enumerate(KINDS):
        for turn, (image, questions) in enumerate(drawn):
            chosen.append((image, questions[number + turn % 2 if kind == "presence" else number]))
    return chosen
