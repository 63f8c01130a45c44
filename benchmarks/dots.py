"""Panels of rows of dots: the value of every seed, and their mean as a line."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

WIDTH, RIGHT, TOP, BOTTOM, STEP = 380, 30, 44, 40, 24
INK, DOT, MEAN, GRID = "#222222", "#1f5fb4", "#b0282e", "#dddddd"


class Row(NamedTuple):
    """One variant."""

    name: str
    values: Sequence[float]


def draw_rows(panels: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Writes a PNG: panels beside one another, titled by their keys, rows from above; more is further right."""
    height = TOP + BOTTOM + STEP * max(len(rows) for rows in panels.values())
    left = 30 + round(max(ImageFont.load_default(13).getlength(row.name) for rows in panels.values() for row in rows))
    width = left + WIDTH + RIGHT
    picture = Image.new("RGB", (width * len(panels), height), "white")
    for number, (title, rows) in enumerate(panels.items()):
        one = Image.new("RGB", (width, height), "white")
        _draw(ImageDraw.Draw(one), title, rows, (left, height))
        picture.paste(one, (width * number, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most`."""
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _draw(pen: ImageDraw.ImageDraw, title: str, rows: Sequence[Row], origin: tuple[int, int]) -> None:
    """A panel of rows. origin: px from the left to the axis, and the height."""
    left, height = origin
    small, font = ImageFont.load_default(13), ImageFont.load_default(16)
    values = [value for row in rows for value in row.values]
    margin = 0.06 * (max(values) - min(values)) or 1.0
    low, high = min(values) - margin, max(values) + margin

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * WIDTH

    pen.text((left, 10), title, fill=INK, font=font)
    for tick in ticks(low, high):
        pen.line([(across(tick), TOP - 6), (across(tick), height - BOTTOM)], fill=GRID)
        pen.text((across(tick), height - BOTTOM + 6), f"{tick:g}", fill=INK, font=small, anchor="ma")
    for number, row in enumerate(rows):
        y = TOP + STEP * (number + 0.5)
        pen.text((left - 12, y), row.name, fill=INK, font=small, anchor="rm")
        mean = across(sum(row.values) / len(row.values))
        pen.line([(mean, y - 9), (mean, y + 9)], fill=MEAN, width=3)
        for value in row.values:
            x = across(value)
            pen.ellipse([(x - 4, y - 4), (x + 4, y + 4)], outline=DOT, width=2)
