"""Line charts as SVG inside a page: they take the page's colours, light or dark, and need no script and no library.

Libraries were weighed by what every run folder would carry: plotly's script has 4.5 MB; Vega's has 0.9 MB and takes 7 s to put together on
two cores (vl-convert, 84 MB installed). A chart here has some kB and takes milliseconds.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from ..run_folder import Series
from .page import text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 230, 68, 10, 8, 34
"""px; on the left is room for the title of the axis and for ticks of 8 characters, as 1.25e-05."""
COLOURS = ("#3b82f6", "#e4572e", "#2f9e59", "#a855f7", "#b57f06", "#0e96a3", "#d6337f", "#7d8597")
"""At least 3:1 against the cards of light and of dark pages (WCAG 1.4.11)."""
DASHES = {"solid": "", "dashed": "6 3", "dotted": "2 3"}
"""Lengths of dashes and gaps in px, by the name that the key of a chart draws them with."""
CHARACTER = 6.3
"""px a character of the numbers on an axis."""
MOST_POINTS = 300
"""Of a line; of more, evenly spread ones are drawn."""


def line_chart(title: str, unit: str, lines: Mapping[str, Series]) -> str:
    """A figure with one line for each name over the steps, a key, and the last values as text; empty where there is nothing to draw.

    unit: of the vertical axis, in words. Numbers that are not finite are left out. The chart can be reached with the tab key, and screen
    readers read its title and last values.
    """
    points = {name: _points(series) for name, series in lines.items()}
    points = {name: pairs for name, pairs in points.items() if pairs}
    if not points:
        return ""
    xs, ys = ([pair[axis] for pairs in points.values() for pair in pairs] for axis in (0, 1))
    ticks = nice_ticks(min(ys), max(ys))
    low, high, first, last = min(ticks[0], *ys), max(ticks[-1], *ys), min(xs), max(xs)

    def x_of(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - first) / (last - first) if last > first else 0.5)

    def y_of(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))

    drawn = [_grid(ticks, y_of), _steps(first, last, x_of), _axis_titles(unit)]
    key = []
    for (name, pairs), (colour, dash) in zip(points.items(), styles(list(points)), strict=True):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in pairs)
        value = f"{name}: {pairs[-1][1]:.4g}"
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{DASHES[dash]}" points="{path}"/>')
        drawn.append(f'<circle cx="{x_of(pairs[-1][0]):.1f}" cy="{y_of(pairs[-1][1]):.1f}" r="3" fill="{colour}"/>')
        key.append(f'<li><i style="border-top:3px {dash} {colour}"></i>{text(value)}</li>')
    summary = f"{title}, {unit}, steps {first:g} to {last:g}; last values: " + ", ".join(f"{n} {p[-1][1]:.4g}" for n, p in points.items())
    return (
        f'<figure><h3>{text(title)}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{text(summary)}">'
        f'{"".join(drawn)}</svg><figcaption>last values<ul class="key">{"".join(key)}</ul></figcaption></figure>'
    )


def styles(names: Sequence[str]) -> list[tuple[str, str]]:
    """(colour, dashes by name) of each line. Of several runs with several curves each (`run: curve`) a curve has its colour and a run its
    dashes, as far as these last; elsewhere each line has the next colour, dashed after all colours, so that no two look alike."""
    parts = [name.rpartition(": ")[::2] for name in names]
    runs, curves = (list(dict.fromkeys(pair[side] for pair in parts)) for side in (0, 1))
    dashes = list(DASHES)
    if 1 < len(runs) <= len(dashes) and 1 < len(curves) <= len(COLOURS):
        return [(COLOURS[curves.index(curve)], dashes[runs.index(run)]) for run, curve in parts]
    return [(COLOURS[number % len(COLOURS)], dashes[number // len(COLOURS) % len(dashes)]) for number in range(len(names))]


def _points(series: Series) -> list[tuple[float, float]]:
    pairs = [(float(x), float(y)) for x, y in zip(series.steps, series.values, strict=True) if math.isfinite(y)]
    if len(pairs) <= MOST_POINTS:
        return pairs
    return [pairs[round(number * (len(pairs) - 1) / (MOST_POINTS - 1))] for number in range(MOST_POINTS)]


def nice_ticks(low: float, high: float) -> Sequence[float]:
    """Three to seven round numbers that enclose `low` to `high`."""
    if high <= low:
        spread = abs(low) or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _grid(ticks: Sequence[float], y_of: Callable[[float], float]) -> str:
    lines = (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y_of(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
        for y in ticks
    )
    return "".join(lines)


def _steps(first: float, last: float, x_of: Callable[[float], float]) -> str:
    """The first and the last step below the axis, and round numbers between them where there is room."""
    if first == last:
        return _step(first, x_of(first), "middle")
    left, right = (x_of(first) + _width(first), x_of(last) - _width(last))
    drawn = [_step(first, x_of(first), "start"), _step(last, x_of(last), "end")]
    for step in nice_ticks(first, last):
        middle, half = x_of(step), _width(step) / 2
        if left + CHARACTER < middle - half and middle + half < right - CHARACTER:
            drawn.append(_step(step, middle, "middle"))
            left = middle + half
    return "".join(drawn)


def _width(step: float) -> float:
    return len(f"{step:,.0f}") * CHARACTER


def _step(step: float, x: float, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{step:,.0f}</text>'


def _axis_titles(unit: str) -> str:
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    return (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">steps</text>'
        f'<text x="11" y="{middle}" text-anchor="middle" transform="rotate(-90 11 {middle})">{text(unit)}</text>'
    )
