"""A plain line chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..files import disk_errors

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 480, 60, 240, 48, 44
COLOURS = ("#1f5fb4", "#d1601f", "#2f8f46", "#b0282e", "#7a4fb0", "#7b5b3e", "#c251a0", "#5e5e5e", "#8f8f1f", "#1f9fae")


class Line(NamedTuple):
    """One line of the chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y), x ascending."""


def draw_lines(lines: Sequence[Line], path: Path, title: str) -> None:
    """Writes a PNG with the lines over a vertical axis from 0 (or below) to 1 (or above); raises UserError where the disk refuses."""
    xs = sorted({x for line in lines for x, _ in line.points}) or [0.0]
    ys = [y for line in lines for _, y in line.points]
    low, high = min([0.0, *ys]), max([1.0, *ys])
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0]) if xs[-1] > xs[0] else 0.5
        up = (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    pen.text((LEFT, 14), title, fill="black", font=font)
    for tick in range(5):
        y = low + tick * (high - low) / 4
        pen.line([to_pixels(xs[0], y) if len(xs) > 1 else (LEFT, to_pixels(0, y)[1]), (WIDTH - RIGHT, to_pixels(0, y)[1])], fill="#dddddd")
        pen.text((12, to_pixels(0, y)[1] - 8), f"{y:.2f}", fill="black", font=font)
    for x in xs:
        pen.text((to_pixels(x, low)[0] - 12, HEIGHT - BOTTOM + 8), f"{x:g}", fill="black", font=font)
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = [to_pixels(*point) for point in line.points]
        pen.line(points, fill=colour, width=3)
        for x, y in points:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        pen.text((WIDTH - RIGHT + 16, TOP + 22 * number), line.name, fill=colour, font=font)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
