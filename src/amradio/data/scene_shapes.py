"""The shapes, textures and shading of the objects in `scenes`, as functions of the coordinates of an object.

Coordinates `u`, `v` are float32 [h, w] in units of the object's radius; distances are in the same unit, negative inside.
"""

import numpy as np

SHAPES: tuple[str, ...] = ("disc", "square", "triangle", "star", "ring", "cross", "crescent", "heart")
TEXTURES: tuple[str, ...] = ("plain", "striped", "checked", "dotted")

PERIODS = {"striped": 0.48, "checked": 0.8, "dotted": 0.46}  # in radii of the object

SQRT3 = np.float32(3**0.5)


def signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """float32 [h, w]: distance to the outline (exact or a close bound), negative inside."""
    return _DISTANCES[shape](u, v)


def texture_mix(texture: str, u: np.ndarray, v: np.ndarray, radius: float, radius_px: np.float32, phase: tuple[float, float]) -> np.ndarray:
    """float32 [h, w] in [-1, 1]: 1 where the object is pale, -1 where it is deep, 0 where it is of its own colour.

    `radius` is the object's radius as a fraction of the image; small objects bear fewer periods, so that a texture stays
    visible on them. `radius_px` is the radius in pixels and sets the softness of the edges.
    """
    if texture == "plain":
        return np.zeros_like(u)
    # Each texture has a scale of its own: fine dots, broader stripes, large checks.
    period = np.float32(max(PERIODS[texture], 0.1 / radius))
    soft = radius_px * period
    a, b = u / period + np.float32(phase[0]), v / period + np.float32(phase[1])
    if texture == "striped":
        return np.clip(0.5 + _triangle_wave(a) * soft, 0, 1)
    if texture == "checked":
        # A check is the sign of a product; its two factors are softened each on its own.
        p, q = (np.clip(_triangle_wave(c) * soft, -0.5, 0.5) for c in (a, b))
        return -0.5 - 2 * p * q
    from_dot = np.sqrt((a - np.floor(a) - 0.5) ** 2 + (b - np.floor(b) - 0.5) ** 2)
    other = (np.floor(a) + np.floor(b)) % 2
    return np.clip(0.5 + (0.4 - from_dot) * soft, 0, 1) * (1 - 2 * other)


def shade(distance: np.ndarray, toward_shadow: np.ndarray) -> np.ndarray:
    """float32 [h, w], about 0.6 to 1.25: a rounded body, lit from one side, darker at its rim."""
    rim = np.clip(-distance * 4, 0, 1)
    return (0.72 + 0.3 * rim * (2 - rim)) * (1 - 0.2 * np.clip(toward_shadow, -1, 1))


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
    sector = np.float32(2 * np.pi / 5)
    angle = np.arctan2(u, -v)
    angle = np.abs(angle - sector * np.round(angle / sector))
    radius = np.sqrt(u * u + v * v)
    # The line from a tip (1, 0) to the notch beside it, at 0.5 of the radius and half a sector on.
    notch = 0.5 * np.cos(sector / 2), 0.5 * np.sin(sector / 2)
    length = np.hypot(1.05 - notch[0], notch[1])
    normal = np.float32(notch[1] / length), np.float32((1.05 - notch[0]) / length)
    return (radius * np.cos(angle) - 1.05) * normal[0] + radius * np.sin(angle) * normal[1]


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
    below = np.where(side < 0, np.maximum(side, -notch), side)
    return np.float32(1.7) * np.where(a + b > 1, lobe, below)


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
