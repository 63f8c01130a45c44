"""What every student is: a backbone with its own preprocessing that returns `Features`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..features import Features

if TYPE_CHECKING:
    from .drop_path import DropPath

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NUM_DRAWS = 8
"""Columns of `draws`: uniform random numbers that one sample may spend in one step."""
Aggregation = Literal["sparse", "dense"]
"""Of block outputs: sparse takes those asked for, dense the mean of each one and those before it, back to the last one asked for."""


PackedImages = Sequence[tuple[Tensor, Tensor | None]]
"""Groups of images of one legal size each: (images [B, 3, H, W], draws [B, 8] or None), as of `Student.forward`."""


class Student(nn.Module):
    """A backbone that is trained.

    Attributes: `patch_size` px per cell of the spatial output; `summary_dim` channels of ONE summary; `num_summaries` of them;
    `spatial_dim` channels of the map. Images are RGB in [0, 1]; mean and std are buffers of the model.
    `started_from` says which weights it began with, None for random ones. `summary_rows`: the parameters that belong
    to single summaries, by name, with how many of their first rows each summary has; empty where there are none.
    `frozen`: whether it is kept as it is for now (`freeze`). `drop_paths`: the residual branches that samples may go without.
    """

    mean: Tensor
    std: Tensor
    patch_size: int
    summary_dim: int
    spatial_dim: int
    num_summaries: int
    started_from: "StartReport | None" = None
    frozen: bool = False
    drop_paths: "Sequence[DropPath]" = ()
    summary_rows: Mapping[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.summary_rows = {}
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The legal input size nearest to height x width px."""
        raise NotImplementedError

    def no_decay(self) -> set[str]:
        """Names of parameters beyond norms and biases that weight decay leaves alone (tokens, position tables)."""
        return set()

    def blocks_in_order(self) -> Sequence[nn.Module]:
        """Its blocks from the input on, as `train` counts them (`LastBlocksSettings`, `LoraSettings`); empty where it has none."""
        return ()

    def layers(self) -> dict[str, int]:
        """The number of the layer that each parameter is in, by name: 0 for what stands before the blocks, then block by block.

        Raises UserError where the student has no blocks.
        """
        blocks = self.blocks_in_order()
        if not blocks:
            raise UserError("a student of this kind has no blocks whose order is known; leave it out")
        numbers = {id(parameter): number for number, block in enumerate(blocks, 1) for parameter in block.parameters()}
        return {name: numbers.get(id(parameter), 0) for name, parameter in self.named_parameters()}

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which BatchNorms that are not trained keep to their running statistics, and keep these."""
        super().train(mode)
        for module in self.modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and (self.frozen or not any(p.requires_grad for p in module.parameters())):
                module.eval()
        return self

    def take_draws(self, draws: Tensor | None) -> None:
        """Gives the random numbers of a batch, [B, 8] in training, to what drops residual branches."""
        for path in self.drop_paths:
            path.draws = draws

    def freeze(self, frozen: bool) -> None:
        """Keeps weights and statistics as they are until `freeze(False)`: a `Network` then runs it without gradients.

        `requires_grad` of the parameters stays as it is, since DDP and the optimizer have taken them over already.
        """
        if frozen != self.frozen:
            self.frozen = frozen
            self.train(self.training)

    def fuse_attention(self, fused: bool) -> None:
        """Computes attention in one fused kernel or step by step: the same numbers, but one is quicker. Does nothing without attention."""
        del fused

    def deploy(self) -> Self:
        """Rewrites the student, in place and for good, for quicker inference: outputs change by rounding only. Returns it.

        What is folded together (norms into convolutions, parallel branches) is no longer there to be trained, nor to be loaded into.
        """
        return self.eval()

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features of a batch.

        images: [B, 3, H, W], RGB in [0, 1], of a legal size, else ValueError that names the nearest.
        draws: [B, 8] uniform in [0, 1), the random numbers of each sample in training (None: drawn from the global generator).
        Returns summary [B, num_summaries * summary_dim], summaries one after another, and spatial [B, H', W', spatial_dim].
        """
        raise NotImplementedError

    @property
    def num_blocks(self) -> int:
        """Blocks whose features `forward_blocks` returns; 0 where the student has none."""
        return 0

    def forward_blocks(self, images: Tensor, draws: Tensor | None = None) -> tuple[Features, list[Features]]:
        """What `forward` returns, and the same after each of the `num_blocks` blocks; the last is what `forward` returns."""
        del images, draws
        raise UserError("blocks: a student of this kind has none to read; a 'vit' student has")

    @property
    def pyramid(self) -> Mapping[int, int]:
        """Channels of the maps of `forward_pyramid` by their stride in px, finest first; empty where all maps are of one stride."""
        return {}

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Maps [B, D, H/stride, W/stride] of the strides of `pyramid`, channels first. images: as of `forward`."""
        del images
        raise UserError("pyramid: a student of this kind has maps of one stride; E-RADIO and pyramids of timm have several")

    @property
    def window_size(self) -> int | None:
        """Patches of a window's side in windowed mode, None without windows."""
        return None

    def set_windows(self, size: int | None, num_global: int = 4, num_windowed: int | None = None) -> None:
        """ViTDet's windowed mode: attention within windows of `size` x `size` patches in all but a few blocks; None ends it.

        num_global, num_windowed: which blocks stay global (`windows.global_blocks`). Raises UserError where the student has no such mode.
        """
        del num_global, num_windowed
        if size is not None:
            raise UserError(f"window_size {size}: a student of this kind has no windowed mode; leave it out (a 'vit' student has one)")

    def intermediates(
        self, images: Tensor, indices: int | Sequence[int] | None = None, aggregation: Aggregation = "sparse", prefix: bool = False
    ) -> list[Features] | list[tuple[Features, Tensor]]:
        """Features after each block of `indices`, in that order; shapes as of `forward`.

        indices: negative ones count from the end; a number n stands for the last n blocks, None for all. prefix: pairs with the tokens
        [B, num_prefix, D] before the patches (summaries, then registers). Raises UserError where the student has no such blocks.
        """
        del images, indices, aggregation, prefix
        raise UserError("intermediates: a student of this kind has none; a 'vit' student has")

    @property
    def packs(self) -> bool:
        """Whether it takes images of several sizes in one pass (`pack`, `forward_packed`)."""
        return False

    def forward_packed(self, groups: PackedImages, blocks: bool = False) -> list[tuple[Features, list[Features]]]:
        """Features of images of several sizes in one pass without padding: what `forward_blocks` returns for each group by itself.

        blocks: whether those after each block are wanted; else there are none. Raises UserError where the student cannot, or is in windowed
        mode.
        """
        del groups, blocks
        raise UserError("pack: a student of this kind takes images of one size at a time; a 'vit' student takes several")

    def pack(self, images: Sequence[Tensor]) -> list[Features]:
        """Features of images [3, H, W] of several legal sizes in one pass, without padding: each as if it were alone, with B = 1.

        Raises UserError where the student cannot, in training and in windowed mode.
        """
        if self.training:
            raise UserError("pack: a student in training takes images of one size at a time; end that mode, or run one by one")
        return [features for features, _ in self.forward_packed([(image[None], None) for image in images])]

    def external_preprocessing(self) -> "Conditioner":
        """Hands out what normalises images in [0, 1], and leaves the identity inside: the student then takes normalised images."""
        conditioner = Conditioner(self.mean.clone(), self.std.clone())
        self.mean.zero_()
        self.std.fill_(1)
        return conditioner

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts the student, but for mean and std, which stay float32: images are normalised before they are cast."""
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)
        if not mean.is_meta:
            self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self

    def condition(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> zero mean and unit deviation per channel, in the dtype of the weights.

        Raises UserError where the size is not legal.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images: found shape {tuple(images.shape)}; give [B, 3, H, W], RGB in [0, 1]")
        self.check_size(images.shape[2], images.shape[3])
        return ((images - self.mean) / self.std).to(next(self.parameters()).dtype)

    def check_size(self, height: int, width: int) -> None:
        """Raises UserError that names the nearest legal size where height x width px is not one."""
        if torch.compiler.is_exporting():
            return  # in a graph for every size, height and width are no numbers
        legal = self.nearest_size(int(height), int(width))
        if legal != (height, width):
            raise UserError(f"images: {height}x{width} px is not a size this student takes; the nearest is {legal[0]}x{legal[1]} px")


class Conditioner(nn.Module):
    """Images [..., 3, H, W], RGB in [0, 1] -> normalised by mean and std [3, 1, 1], in the dtype of the images."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """[..., 3, H, W] in [0, 1] -> (images - mean) / std, same shape and dtype."""
        return ((images - self.mean) / self.std).to(images.dtype)

    def inverse(self, normalised: Tensor) -> Tensor:
        """Undoes `forward`."""
        return (normalised * self.std + self.mean).to(normalised.dtype)


def block_numbers(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Block numbers from 0 for what `Student.intermediates` takes; UserError for a block that is not there."""
    if indices is None or isinstance(indices, int):
        count = depth if indices is None else indices
        if not 1 <= count <= depth:
            raise UserError(f"intermediates: the last {count} of {depth} blocks; give a number from 1 to {depth}, or a list of blocks")
        return list(range(depth - count, depth))
    wrong = [number for number in indices if not -depth <= number < depth]
    if wrong:
        raise UserError(f"intermediates: there is no block {wrong[0]}; this student has {depth}, from 0 to {depth - 1}")
    return [number % depth for number in indices]


class StartReport(NamedTuple):
    """What became of the weights that a student was started from; names of the student's parameters."""

    source: str
    matched: tuple[str, ...]
    """Taken over as they are."""
    changed: tuple[str, ...]
    """Taken over after resampling, folding or taking only some rows."""
    left: tuple[str, ...]
    """Still random, because the source has no such tensor or one of another shape."""
    unused: tuple[str, ...]
    """Names in the source that the student has no place for."""

    def __str__(self) -> str:
        def few(names: tuple[str, ...]) -> str:
            return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")

        parts = [f"{self.source}: {len(self.matched)} tensors taken as they are"]
        parts += [f"adapted: {few(self.changed)}"] if self.changed else []
        parts += [f"still random: {few(self.left)}"] if self.left else []
        parts += [f"unused: {few(self.unused)}"] if self.unused else []
        return "; ".join(parts)
