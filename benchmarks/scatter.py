"""Panels of points: quality against speed, with the line of those that nothing beats in both."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 460, 70, 40, 50, 50
COLOURS = {"student": "#1f5fb4", "teacher": "#b0282e"}


class Point(NamedTuple):
    """One model."""

    name: str
    x: float
    """images/s, drawn on a logarithmic axis."""
    y: float
    kind: str
    """`student` or `teacher`."""


class Panel(NamedTuple):
    """One measure of quality."""

    title: str
    points: Sequence[Point]
    lower_is_better: bool = False
    """Drawn upside down, so that better is always up."""


def frontier(points: Sequence[Point], lower_is_better: bool = False) -> list[Point]:
    """The points than which no other is at least as fast and at least as good and better in one of both, fastest first."""
    sign = -1 if lower_is_better else 1
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.x, -sign * p.y)):
        if not found or sign * point.y > sign * found[-1].y:
            found.append(point)
    return found


def draw_panels(panels: Sequence[Panel], path: Path, axis: str) -> None:
    """Writes a PNG, two panels beside one another; axis: what x is."""
    columns = min(2, len(panels))
    picture = Image.new("RGB", (WIDTH * columns, HEIGHT * math.ceil(len(panels) / columns)), "white")
    for number, panel in enumerate(panels):
        one = Image.new("RGB", (WIDTH, HEIGHT), "white")
        _draw(ImageDraw.Draw(one), panel, axis)
        picture.paste(one, (WIDTH * (number % columns), HEIGHT * (number // columns)))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _draw(pen: ImageDraw.ImageDraw, panel: Panel, axis: str) -> None:
    small, font = ImageFont.load_default(12), ImageFont.load_default(15)
    xs, ys = [math.log10(p.x) for p in panel.points], [p.y for p in panel.points]
    x_low, x_high = _widened(min(xs), max(xs))
    taken: list[tuple[float, float, float]] = []
    y_low, y_high = _widened(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (math.log10(x) - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        up = 1 - up if panel.lower_is_better else up
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    pen.text((LEFT, 14), panel.title, fill="black", font=font)
    pen.text((LEFT, HEIGHT - 22), axis, fill="black", font=small)
    floor = y_high if panel.lower_is_better else y_low
    for tick in range(5):
        x, y = 10 ** (x_low + tick * (x_high - x_low) / 4), y_low + tick * (y_high - y_low) / 4
        pen.line([place(10**x_low, y), place(10**x_high, y)], fill="#dddddd")
        pen.text((8, place(x, y)[1] - 7), f"{y:.3g}", fill="black", font=small)
        pen.text((place(x, floor)[0] - 12, HEIGHT - BOTTOM + 6), f"{x:,.0f}" if x >= 10 else f"{x:.2g}", fill="black", font=small)
    best = frontier([p for p in panel.points if p.kind == "student"], panel.lower_is_better)
    pen.line([place(p.x, p.y) for p in best], fill="#9dbfe6", width=2)
    for point in panel.points:
        x, y = place(point.x, point.y)
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=COLOURS[point.kind])
        width = pen.textlength(point.name, font=small)
        left, top = min(x + 8, WIDTH - 4 - width), y - 16
        while any(abs(top - other) < 13 and left < right and start < left + width for start, right, other in taken):
            top += 13
        taken.append((left, left + width, top))
        pen.text((left, top), point.name, fill=COLOURS[point.kind], font=small)


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.12 * (high - low) or 0.5
    return low - margin, high + margin
