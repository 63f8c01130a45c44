"""Maps, heat and masks as pictures, and several of them as one sheet."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 256
"""px of the long side of a panel."""
GAP, LINE, FONT = 10, 16, 13
HEAT = ((0.19, 0.07, 0.23), (0.16, 0.47, 0.77), (0.13, 0.75, 0.56), (0.96, 0.80, 0.22), (0.86, 0.20, 0.12))
"""RGB from the least to the greatest: dark, blue, green, yellow, red; lightness rises up to yellow."""
COLOURS = ((0.90, 0.16, 0.22), (0.12, 0.47, 0.91), (0.20, 0.68, 0.26), (0.96, 0.65, 0.10), (0.58, 0.28, 0.80), (0.10, 0.74, 0.76))
"""RGB of masks, one after another."""
LONGEST_NAME = 32
"""Characters of a name in a picture; longer ones are cut."""
CUT = 0.01
"""Share of the cells at either end of a component that are drawn in its extreme colour."""


class Panel(NamedTuple):
    """One picture of a sheet or page."""

    row: str
    """What it belongs to: `picture`, `backbone`, `head clip`, `text`, `masks`, `neighbours`."""
    title: str
    """What is to be seen, in words."""
    picture: Image.Image


class Components(NamedTuple):
    """The three directions in which a map varies most, and the range of each: the same colours for every map that is drawn with them."""

    mean: Tensor
    """[D]."""
    directions: Tensor
    """[D, 3]."""
    low: Tensor
    """[3], drawn as 0."""
    high: Tensor
    """[3], drawn as 1."""

    def colours(self, spatial: Tensor) -> Tensor:
        """A map [H, W, D] as float RGB [H, W, 3] in [0, 1]."""
        values = (spatial.float().cpu() - self.mean) @ self.directions
        return ((values - self.low) / (self.high - self.low).clamp_min(1e-6)).clamp(0, 1)


@torch.no_grad()
def principal_components(spatial: Tensor) -> Components:
    """Those of a map [H, W, D]. A map of fewer than three channels or cells has components that are 0."""
    cells = spatial.float().cpu().flatten(0, 1)
    mean = cells.mean(0)
    _, _, transposed = torch.linalg.svd(cells - mean, full_matrices=False)
    directions = F.pad(transposed[:3].T, (0, max(0, 3 - len(transposed))))
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))  # a direction has no sign of its own: the largest is positive
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    values = ((cells - mean) @ directions).sort(0).values
    last = len(values) - 1
    return Components(mean, directions, values[round(CUT * last)], values[round((1 - CUT) * last)])


def as_picture(rgb: Tensor, height: int, width: int, smooth: bool = False) -> Image.Image:
    """Float RGB [h, w, 3] in [0, 1] at the size of a panel of an image of height x width px. smooth: bilinear, else cells are squares."""
    size = panel_size(height, width)
    pixels = (rgb.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)


def panel_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) in px of the panel of an image."""
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def heat(values: Tensor, image: Tensor, low: float, high: float) -> Tensor:
    """Values [h, w] laid over an image [3, H, W] in [0, 1], as RGB [H, W, 3]: dark and blue at `low`, red at `high`."""
    full = F.interpolate(values[None, None].float().cpu(), image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    position = ((full - low) / max(high - low, 1e-6)).clamp(0, 1) * (len(HEAT) - 1)
    lower = position.floor().long().clamp_max(len(HEAT) - 2)
    colours = torch.tensor(HEAT)
    rest = (position - lower)[..., None]
    grey = image.float().cpu().mean(0)[..., None]
    return 0.65 * (colours[lower] * (1 - rest) + colours[lower + 1] * rest) + 0.35 * grey


def overlay(masks: Tensor, image: Tensor) -> Tensor:
    """bool masks [N, H, W] over an image [3, H, W] in [0, 1], each in its colour, as RGB [H, W, 3]."""
    drawn = image.float().cpu().permute(1, 2, 0).clone()
    for number, mask in enumerate(masks.cpu()):
        drawn[mask] = 0.45 * drawn[mask] + 0.55 * torch.tensor(COLOURS[number % len(COLOURS)])
    return drawn


def mark(picture: Image.Image, points: Sequence[tuple[float, float]], boxes: Sequence[Sequence[float]], scale: float) -> Image.Image:
    """The picture with clicks as white dots and boxes as white frames; coordinates in px of the image, times `scale` those of the panel."""
    pen = ImageDraw.Draw(picture)
    for x, y in points:
        x, y = x * scale, y * scale
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill="white", outline="black", width=2)
    for box in boxes:
        corners = [value * scale for value in box]
        pen.rectangle(corners, outline="black", width=4)
        pen.rectangle(corners, outline="white", width=2)
    return picture


def label(picture: Image.Image, masks: Tensor, names: Sequence[str], scale: float) -> Image.Image:
    """The picture with a name in the middle of each mask, bool [N, H, W], below those that are there already; none for an empty mask.

    scale: px of the panel for one of the image.
    """
    font, pen = ImageFont.load_default(FONT), ImageDraw.Draw(picture)
    taken: list[tuple[float, float, float]] = []
    for mask, name in zip(masks.cpu(), names, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        if not len(rows):
            continue
        text = textwrap.shorten(name, LONGEST_NAME, placeholder="...")
        half = pen.textlength(text, font=font) / 2 + 2
        nearest = (
            (rows - rows.float().mean()) ** 2 + (columns - columns.float().mean()) ** 2
        ).argmin()  # the middle of a ring is not in it
        x = min(max(float(columns[nearest]) * scale, half), max(picture.width - half, half))
        y = min(max(float(rows[nearest]) * scale, FONT), picture.height - FONT)
        while any(abs(x - left) < half + width and abs(y - top) < LINE for left, top, width in taken) and y + LINE < picture.height:
            y += LINE
        taken.append((x, y, half))
        pen.text((x, y), text, fill="white", font=font, anchor="mm", stroke_width=2, stroke_fill="black")
    return picture


def sheet(panels: Sequence[Panel]) -> Image.Image:
    """All panels as one picture, a row for each `Panel.row`, titles below them."""
    rows = {row: [panel for panel in panels if panel.row == row] for row in dict.fromkeys(panel.row for panel in panels)}
    font = ImageFont.load_default(FONT)
    across = max(len(members) for members in rows.values())
    letters = SIDE // 7
    heights = {
        row: max(panel.picture.height for panel in members) + LINE * max(len(textwrap.wrap(panel.title, letters)) for panel in members)
        for row, members in rows.items()
    }
    canvas = Image.new("RGB", (GAP + across * (SIDE + GAP), GAP + sum(height + 2 * GAP for height in heights.values())), "white")
    pen, top = ImageDraw.Draw(canvas), GAP
    for row, members in rows.items():
        for column, panel in enumerate(members):
            left = GAP + column * (SIDE + GAP)
            canvas.paste(panel.picture, (left, top))
            for number, line in enumerate(textwrap.wrap(panel.title, letters)):
                pen.text((left, top + panel.picture.height + 2 + LINE * number), line, fill="black", font=font)
        top += heights[row] + 2 * GAP
    return canvas
