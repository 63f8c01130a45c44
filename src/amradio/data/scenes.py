"""Scenes: a small photographic world, drawn on the fly from `(seed, index)`.

One principal object (its colour and texture are the class of the image) stands among smaller ones on a muted, textured
background, under one light, with shadows, occlusion, a vignette and grain. Nothing is read from disk. Shapes are signed
functions with soft edges, so that a scene looks the same at every resolution.

Pictures are planes [3, H, W] until they are developed: numpy runs along whole rows of a plane, and three numbers at a time along
[H, W, 3], which takes several times as long. What is multiplied, added and rounded has an order of its own: the embedded teachers
have learnt these scenes to the bit.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .scene_shapes import SHAPES, TEXTURES, Shares, shade, signed_distance, texture_shares

# Hue in degrees; a sixth of the circle or nearly so between neighbours, so that a name is never in doubt.
COLOURS: dict[str, float] = {"red": 0, "yellow": 52, "green": 122, "cyan": 180, "blue": 226, "purple": 288}
CLASS_NAMES: tuple[str, ...] = tuple(f"{texture} {colour}" for colour in COLOURS for texture in TEXTURES)
SIZES: dict[str, tuple[float, float]] = {"small": (0.24, 0.28), "medium": (0.29, 0.34), "large": (0.35, 0.41)}

MAX_DISTRACTORS = 4
FLOCK = 0.75  # chance that a smaller object is of the principal's class, as things flock in the real world
USUAL_TONES = 0.8  # share of the objects whose stripes are pale and whose checks are deep; on the others it is the other way round
BODY_AND_SHADOW = np.array([0, 0.14], dtype=np.float32)[:, None, None]  # how far against the light, in radii
NOISE_GRIDS = (3, 6, 12, 24, 48)  # cells a side of the octaves of the noise, coarse to fine


class Scene(NamedTuple):
    """One drawn scene of N objects. Masks hold what is visible, so they never overlap; object 0 is the principal one."""

    image: np.ndarray  # uint8 [H, W, 3] RGB
    label: int  # class of the principal object, index into CLASS_NAMES
    captions: tuple[str, ...]  # paraphrases; each names colour and texture of the principal object
    instance_masks: np.ndarray  # bool [N, H, W], visible pixels of each object
    instance_labels: np.ndarray  # int64 [N], indices into CLASS_NAMES
    semantic: np.ndarray  # uint8 [H, W], 0 background, 1 + label


class Body(NamedTuple):
    """One object before it is drawn. Lengths are fractions of the image's side."""

    shape: str
    texture: str
    colour: str
    centre: tuple[float, float]  # x, y
    radius: float
    angle: float
    base: np.ndarray  # float32 [3] RGB in [0, 1]
    pale: np.ndarray  # float32 [3], the base with white in it; stripes are of it, and every other dot
    deep: np.ndarray  # float32 [3], the base darkened; checks are of it, and the other dots
    phase: np.ndarray  # float32 [2], of the texture

    @property
    def label(self) -> int:
        """Index into CLASS_NAMES."""
        return list(COLOURS).index(self.colour) * len(TEXTURES) + TEXTURES.index(self.texture)


def draw_scene(seed: int, index: int, image_size: int = 64) -> Scene:
    """Draws scene `index` of the world `seed` at `image_size` px a side: a pure function of its arguments.

    Another `image_size` gives the same scene at another resolution (the grain alone is drawn anew). Raises ValueError on a negative
    seed or index or on a side below 16 px.
    """
    rng = _generator(seed, index, image_size)
    bodies, order, size = _compose(rng)
    owner = np.full((image_size, image_size), -1, dtype=np.int16)
    image = _draw(rng, bodies, order, image_size, owner)
    numbers = np.arange(len(bodies), dtype=np.int16)
    masks = owner == numbers[:, None, None]
    labels = np.array([body.label for body in bodies], dtype=np.int64)
    seen = masks.any(axis=(1, 2))
    semantic = np.concatenate(([0], labels + 1)).astype(np.uint8)[owner + 1]
    return Scene(image, bodies[0].label, _captions(seed, index, bodies, size), masks[seen], labels[seen], semantic)


def draw_image(seed: int, index: int, image_size: int = 64) -> np.ndarray:
    """Only the picture of `draw_scene`, uint8 [H, W, 3] RGB, in less time. Raises ValueError as it does."""
    rng = _generator(seed, index, image_size)
    bodies, order, _ = _compose(rng)
    return _draw(rng, bodies, order, image_size)


def label_and_captions(seed: int, index: int) -> tuple[int, tuple[str, ...]]:
    """Label and captions of `draw_scene`, which are the same at every size; nothing is drawn. Raises ValueError as it does."""
    bodies, _, size = _compose(_generator(seed, index))
    return bodies[0].label, _captions(seed, index, bodies, size)


def bodies_back_to_front(seed: int, index: int) -> list[Body]:
    """The objects of scene `index` of the world `seed` in the order in which `draw_scene` paints them; later ones hide earlier ones."""
    bodies, order, _ = _compose(_generator(seed, index))
    return [bodies[number] for number in order]


class Scenes:
    """A map-style source of `length` scenes of the world `seed`, drawn when asked for."""

    def __init__(self, length: int, seed: int = 0, image_size: int = 64) -> None:
        self.length, self.seed, self.image_size = length, seed, image_size

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        """The name of one image, `scene-<seed>-<index>`."""
        return f"scene-{self.seed}-{index}"

    def scene(self, index: int) -> Scene:
        """Everything about scene `index`; IndexError outside of `range(len(self))`."""
        return draw_scene(self.seed, self._checked(index), self.image_size)

    def image(self, index: int) -> np.ndarray:
        """Only the picture: uint8 [H, W, 3] RGB."""
        return draw_image(self.seed, self._checked(index), self.image_size)

    def label_and_captions(self, index: int) -> tuple[int, tuple[str, ...]]:
        """Only these; nothing is drawn."""
        return label_and_captions(self.seed, self._checked(index))

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return index


def _generator(seed: int, index: int, image_size: int = 64, use: int = 0) -> np.random.Generator:
    """use: 0 for the picture, 1 for the captions, as how many numbers the grain takes depends on the resolution."""
    if seed < 0 or index < 0 or image_size < 16:
        raise ValueError(f"draw_scene(seed={seed}, index={index}, image_size={image_size}): seed and index start at 0, sides at 16 px")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index, use))))


def _draw(rng: np.random.Generator, bodies: list[Body], order: list[int], image_size: int, owner: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W, 3]; owner: int16 [H, W], into which the number of the object that is seen at each pixel is written."""
    turn = rng.uniform(0, 2 * np.pi)
    light = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    coarse, _, fine = noise = _noise(rng, image_size)
    image = _background(rng, noise, image_size)
    grain = np.float32(0.08) * fine
    for number in order:
        rows, columns, alpha = _paint(image, bodies[number], light, grain)
        if owner is not None:
            owner[rows, columns][alpha >= 0.5] = number
    return _develop(rng, image, light, coarse)


def _compose(rng: np.random.Generator) -> tuple[list[Body], list[int], str]:
    """The objects (principal first), their numbers from back to front, and the name of the principal one's size."""
    colours = list(COLOURS)
    size = list(SIZES)[rng.integers(len(SIZES))]
    radius = rng.uniform(*SIZES[size])
    x, y = rng.uniform(0.36, 0.64, 2).tolist()
    principal = _body(rng, colours[rng.integers(6)], TEXTURES[rng.integers(4)], (x, y), radius)
    bodies = [principal]
    for _ in range(rng.integers(1, MAX_DISTRACTORS + 1)):
        small = rng.uniform(0.085, 0.15)
        spot = _beside(rng, bodies, small)
        if spot is None:
            continue
        flocks = rng.random() < FLOCK
        colour = principal.colour if flocks else colours[rng.integers(6)]
        texture = principal.texture if flocks else TEXTURES[rng.integers(4)]
        bodies.append(_body(rng, colour, texture, spot, small))
    behind = [number for number in range(1, len(bodies)) if rng.random() < 0.5]
    order = [*behind, 0, *(number for number in range(1, len(bodies)) if number not in behind)]
    return bodies, order, size


def _beside(rng: np.random.Generator, bodies: list[Body], radius: float) -> tuple[float, float] | None:
    """A centre x, y at the rim of the principal object or beyond, that hides little of the others; None if none is found."""
    centre = bodies[0].centre
    for _ in range(8):
        turn = rng.uniform(0, 2 * np.pi)
        reach = bodies[0].radius * 0.85 + radius * rng.uniform(0.2, 2.0)
        x, y = centre[0] + reach * float(np.cos(turn)), centre[1] + reach * float(np.sin(turn))
        clear = all(np.hypot(x - body.centre[0], y - body.centre[1]) > 0.8 * (body.radius + radius) for body in bodies[1:])
        if clear and min(x, y) > 0.4 * radius and max(x, y) < 1 - 0.4 * radius:
            return x, y
    return None


def _body(rng: np.random.Generator, colour: str, texture: str, centre: tuple[float, float], radius: float) -> Body:
    hue, saturation, value, tone, angle, *phase = rng.uniform(0, 1, 7).tolist()
    base = _rgb(COLOURS[colour] + 20 * hue - 10, 0.78 + 0.2 * saturation, 0.68 + 0.27 * value)
    pale, deep = 0.16 * base + np.float32(0.74 + 0.1 * tone), (0.15 + 0.15 * tone) * base
    if rng.random() > USUAL_TONES:
        pale, deep = deep, pale
    shape = SHAPES[rng.integers(len(SHAPES))]
    return Body(shape, texture, colour, centre, radius, 2 * np.pi * angle, base, pale, deep, np.array(phase, dtype=np.float32))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """float32 [3] in [0, 1] from a hue in degrees, saturation and value in [0, 1]."""
    sextants = ((number + hue / 60) % 6 for number in (5, 3, 1))
    return np.array([value * (1 - saturation * min(max(min(at, 4 - at), 0), 1)) for at in sextants], dtype=np.float32)


@lru_cache(maxsize=64)
def _upsampler(cells: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [image_size, cells + 1], and its transpose: smooth interpolation of values on a grid to pixels."""
    at = (np.arange(image_size) + 0.5) / image_size * cells
    low = at.astype(int)
    part = at - low
    part = part * part * (3 - 2 * part)
    weights = np.zeros((image_size, cells + 1), dtype=np.float32)
    weights[np.arange(image_size), low] = 1 - part
    weights[np.arange(image_size), low + 1] += part
    return weights, np.ascontiguousarray(weights.T)


@lru_cache(maxsize=8)
def _pixels(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """x as float32 [1, W] and y as float32 [H, 1]: pixel centres in [0, 1]."""
    line = ((np.arange(image_size) + 0.5) / image_size).astype(np.float32)
    return line[None, :], line[:, None]


def _noise(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three times float32 [H, W] in about [-1, 1]: coarse, all-octave and fine noise."""
    first: list[np.ndarray] = []
    full = np.zeros((image_size, image_size), dtype=np.float32)
    for level, cells in enumerate(NOISE_GRIDS):
        rows, columns = _upsampler(cells, image_size)
        grid = rng.random((2, cells + 1, cells + 1), dtype=np.float32)
        grid *= 2
        grid -= 1
        octave = rows @ grid @ columns
        first.append(octave[0])
        octave[1] *= np.float32(0.6**level)
        full += octave[1]
    full *= np.float32(0.6)
    return 0.7 * first[0] + 0.3 * first[1], full, 0.5 * first[3] + 0.5 * first[4]


def _background(rng: np.random.Generator, noise: tuple[np.ndarray, np.ndarray, np.ndarray], image_size: int) -> np.ndarray:
    """float32 [3, H, W]: a muted surface, or two that meet at a horizon."""
    x, y = _pixels(image_size)
    first = _surface(rng, noise, x, y)
    if rng.random() < 0.4:
        return first
    second = _surface(rng, (noise[1], noise[0], noise[2]), x, y)
    horizon = rng.uniform(0.3, 0.75) + rng.uniform(-0.25, 0.25) * (x - 0.5) + 0.02 * noise[1]
    ground = (0.5 + (y - horizon) * image_size * rng.uniform(0.15, 0.8)).clip(0, 1)
    second -= first
    second *= ground
    first += second
    return first


def _surface(rng: np.random.Generator, noise: tuple[np.ndarray, np.ndarray, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float32 [3, H, W]: clouds, sand, marble, boards or grass, in muted tones."""
    kind = rng.integers(5)
    turn, frequency, hue, turned, saturation, value, contrast = rng.random(7).tolist()
    along = np.float32(np.cos(turn * np.pi)) * x + np.float32(np.sin(turn * np.pi)) * y
    if kind == 0:
        mix = noise[0]
    elif kind == 1:
        mix = 0.4 * noise[1] + 0.8 * noise[2]
    elif kind == 2:
        mix = np.sin((6 + 10 * frequency) * along + 5 * noise[1])
    elif kind == 3:
        board = along * np.float32(2 + 3 * frequency)
        number = np.floor(board)
        tone = np.sin(number * np.float32(12.9898 + hue)) * np.float32(0.6)
        mix = tone + 0.35 * np.sin(25 * along + 4 * noise[1]) - 1.2 * (board - number < 0.06)  # float64 from here on
    else:
        mix = 0.6 * noise[1] + 0.5 * noise[2] * np.sin(60 * along + 6 * noise[0])
    # Muted, so that colour belongs to the objects; varied within a picture more than between pictures, so that the ground
    # does not give a picture away.
    low = _rgb(360 * hue, 0.22 * saturation, 0.26 + 0.14 * value)
    high = _rgb(360 * hue + 80 * (turned - 0.5), 0.22 * saturation, 0.56 + 0.2 * value)
    part = (0.5 + (0.35 + 0.3 * contrast) * mix).astype(np.float32, copy=False)
    surface = part * (high - low)[:, None, None]
    surface += low[:, None, None]
    return surface


def _paint(image: np.ndarray, body: Body, light: tuple[np.float32, np.float32], grain: np.ndarray) -> tuple[slice, slice, np.ndarray]:
    """Draws one object and its shadow into `image` [3, H, W]; returns rows and columns of its box and its coverage there, 0 to 1."""
    image_size = image.shape[1]
    x, y = _pixels(image_size)
    (cx, cy), reach = body.centre, body.radius * 1.35
    left, right = (min(max(math.floor((cx + side) * image_size), 0), image_size) for side in (-reach, reach))
    top, bottom = (min(max(math.floor((cy + side) * image_size), 0), image_size) for side in (-reach, reach))
    rows, columns = slice(top, bottom + 1), slice(left, right + 1)
    radius, radius_px = np.float32(body.radius), np.float32(body.radius * image_size)
    dx, dy = (x[:, columns] - np.float32(cx)) / radius, (y[rows] - np.float32(cy)) / radius

    # Object and shadow are two places of one shape.
    dx2, dy2 = dx + BODY_AND_SHADOW * light[0], dy + BODY_AND_SHADOW * light[1]
    cos, sin = np.float32(np.cos(body.angle)), np.float32(np.sin(body.angle))
    uv = np.stack((cos * dx2 + sin * dy2, cos * dy2 - sin * dx2))
    distance, shadow = signed_distance(body.shape, *uv)
    canvas = image[:, rows, columns]
    shadow *= -4
    shadow += 0.5
    shadow.clip(0, 1, out=shadow)
    shadow *= -0.5
    shadow += 1
    canvas *= shadow

    alpha = 0.5 - distance * radius_px
    alpha.clip(0, 1, out=alpha)
    bright = shade(distance, dx * light[0] + dy * light[1])
    bright += grain[rows, columns]
    colour = _colour(body, texture_shares(body.texture, uv[:, 0], body.radius, radius_px, body.phase)) * bright
    colour -= canvas
    colour *= alpha
    canvas += colour
    return rows, columns, alpha


def _colour(body: Body, shares: Shares) -> np.ndarray:
    """float32 [3, h, w], or [3, 1, 1] of a plain object; shares: see `texture_shares`."""
    colour = base = body.base[:, None, None]
    for share, tone in zip(shares, (body.pale, body.deep), strict=True):
        if share is not None:
            colour = colour + share * (tone[:, None, None] - base)
    return colour


def _develop(rng: np.random.Generator, image: np.ndarray, light: tuple[np.float32, np.float32], coarse: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: light falls off across the picture, then vignette, tint, grain and rounding."""
    image_size = image.shape[1]
    x, y = _pixels(image_size)
    fall, vignette, exposure, grain, dapple, *tint = rng.random(8).tolist()
    lit = 1 - (0.1 + 0.2 * fall) * (light[0] * (x - 0.5) + light[1] * (y - 0.5))
    lit *= 1 - (0.2 + 0.5 * vignette) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    lit *= 0.85 + 0.3 * exposure
    # Shade that falls in patches, as under trees; the coarse noise turned about, so that it follows no surface.
    lit *= 1 + 0.9 * dapple * coarse[::-1, ::-1]
    image *= (lit * (1 + 0.06 * (np.array(tint)[:, None, None] - 0.5))).astype(np.float32)
    developed = rng.standard_normal((image_size, image_size, 3), dtype=np.float32)
    developed *= np.float32(0.008 + 0.02 * grain)
    developed += image.transpose(1, 2, 0)
    developed.clip(0, 1, out=developed)
    developed *= 255
    developed += 0.5
    return developed.astype(np.uint8)


def _captions(seed: int, index: int, bodies: list[Body], size: str) -> tuple[str, ...]:
    """Five paraphrases; the last names a second object where there is one."""
    rng, principal = _generator(seed, index, use=1), bodies[0]
    colour, texture, shape = principal.colour, principal.texture, principal.shape
    places = ("on the table", "in the field", "outdoors", "on the floor", "in the light")
    other = ""
    if len(bodies) > 1:
        second = bodies[int(rng.integers(1, len(bodies)))]
        link = ("next to", "beside", "near", "with")[rng.integers(4)]
        other = f" {link} a {second.texture} {second.colour} {second.shape}"
    return (
        f"a photo of a {texture} {colour} {shape}",
        f"a {size} {texture} {colour} {shape} {places[rng.integers(len(places))]}",
        f"the {shape} is {colour} and {texture}",
        f"a picture of a {size} {texture} {colour} object",
        f"a {size} {shape} that is {texture} and {colour}{other}",
    )
