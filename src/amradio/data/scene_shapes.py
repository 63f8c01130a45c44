"""The shapes, textures and shading of the objects in `scenes`, as functions of the coordinates of an object.

Coordinates `u`, `v` are float32 [h, w] in units of the object's radius; distances are in the same unit, negative inside.
"""

import numpy as np

SHAPES: tuple[str, ...] = ("disc", "square", "triangle", "star", "ring", "cross", "crescent", "heart")
TEXTURES: tuple[str, ...] = ("plain", "striped", "checked", "dotted")

PERIODS = {"striped": 0.48, "checked": 0.8, "dotted": 0.46}  # in radii of the object

Shares = tuple[np.ndarray | None, np.ndarray | None]

SQRT3 = np.float32(3**0.5)
SECTOR = np.float32(2 * np.pi / 5)  # of a star of five tips


def _tip_normal() -> tuple[np.float32, np.float32]:
    """Of the line from a star's tip (1.05, 0) to the notch beside it, at 0.5 of the radius and half a sector on."""
    notch = 0.5 * np.cos(SECTOR / 2), 0.5 * np.sin(SECTOR / 2)
    length = np.hypot(1.05 - notch[0], notch[1])
    return np.float32(notch[1] / length), np.float32((1.05 - notch[0]) / length)


TIP_NORMAL = _tip_normal()


def signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """float32, of the shape of u and v: distance to the outline (exact or a close bound), negative inside."""
    return _DISTANCES[shape](u, v)


def texture_shares(texture: str, uv: np.ndarray, radius: float, radius_px: np.float32, phase: np.ndarray) -> Shares:
    """How much of the pale and of the deep colour is at each point, float32 [h, w] in [0, 1] each, None for none; the rest is the base.

    uv: float32 [2, h, w]. phase: float32 [2], of the pattern. `radius` is the object's radius as a fraction of the image; small objects
    bear fewer periods, so that a texture stays visible on them. `radius_px` is the radius in pixels and sets the softness of the edges.
    """
    if texture == "plain":
        return None, None
    # Each texture has a scale of its own: fine dots, broader stripes, large checks.
    period = np.float32(max(PERIODS[texture], 0.1 / radius))
    soft = radius_px * period
    if texture == "striped":
        return _clipped(0.5 + _triangle_wave(uv[0] / period + phase[0]) * soft, 0, 1), None
    at = uv / period + phase[:, None, None]
    if texture == "checked":
        # A check is the sign of a product; its two factors are softened each on its own.
        p, q = _clipped(_triangle_wave(at) * soft, -0.5, 0.5)
        return None, 0.5 + 2 * p * q
    cell = np.floor(at)
    squares = (at - cell - 0.5) ** 2
    dots = _clipped(0.5 + (0.4 - np.sqrt(squares[0] + squares[1])) * soft, 0, 1)
    number = cell[0] + cell[1]
    deep = number - 2 * np.floor(0.5 * number)  # every other one: number % 2, which takes 25 times as long
    return dots * (1 - deep), dots * deep


def shade(distance: np.ndarray, toward_shadow: np.ndarray) -> np.ndarray:
    """float32 [h, w], about 0.6 to 1.25: a rounded body, lit from one side, darker at its rim."""
    rim = _clipped(distance * -4, 0, 1)
    return (0.72 + 0.3 * rim * (2 - rim)) * (1 - 0.2 * toward_shadow.clip(-1, 1))


def _clipped(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The same array, its values brought into [low, high] in place."""
    return values.clip(low, high, out=values)


def _triangle_wave(at: np.ndarray) -> np.ndarray:
    """Period 1, values in [-0.25, 0.25], slope 1: a signed distance to the edges of a square wave."""
    return np.abs(at - np.floor(at) - 0.5) - 0.25


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - 0.92


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.76


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) * SQRT3 / 2 - (v - 0.1) / 2, v - 0.1) - 0.52


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    angle = np.arctan2(u, -v)
    angle = np.abs(angle - SECTOR * np.round(angle / SECTOR))
    radius = np.sqrt(u * u + v * v)
    return (radius * np.cos(angle) - 1.05) * TIP_NORMAL[0] + radius * np.sin(angle) * TIP_NORMAL[1]


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(u * u + v * v) - 0.66) - 0.29


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.95, b - 0.36), np.maximum(a - 0.36, b - 0.95))


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    bite = np.sqrt((u - 0.58) ** 2 + v * v) - 0.66
    return np.maximum(np.sqrt((u - 0.05) ** 2 + v * v) - 0.97, -bite)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # A square of diagonal 1 that stands on its corner at (0, 0), with half a disc on each of its upper sides.
    a, b = np.abs(u) / np.float32(1.7), np.float32(0.54) - v / np.float32(1.7)
    lobe = np.sqrt((a - 0.25) ** 2 + (b - 0.75) ** 2) - 0.125**0.5
    side = (a - b) * np.float32(0.5**0.5)
    notch = np.sqrt(a * a + (b - 1) ** 2)
    return np.float32(1.7) * np.where(a + b > 1, lobe, np.maximum(side, -notch))


_DISTANCES = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
}
