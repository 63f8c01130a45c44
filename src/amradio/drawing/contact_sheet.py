"""Pictures that a run draws."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN, CELL, LABEL = 8, 128, 150


def contact_sheet(rows: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Draws rows of (name, float images [N, 3, h, w] in [0, 1]), each with their size in px, every cell as large on the page."""
    count = max(images.shape[0] for _, images in rows)
    width = LABEL + count * (CELL + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, len(rows) * (CELL + MARGIN) + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (name, images) in enumerate(rows):
        top = MARGIN + row * (CELL + MARGIN)
        pen.text((MARGIN, top + CELL // 2 - 18), f"{name}\n{images.shape[3]} x {images.shape[2]} px", fill="black", font=font)
        pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for column, cell in enumerate(pixels):
            long = max(cell.shape[:2])
            size = round(cell.shape[1] * CELL / long), round(cell.shape[0] * CELL / long)
            picture = Image.fromarray(cell).resize(size, Image.Resampling.NEAREST if long <= CELL else Image.Resampling.BOX)
            sheet.paste(picture, (LABEL + column * (CELL + MARGIN), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
