#!/usr/bin/env python
"""Trains the three embedded teachers from a seed and writes them in transformers' own formats, each with a card.

    python tools/make_embedded_teachers.py --out src/amradio/teachers/embedded
    python tools/make_embedded_teachers.py --only dino --steps 1000 --out /tmp/teachers
    python tools/make_embedded_teachers.py --only clip --images photos --captions captions.json --image-size 128 --minutes 60 --out mine
    python tools/make_embedded_teachers.py --only sam --images photos --instances instances.json --minutes 60 --out mine
    python tools/make_embedded_teachers.py --scores-only --out src/amradio/teachers/embedded

Without --images they learn from scenes (`amradio.data.scenes`), and what they reach is measured on other seeds. On one core
the defaults take about 14 (clip), 12 (dino) and 28 (sam) minutes; the command sets one thread unless told otherwise,
for threads that contend cost a factor of four.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from embedded import cards, clip, dino, pictures, sam
from embedded.budget import Budget
from transformers import CLIPModel, CLIPTokenizer, Dinov2WithRegistersModel, SamModel

TEACHERS = {"clip": clip, "dino": dino, "sam": sam}
CLASSES = {"clip": CLIPModel, "dino": Dinov2WithRegistersModel, "sam": SamModel}
STEPS = {"clip": 800, "dino": 1000, "sam": 3800}
# What is measured comes from the worlds seed + 10 (k-NN's known pictures) and seed + 11.
KNOWN, TEST = 4000, 1000


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives clip/, dino/ and sam/")
    parser.add_argument("--only", choices=TEACHERS, action="append", help="one teacher; may be given again for another")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, the weights and the order of training")
    parser.add_argument("--steps", type=int, help=f"updates; by default {STEPS}")
    parser.add_argument("--minutes", type=float, help="stop after so long, with the schedule fitted to it (not reproducible)")
    parser.add_argument("--pictures", type=int, default=24000, help="scenes to learn from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=64, help="px, a multiple of 8")
    parser.add_argument("--images", type=Path, help="folder of real photographs to learn from instead of scenes")
    parser.add_argument("--captions", type=Path, help="captions of --images in COCO format, for clip")
    parser.add_argument("--instances", type=Path, help="masks of --images in COCO format, for sam")
    parser.add_argument("--scores-only", action="store_true", help="train nothing: measure what lies in --out and write its card")
    given = parser.parse_args()
    if given.image_size % 8:
        parser.error(f"--image-size {given.image_size}: not a multiple of the patch size, 8")
    if given.images and "clip" in (given.only or TEACHERS) and not given.captions:
        parser.error("--images without --captions: clip cannot learn from these; add --captions or --only dino")
    if given.images and "sam" in (given.only or TEACHERS) and not given.instances:
        parser.error("--images without --instances: sam cannot learn from these; add --instances or --only dino")
    return given


def pool_for(name: str, given: argparse.Namespace) -> pictures.Pictures:
    """What the teacher learns from."""
    if not given.images:
        return pictures.scenes(given.seed, given.pictures, given.image_size, masks=name == "sam")
    if name == "clip":
        return pictures.captioned(given.images, given.captions, given.image_size)
    if name == "sam":
        return pictures.segmented(given.images, given.instances, given.image_size)
    return pictures.folder(given.images, given.image_size)


def measure(name: str, given: argparse.Namespace, held_out: tuple[pictures.Pictures, pictures.Pictures]) -> dict[str, float]:
    """The scores of the model that lies in the out folder, as anyone would load it."""
    folder = given.out / name
    model = CLASSES[name].from_pretrained(folder).to(given.device).eval()
    if name == "clip":
        return clip.scores(model, CLIPTokenizer.from_pretrained(folder), held_out, given.device)
    return TEACHERS[name].scores(model, held_out, given.device)


def main() -> None:
    given = options()
    torch.set_num_threads(given.threads)
    held_out = None
    if not given.images:
        held_out = tuple(pictures.scenes(given.seed + 10 + i, n, given.image_size, masks=True) for i, n in enumerate((KNOWN, TEST)))
    for name in given.only or TEACHERS:
        made = cards.read(given.out / name)
        if not given.scores_only:
            torch.manual_seed(given.seed)
            budget = Budget(given.steps or (None if given.minutes else STEPS[name]), given.minutes)
            pool = pool_for(name, given)
            TEACHERS[name].train(pool, held_out, budget, given.out / name, given.device)
            command = "python " + shlex.join(sys.argv)
            made = {
                "command": command,
                "seed": given.seed,
                "steps": budget.step,
                "minutes": round(budget.elapsed, 1),
                "pictures": len(pool.images),
            }
        scores = measure(name, given, held_out) if held_out else {}
        cards.write(given.out / name, name, made, scores, held_out)


if __name__ == "__main__":
    main()
