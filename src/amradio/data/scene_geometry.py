"""Depth and surface normals of generated scenes: the painter's order gives one, the bevel that the shading draws gives the other."""

import numpy as np

from .scene_shapes import signed_distance
from .scenes import Body, bodies_back_to_front

NEAREST, SPACING, BACKGROUND = 1.0, 0.5, 4.0
"""m: of the foremost object, from one object to the next behind it (there are at most five), and of the background."""
BEVEL = np.float32(4.0)
"""An object falls off over 1 / BEVEL of its radius, as `scene_shapes.shade` draws it, to 45 degrees at its outline."""


def scene_depth(seed: int, index: int, image_size: int) -> np.ndarray:
    """float32 [H, W] in m: of the foremost object at each pixel, else of the background."""
    bodies = bodies_back_to_front(seed, index)
    depth = np.full((image_size, image_size), BACKGROUND, dtype=np.float32)
    for layer, body in enumerate(bodies):
        depth[_covered(body, _distance(body, image_size), image_size)] = NEAREST + SPACING * (len(bodies) - 1 - layer)
    return depth


def scene_normals(seed: int, index: int, image_size: int) -> np.ndarray:
    """float32 [H, W, 3], of length 1: x right, y down, z into the picture; what faces the viewer has (0, 0, -1), as the background has."""
    normals = np.zeros((image_size, image_size, 3), dtype=np.float32)
    normals[..., 2] = -1
    for body in bodies_back_to_front(seed, index):
        distance = _distance(body, image_size)
        covered = _covered(body, distance, image_size)
        slope = 1 - np.clip(-distance * BEVEL, 0, 1)  # tangent of the tilt
        down, right = np.gradient(distance, np.float32(1 / (body.radius * image_size)))
        tilted = np.stack((slope * right, slope * down, np.full_like(distance, -1)), -1)
        normals[covered] = (tilted / np.linalg.norm(tilted, axis=-1, keepdims=True))[covered]
    return normals


def _distance(body: Body, image_size: int) -> np.ndarray:
    """float32 [H, W]: signed distance to the outline of a body at pixel centres, in its radii."""
    line = ((np.arange(image_size) + 0.5) / image_size).astype(np.float32)
    dx, dy = ((line - np.float32(centre)) / np.float32(body.radius) for centre in body.centre)
    dx, dy = dx[None, :], dy[:, None]
    cos, sin = np.float32(np.cos(body.angle)), np.float32(np.sin(body.angle))
    return signed_distance(body.shape, cos * dx + sin * dy, cos * dy - sin * dx)


def _covered(body: Body, distance: np.ndarray, image_size: int) -> np.ndarray:
    """bool [H, W]: pixels that the drawing gives to the body, of which it covers half or more."""
    return np.clip(0.5 - distance * np.float32(body.radius * image_size), 0, 1) >= 0.5
