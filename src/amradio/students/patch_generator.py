"""Images to tokens: linear patches, a cropped position embedding (CPE) and the prefix tokens."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ASPECT = (3 / 4, 4 / 3)
"""Range of the viewport's aspect in training (AM-RADIO, CPE)."""


class PositionRule(NamedTuple):
    """How the position table is read."""

    align_corners: bool
    """Of the interpolation in evaluation; RADIO models were released with either (see `VitSettings.align_corners`)."""
    dropout: float
    """Chance that a sample gets no position embedding in training."""
    viewport_scale: tuple[float, float] | None
    """Range of the viewport's side in training, as a share of the table; None reads the table as in evaluation."""


class PrefixTokens(nn.Module):
    """The tokens before the patches: `token` [num, dim], summaries first, registers after."""

    def __init__(self, num: int, dim: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(num, dim) * dim**-0.5)


class PatchGenerator(nn.Module):
    """Images [B, 3, H, W] -> tokens [B, num_prefix + H/p * W/p, dim], patches row by row.

    A patch is flattened in the order (channel, y, x). The prefix tokens get no position. The parameter names are those of the
    published checkpoints.
    """

    def __init__(self, dim: int, patch_size: int, table_side: int, num_prefix: int, rule: PositionRule):
        """table_side: positions per side of the square table; num_prefix: summaries and registers."""
        super().__init__()
        self.patch_size = patch_size
        self.table_side = table_side
        self.rule = rule
        self.embedder = nn.Linear(3 * patch_size**2, dim, bias=False)
        self.pos_embed = nn.Parameter(torch.randn(1, table_side**2, dim) * dim**-0.5)
        self.cls_token = PrefixTokens(num_prefix, dim)

    def forward(self, images: Tensor, draws: Tensor | None) -> Tensor:
        """images: [B, 3, H, W], conditioned, sides multiples of the patch; draws: [B, 8] in training, None in evaluation."""
        p = self.patch_size
        B, C, H, W = images.shape
        grid = (H // p, W // p)
        patches = images.reshape(B, C, grid[0], p, grid[1], p).permute(0, 2, 4, 1, 3, 5).reshape(B, grid[0] * grid[1], C * p * p)
        # The sum is not cast down: under autocast the residual stream stays in the dtype of the weights.
        patches = self.embedder(patches.to(self.embedder.weight.dtype)) + self.positions(grid, draws)
        prefix = self.cls_token.token.expand(B, -1, -1).to(patches.dtype)
        return torch.cat([prefix, patches], dim=1)

    def positions(self, grid: tuple[int, int], draws: Tensor | None) -> Tensor:
        """Position embedding of a grid, [1, h*w, dim] or, with draws, [B, h*w, dim], in the dtype of the table.

        In training a grid of the table's own size is read whole, as in the published rule.
        """
        if draws is None:
            return self._whole_table(grid)
        if self.rule.viewport_scale is None or grid == (self.table_side, self.table_side):
            positions = self._whole_table(grid)
        else:
            positions = self._viewports(grid, draws, self.rule.viewport_scale)
        keep = draws[:, 4] >= self.rule.dropout
        return positions * keep.to(positions.dtype)[:, None, None]

    def _whole_table(self, grid: tuple[int, int]) -> Tensor:
        """The evaluation rule: the table stretched to a square of the longer side, of which the top left is taken."""
        R = self.table_side
        if not torch.compiler.is_exporting() and grid == (R, R):  # a graph for every grid stretches always: to R x R it changes nothing
            return self.pos_embed
        table = self._table().reshape(1, R, R, -1).permute(0, 3, 1, 2)
        side = max(grid)
        square = F.interpolate(table, (side, side), mode="bilinear", align_corners=self.rule.align_corners)
        return square[:, :, : grid[0], : grid[1]].flatten(2).transpose(1, 2).to(self.pos_embed.dtype)

    def _viewports(self, grid: tuple[int, int], draws: Tensor, scale_range: tuple[float, float]) -> Tensor:
        """The training rule: each sample reads a random rectangle of the table (RADIO's CPE), bilinear, corners aligned.

        Draws: 0 scale, 1 aspect, 2 and 3 offsets in x and y. The four neighbours of each position are summed by `embedding_bag`: unlike
        `grid_sample` its gradient is deterministic on a GPU, and no table per sample is made.
        """
        table = self._table()
        draws = draws.to(table.dtype)
        scale = scale_range[0] + (scale_range[1] - scale_range[0]) * draws[:, 0]
        aspect = torch.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * draws[:, 1])
        low_y, part_y = self._along(grid[0], (scale / aspect).clamp(max=1), draws[:, 3])
        low_x, part_x = self._along(grid[1], (scale * aspect).clamp(max=1), draws[:, 2])
        R = self.table_side
        next_y, next_x = (low_y + 1).clamp(max=R - 1), (low_x + 1).clamp(max=R - 1)
        rows, columns = torch.stack([low_y, next_y], 1)[:, :, None, :, None], torch.stack([low_x, next_x], 1)[:, None, :, None, :]
        weight_y, weight_x = torch.stack([1 - part_y, part_y], 1), torch.stack([1 - part_x, part_x], 1)
        index = (rows * R + columns).permute(0, 3, 4, 1, 2).reshape(-1, 4)
        weight = (weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]).permute(0, 3, 4, 1, 2).reshape(-1, 4)
        read = F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")
        return read.reshape(len(draws), grid[0] * grid[1], -1).to(self.pos_embed.dtype)

    def _along(self, count: int, scale: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """Where `count` positions fall on one axis of the table: the lower neighbour and the share of the next, each [B, count]."""
        offset = draw * (1 - scale)
        steps = torch.linspace(0, 1, count, dtype=scale.dtype, device=scale.device)
        position = ((steps * scale[:, None] + offset[:, None]) * (self.table_side - 1)).clamp(0, self.table_side - 1)
        low = position.floor()
        return low.long(), position - low

    def _table(self) -> Tensor:
        """The table [R*R, dim] in at least float32."""
        table = self.pos_embed[0]
        return table.to(torch.promote_types(table.dtype, torch.float32))
