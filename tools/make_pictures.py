#!/usr/bin/env python
"""Draws the picture of the README from the student that comes with the package, on a generated scene.

python tools/make_pictures.py                            # docs/images/overview.png
python tools/make_pictures.py --out shown --image my.jpg --texts "a dog" "a cat" --point 120 80 --model runs/first
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

import amradio
from amradio.data.scenes import CLASS_NAMES, draw_scene
from amradio.drawing.panels import Panel, sheet
from amradio.image_input import one_picture
from amradio.images import to_float
from amradio.model.showing import Prompts, panels

ROOT = Path(__file__).parents[1]
SEED, NUMBER, SIDE = 101, 14, 256
"""A scene of the seed of the evaluations, which nothing was trained on, and px at which it is drawn."""
STUDENT_SIDE = 128
"""px at which the student sees it: twice the size of its training, for maps of 16 x 16 cells."""
POINTS = ((110.0, 140.0), (168.0, 42.0), (205.0, 122.0), (40.0, 212.0))
"""One on each object."""
TITLES = {
    "backbone": "backbone",
    "head clip": "head for CLIP",
    "head dino": "head for DINO",
    "head sam": "head for SAM",
    "masks": "masks of clicks, by SAM's decoder",
}


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--model", default="embedded/quickstart")
    parser.add_argument("--image", help="a picture in place of the scene")
    parser.add_argument("--number", type=int, default=NUMBER, help="of the scene")
    parser.add_argument("--texts", nargs="+", default=[f"a photo of a {name} object" for name in CLASS_NAMES], help="to name it by")
    parser.add_argument("--point", type=float, nargs=2, action="append", metavar=("X", "Y"), help="a click; may be given again")
    return parser.parse_args()


def name_of(model: amradio.Model, image: torch.Tensor, texts: list[str]) -> str:
    """The text that the summary of the CLIP head is nearest to."""
    summary = F.normalize(model.features(image, "clip")["clip"].summary, dim=1)
    return texts[int((summary @ model.text("clip")(texts).T).argmax())]


def overview(model: amradio.Model, image: torch.Tensor, texts: list[str], points: list[tuple[float, float]]) -> Image.Image:
    """Two rows of three: the picture with its name, masks, and features. image: float [3, H, W] in [0, 1]."""
    titles = {**TITLES, "picture": f"picture; its name by CLIP's encoder: '{name_of(model, image, texts)}'"}
    named: dict[str, Panel] = {}
    for panel in panels(model, image, {}, Prompts(points=points), STUDENT_SIDE):
        name = "backbone" if panel.title.startswith("backbone") else panel.row
        named[name] = Panel("first", titles[name], panel.picture)
    heads = [named[name]._replace(row="second") for name in named if name.startswith("head")]
    return sheet([named["picture"], named["masks"], named["backbone"], *heads])


def main() -> None:
    """Draws it."""
    given = options()
    picture = one_picture(given.image) if given.image else torch.from_numpy(draw_scene(SEED, given.number, SIDE).image).permute(2, 0, 1)
    image = to_float(picture)
    given.out.mkdir(parents=True, exist_ok=True)
    overview(amradio.load(given.model), image, given.texts, [tuple(point) for point in given.point or POINTS]).save(
        given.out / "overview.png", optimize=True
    )


if __name__ == "__main__":
    main()
