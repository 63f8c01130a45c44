"""The RADIO1D student: an image as an ordered row of tokens that may be cut short, and a decoder from it to a map.

From the description in NVlabs/RADIO's radio1d.py (Apache-2.0); parameters are named as in its checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, brief
from ..features import Features
from .base import NUM_DRAWS, Student
from .checkpointing import checkpoint_modules
from .draws import derived
from .patch_generator import PatchGenerator
from .radio1d_settings import Radio1dSettings
from .vit import initialise, make_block
from .vit_pretrained import TOKENS
from .vit_settings import VitShape

COUNT_DRAW = 10_000
"""Number of the derived random number that says how many tokens a training sample keeps."""
FILLED = "decoder.prefix_tokens"
"""Name of the decoder's prefix tokens, a row for each summary and register as in `TOKENS`."""


class Merge(nn.Module):
    """Four patches to one: a LayerNorm (eps 1e-5) on their channels, column by column, and a linear layer to twice the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, ceil(H / 2), ceil(W / 2), 2 D]; odd sides get a row or column of zeros."""
        height, width = patches.shape[1:3]
        padded = F.pad(patches, (0, 0, 0, width % 2, 0, height % 2))
        parted = padded.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.reduction(self.norm(parted.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class Split(nn.Module):
    """One patch to four: a linear layer, and a LayerNorm (eps 1e-5) on the half as many channels of each."""

    def __init__(self, dim: int):
        super().__init__()
        self.expansion = nn.Linear(dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(dim // 2)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, 2 H, 2 W, D / 2]."""
        parted = self.expansion(patches).unflatten(3, (2, 2, -1))
        return self.norm(parted.transpose(2, 3).flatten(3, 4).flatten(1, 2))


class Decoder(nn.Module):
    """From the tokens that were kept to a map at the patches of the image, with prefix tokens that have not seen it."""

    def __init__(self, settings: Radio1dSettings, num_prefix: int):
        super().__init__()
        shape, wide = settings.shape(), settings.encoded_shape()
        dim, num_heads = wide.dim, shape.num_heads
        self.filler_side = settings.filler_side
        self.filler_tokens = nn.Parameter(torch.randn(settings.filler_side**2, dim) * dim**-0.5)
        self.prefix_tokens = nn.Parameter(torch.randn(num_prefix, dim) * dim**-0.5)
        self.splits = settings.splits()
        self.blocks, self.upscale_blocks, self.prefix_proj_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number in range(settings.decoder_depth):
            if number in self.splits:
                self.upscale_blocks.append(Split(dim))
                self.prefix_proj_blocks.append(nn.Linear(dim, dim // 2, bias=False))
                dim, num_heads = dim // 2, max(1, num_heads // 2)
            mlp_dim = wide.mlp_dim * dim // wide.dim
            self.blocks.append(make_block(VitShape(dim, 1, num_heads, mlp_dim), None, qkv_bias=False))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def fillers(self, grid: tuple[int, int]) -> Tensor:
        """[1, h * w, D]: what stands where no token was kept; bilinear, but for a grid of its own size."""
        if grid == (self.filler_side, self.filler_side):
            return self.filler_tokens[None]
        square = self.filler_tokens.float().unflatten(0, (self.filler_side, self.filler_side)).permute(2, 0, 1)[None]
        return F.interpolate(square, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2).to(self.filler_tokens.dtype)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """patches: [B, h * w, D], tokens that were kept and fillers. Returns [B, num_prefix + H * W, dim] and the grid (H, W)."""
        tokens = torch.cat([self.prefix_tokens.expand(len(patches), -1, -1).to(patches.dtype), patches], 1)
        levels = iter(zip(self.upscale_blocks, self.prefix_proj_blocks, strict=True))
        for number, block in enumerate(self.blocks):
            if number in self.splits:
                tokens, grid = _resized(tokens, grid, len(self.prefix_tokens), *next(levels))
            tokens = block(tokens)
        return self.norm(tokens), grid


def build(settings: Radio1dSettings, num_summaries: int) -> "Radio1d":
    """A RADIO1D with `num_summaries` summary tokens, on the default device, with random weights."""
    student = Radio1d(settings, num_summaries)
    if settings.gradient_checkpointing:
        checkpoint_modules(student.blocks_in_order())
    return student


class Radio1d(Student):
    """A ViT whose patches, merged on the way, are an ordered code of the image: `code` gives it, `forward` the map made from it.

    `num_tokens`: how many tokens of the code are kept in evaluation, None for all. In training each sample keeps a number drawn
    uniformly from 1 to all.
    """

    num_tokens: int | None = None

    def __init__(self, settings: Radio1dSettings, num_summaries: int):
        """num_summaries: of the prefix tokens, which `num_registers` others follow."""
        super().__init__()
        shape = settings.shape()
        num_prefix = num_summaries + settings.num_registers
        rule = settings.position_rule()
        self.patch_generator = PatchGenerator(shape.dim, settings.patch_size, settings.table_side(), num_prefix, rule)
        self.merges = settings.merges()
        self.blocks, self.downscale_blocks, self.prefix_proj_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number in range(shape.depth):
            if number in self.merges:
                self.downscale_blocks.append(Merge(shape.dim))
                self.prefix_proj_blocks.append(nn.Linear(shape.dim, 2 * shape.dim, bias=False))
                shape = VitShape(2 * shape.dim, shape.depth, 2 * shape.num_heads, 2 * shape.mlp_dim)
            self.blocks.append(make_block(shape, settings.layer_scale))
        self.norm = nn.LayerNorm(shape.dim, eps=1e-6) if settings.final_norm else nn.Identity()
        self.decoder = Decoder(settings, num_prefix)
        self.drops_early = settings.drops_early
        self.patch_size = settings.patch_size
        self.num_summaries, self.num_prefix = num_summaries, num_prefix
        self.summary_rows = {TOKENS: 1, FILLED: 1}
        self.summary_dim = self.spatial_dim = settings.shape().dim
        self.code_dim = shape.dim
        self.apply(initialise)

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest multiples of the patch that leave at least one token."""
        least = 2 ** len(self.merges)
        return max(round(height / self.patch_size), least) * self.patch_size, max(round(width / self.patch_size), least) * self.patch_size

    def no_decay(self) -> set[str]:
        """The position table, the prefix tokens, the fillers and LayerScale."""
        scales = {name for name, _ in self.named_parameters() if name.endswith(".gamma")}
        return {"patch_generator.pos_embed", TOKENS, FILLED, "decoder.filler_tokens"} | scales

    def blocks_in_order(self) -> list[nn.Module]:
        """The blocks of the encoder, then those of the decoder."""
        return [*self.blocks, *self.decoder.blocks]

    def layers(self) -> dict[str, int]:
        """As of every student; merges, splits, the decoder's tokens and norms are in the layer of the block that reads or gave them."""
        numbers, depth, last = super().layers(), len(self.blocks), len(self.blocks) + len(self.decoder.blocks)
        starts = {"decoder.filler_tokens": depth + 1, FILLED: depth + 1, "decoder.norm.": last, "norm.": depth}
        for level, (merge, split) in enumerate(zip(self.merges, self.decoder.splits, strict=True)):
            starts |= {f"{start}.{level}.": merge + 1 for start in ("downscale_blocks", "prefix_proj_blocks")}
            starts |= {f"decoder.{start}.{level}.": depth + split + 1 for start in ("upscale_blocks", "prefix_proj_blocks")}
        return {name: next((layer for start, layer in starts.items() if name.startswith(start)), n) for name, n in numbers.items()}

    def fuse_attention(self, fused: bool) -> None:
        """Computes attention in PyTorch's fused kernel (True) or as matrix products and a softmax (False), in all blocks."""
        for block in self.blocks_in_order():
            block.attn.fused_attn = fused  # type: ignore[union-attr]

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features that the decoder makes of the kept tokens; `draws` matter only in training mode.

        images: [B, 3, H, W] in [0, 1], sides multiples of the patch (UserError names the nearest).
        draws: [B, 8] uniform in [0, 1): those of a ViT, and one derived from them for the number of tokens.
        Returns summary [B, num_summaries * dim] and spatial [B, H/p, W/p, dim].
        """
        if not self.training:
            draws = None
        elif draws is None:
            draws = torch.rand(len(images), NUM_DRAWS, device=images.device)
        size = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        counts = self._counts(size, draws)
        code, grid = self._encode(images, draws, counts)
        fillers = self.decoder.fillers(grid).to(code.dtype)
        if isinstance(counts, int):
            patches = torch.cat([code[:, :counts], fillers[:, counts:].expand(len(code), -1, -1)], 1)
        else:
            code = F.pad(code, (0, 0, 0, fillers.shape[1] - code.shape[1]))
            patches = torch.where(torch.arange(code.shape[1], device=code.device)[:, None] < counts[:, None, None], code, fillers)
        tokens, (_, width) = self.decoder(patches, grid)
        spatial = tokens[:, self.num_prefix :].unflatten(1, (-1, width))[:, : size[0], : size[1]]
        return Features(tokens[:, : self.num_summaries].flatten(1), spatial)

    def set_tokens(self, num_tokens: int | None) -> None:
        """Sets `num_tokens`; UserError for what is no number of tokens."""
        if num_tokens is not None and (type(num_tokens) is not int or num_tokens < 1):
            raise UserError(f"num_tokens: found {brief(num_tokens)}; give 1 or more, or None for all")
        self.num_tokens = num_tokens

    def code(self, images: Tensor) -> Tensor:
        """The ordered tokens of images [B, 3, H, W], [B, k, code_dim], k of `num_tokens` or as many as there are: any first few do.

        There are H/p * W/p, divided by 4 for every merge. Raises UserError in training.
        """
        if self.training:
            raise UserError("code: a student in training keeps another number of tokens for each image; call eval() first")
        size = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        counts = self._counts(size, None)
        assert isinstance(counts, int)
        return self._encode(images, None, counts)[0][:, :counts]

    def _counts(self, size: tuple[int, int], draws: Tensor | None) -> int | Tensor:
        """How many tokens are kept: one number in evaluation, one for each sample, [B], in training."""
        most = size[0] * size[1] // 4 ** len(self.merges)
        if draws is None:
            return most if self.num_tokens is None else min(self.num_tokens, most)
        return (derived(draws, COUNT_DRAW) * most).long() + 1

    def _encode(self, images: Tensor, draws: Tensor | None, counts: int | Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The merged patches [B, n, code_dim], n at least the kept ones, and their grid."""
        images = self.condition(images)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        tokens = self.patch_generator(images, draws)
        levels = iter(zip(self.downscale_blocks, self.prefix_proj_blocks, strict=True))
        most = int(counts.max()) if self.drops_early and isinstance(counts, Tensor) else counts  # waits for a GPU once
        for number, block in enumerate(self.blocks):
            if number in self.merges:
                tokens, grid = _resized(tokens, grid, self.num_prefix, *next(levels))
            elif self.drops_early and number > self.merges[-1]:
                assert isinstance(most, int)
                spare = tokens.shape[1] - self.num_prefix - most
                tokens = tokens[:, : tokens.shape[1] - spare // (len(self.blocks) - number)]
            tokens = block(tokens)
        return self.norm(tokens)[:, self.num_prefix :], grid


def radio1d(student: Student, what: str) -> Radio1d:
    """The student, if it is a RADIO1D; UserError that names `what` was asked of it where it is none."""
    if not isinstance(student, Radio1d):
        raise UserError(f"{what}: a student of this kind has no code of tokens; a 'radio1d' student has")
    return student


def _resized(
    tokens: Tensor, grid: tuple[int, int], num_prefix: int, patches: nn.Module, prefix: nn.Module
) -> tuple[Tensor, tuple[int, int]]:
    """Tokens [B, num_prefix + h * w, D] with their patches merged or split by `patches` and the others projected, and the new grid."""
    resized = patches(tokens[:, num_prefix:].unflatten(1, grid))
    return torch.cat([prefix(tokens[:, :num_prefix]), resized.flatten(1, 2)], 1), (resized.shape[1], resized.shape[2])
