"""Canvases: several images in one (RADIOv2.5, finding 3: mosaics), or one that is not square, for a teacher of one square size."""

from typing import NamedTuple

from torch import Tensor


class Tiling(NamedTuple):
    """How images are laid out in canvases: row by row, each at the top left of its cell."""

    canvas: tuple[int, int]
    """(height, width) px."""
    size: tuple[int, int]
    """(height, width) px of an image, whole patches of the teacher."""
    patch_size: int
    """px, of the teacher."""
    rows: int = 1
    """Images from top to bottom."""
    columns: int = 1
    """Images from left to right."""

    @classmethod
    def of(cls, image: tuple[int, int], canvas: tuple[int, int], patch_size: int) -> "Tiling | None":
        """The tiling of a canvas by images of about `image` (height, width) px, resized to whole patches; None where not two fit."""
        height, width = (max(1, round(side / patch_size)) * patch_size for side in image)
        tiling = cls(canvas, (height, width), patch_size, canvas[0] // height, canvas[1] // width)
        return tiling if tiling.num_images > 1 else None

    @classmethod
    def of_one(cls, image: tuple[int, int], canvas: tuple[int, int], patch_size: int) -> "Tiling | None":
        """The canvas filled by one image in the aspect of `image` (height, width) px, to whole patches; None where it is that of the
        canvas."""
        if image[0] * canvas[1] == image[1] * canvas[0]:
            return None
        scale = min(whole / side for whole, side in zip(canvas, image, strict=True))
        height, width = (
            min(max(1, round(side * scale / patch_size)), whole // patch_size) * patch_size
            for side, whole in zip(image, canvas, strict=True)
        )
        return cls(canvas, (height, width), patch_size)

    @property
    def num_images(self) -> int:
        """Images of a canvas."""
        return self.rows * self.columns

    @property
    def cell(self) -> tuple[int, int]:
        """(height, width) px that an image has to itself, whole patches of the teacher."""
        height, width = (
            side // number // self.patch_size * self.patch_size for side, number in zip(self.canvas, (self.rows, self.columns), strict=True)
        )
        return height, width

    def compose(self, images: Tensor, fill: Tensor) -> Tensor:
        """[B, 3, *size] -> [ceil(B / num_images), 3, *canvas]. fill: [3, 1, 1], the color of what no image covers."""
        canvases = fill.to(images).expand(-(-len(images) // self.num_images), 3, *self.canvas).clone()
        for number in range(self.num_images):
            tiles = images[number :: self.num_images]
            top, left = number // self.columns * self.cell[0], number % self.columns * self.cell[1]
            canvases[: len(tiles), :, top : top + self.size[0], left : left + self.size[1]] = tiles
        return canvases

    def cut(self, spatial: Tensor, count: int) -> Tensor:
        """The maps of the first `count` images: canvases' maps [N, H, W, D] -> [count, h, w, D]."""
        high, wide = (side // self.patch_size for side in self.cell)
        cells = spatial[:, : self.rows * high, : self.columns * wide].unflatten(2, (self.columns, wide)).unflatten(1, (self.rows, high))
        maps = cells.permute(0, 1, 3, 2, 4, 5).flatten(0, 2)[:count]
        return maps[:, : self.size[0] // self.patch_size, : self.size[1] // self.patch_size]
