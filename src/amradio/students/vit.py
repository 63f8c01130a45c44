"""The ViT student: pre-norm transformer with cropped positions, one summary token per teacher, registers, no final norm."""

from collections.abc import Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import UserError
from ..features import Features
from .base import NUM_DRAWS, Aggregation, PackedImages, Student, block_numbers
from .checkpointing import checkpointed
from .mlps import change_mlp
from .packing import Packing
from .patch_generator import PatchGenerator
from .vit_pretrained import TOKENS, start_from
from .vit_settings import MlpKind, VitSettings, VitShape
from .windows import Parted, Windows, global_blocks


def build(settings: VitSettings, num_summaries: int) -> "Vit":
    """A ViT with `num_summaries` summary tokens, on the default device, with random weights or those of `start_from`."""
    shape = settings.shape()
    num_prefix = num_summaries + settings.num_registers
    patch_generator = PatchGenerator(shape.dim, settings.patch_size, settings.table_side(), num_prefix, settings.position_rule())
    blocks = [make_block(shape, settings.layer_scale, settings.mlp) for _ in range(shape.depth)]
    vit = Vit(patch_generator, blocks, num_summaries, settings.gradient_checkpointing, settings.final_norm)
    if settings.start_from is not None:
        vit.started_from = start_from(vit, settings.start_from)
    return vit


def make_block(shape: VitShape, layer_scale: float | None, mlp: MlpKind = "gelu", qkv_bias: bool = True) -> Block:
    """A pre-norm block: erf GELU, LayerNorm eps 1e-6, scaled dot product attention, LayerScale from `layer_scale` or none."""
    block = Block(
        shape.dim,
        shape.num_heads,
        mlp_ratio=(shape.mlp_dim + 0.5) / shape.dim,  # the half keeps int() of the product from falling one short
        qkv_bias=qkv_bias,
        init_values=layer_scale,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
    )
    change_mlp(block, mlp, shape.dim, shape.mlp_dim)
    return block


class Vit(Student):
    """A ViT whose parameters are named as in the published RADIO checkpoints (AM-RADIO; RADIOv2.5).

    Token order: summaries, registers, patches. Without `final_norm` the heads see the last block's output as it is.
    """

    def __init__(
        self,
        patch_generator: PatchGenerator,
        blocks: Sequence[Block],
        num_summaries: int,
        gradient_checkpointing: bool = False,
        final_norm: bool = False,
    ):
        """patch_generator: holds at least `num_summaries` prefix tokens; the others are registers. final_norm: LayerNorm eps 1e-6."""
        super().__init__()
        num_prefix, dim = patch_generator.cls_token.token.shape
        assert num_summaries <= num_prefix
        self.patch_generator = patch_generator
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6) if final_norm else nn.Identity()
        self.patch_size = patch_generator.patch_size
        self.num_summaries = num_summaries
        self.summary_rows = {TOKENS: 1}
        self.num_prefix = num_prefix
        self.summary_dim = self.spatial_dim = dim
        self.gradient_checkpointing = gradient_checkpointing
        self.windows: Windows | None = None
        self.apply(initialise)

    @property
    def step(self) -> int:
        """px of which the sides of an image are multiples: the patch, times the window where there is one."""
        return self.patch_size * (self.windows.size if self.windows else 1)

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest multiples of the step, at least one."""
        return max(round(height / self.step), 1) * self.step, max(round(width / self.step), 1) * self.step

    @property
    def window_size(self) -> int | None:
        """Patches along the side of a window; None where attention is global in all blocks."""
        return self.windows.size if self.windows else None

    def set_windows(self, size: int | None, num_global: int = 4, num_windowed: int | None = None) -> None:
        """Switches to windows of `size` x `size` patches, or with None back to global attention; weights are the same in both.

        num_global, num_windowed: which blocks stay global (`windows.global_blocks`). Raises UserError for a size below 1.
        """
        if size is not None and size < 1:
            raise UserError(f"window_size {size}: give the patches of a window's side, 1 or more")
        whole = global_blocks(len(self.blocks), num_global, num_windowed) if size is not None else frozenset()
        self.windows = Windows(size, whole, self.num_prefix) if size is not None else None

    def check_size(self, height: int, width: int) -> None:
        """Raises UserError where a side is no multiple of `step`. Compares remainders alone, so that one graph serves all legal sizes."""
        if height < self.step or width < self.step or height % self.step or width % self.step:
            super().check_size(height, width)

    def no_decay(self) -> set[str]:
        """The position table, the prefix tokens and LayerScale."""
        scales = {name for name, _ in self.named_parameters() if name.endswith(".gamma")}
        return {"patch_generator.pos_embed", "patch_generator.cls_token.token"} | scales

    def blocks_in_order(self) -> Sequence[nn.Module]:
        """The transformer blocks, the first reads the patches; patch embedding and positions are in none."""
        return tuple(self.blocks)

    def fuse_attention(self, fused: bool) -> None:
        """Computes attention in PyTorch's fused kernel (True) or as matrix products and a softmax (False), in all blocks."""
        for block in self.blocks:
            block.attn.fused_attn = fused  # type: ignore[union-attr]

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features of a batch; `draws` matter only in training mode.

        images: [B, 3, H, W] in [0, 1], sides multiples of the patch (UserError names the nearest), of any number of patches.
        draws: [B, 8] uniform in [0, 1): 0 scale, 1 aspect, 2 and 3 offsets of the viewport, 4 position dropout; no others.
        Returns summary [B, num_summaries * dim] and spatial [B, H/p, W/p, dim].
        """
        tokens, grid = self._tokens(images, draws)
        state = self._enter(tokens, grid)
        for number in range(len(self.blocks)):
            state = self._step(number, state)
        return self._features(self.norm(self._leave(state, grid)), grid)

    @property
    def num_blocks(self) -> int:
        """Transformer blocks, whose features `forward_blocks` returns."""
        return len(self.blocks)

    def forward_blocks(self, images: Tensor, draws: Tensor | None = None) -> tuple[Features, list[Features]]:
        """What `forward` returns, and features of the same shapes after every block, without the final norm.

        Windowed blocks do not change summaries.
        """
        tokens, grid = self._tokens(images, draws)
        state = self._enter(tokens, grid)
        features = []
        for number in range(len(self.blocks)):
            state = self._step(number, state)
            features.append(self._features(self._leave(state, grid), grid))
        return self._features(self.norm(self._leave(state, grid)), grid), features

    def intermediates(
        self, images: Tensor, indices: int | Sequence[int] | None = None, aggregation: Aggregation = "sparse", prefix: bool = False
    ) -> list[Features] | list[tuple[Features, Tensor]]:
        """Features after each of `indices`, in that order: summary [B, n * dim], spatial [B, H/p, W/p, dim]; later blocks are not run.

        indices: from 0, negative ones from the end; a number n for the last n, None for all. aggregation: dense takes means over the blocks
        since the index before. prefix: adds the tokens [B, num_prefix, dim] before the patches, which windowed blocks leave unchanged. No
        final norm is applied.
        """
        wanted = block_numbers(indices, len(self.blocks))
        tokens, grid = self._tokens(images, None)
        state = self._enter(tokens, grid)
        outputs: dict[int, Tensor] = {}
        group: list[Tensor] = []
        for number in range(max(wanted, default=-1) + 1):
            state = self._step(number, state)
            if aggregation == "dense" or number in wanted:
                group.append(self._leave(state, grid))
            if number in wanted:
                outputs[number] = torch.stack(group).mean(0) if len(group) > 1 else group[0]
                group = []
        if prefix:
            return [(self._features(outputs[number], grid), outputs[number][:, : self.num_prefix]) for number in wanted]
        return [self._features(outputs[number], grid) for number in wanted]

    @property
    def packs(self) -> bool:
        """Always."""
        return True

    def forward_packed(self, groups: PackedImages, blocks: bool = False) -> list[tuple[Features, list[Features]]]:
        """What `forward_blocks` returns for each group, in one pass over a sequence without padding; see `Student.forward_packed`."""
        if self.windows is not None:
            raise UserError("pack: a student with windows takes images of one size at a time; end that mode, or run one by one")
        if not groups:
            return []
        entered = [self._tokens(images, draws) for images, draws in groups]
        packing = Packing([(tokens.shape[0], tokens.shape[1]) for tokens, _ in entered])
        draws = [draws for _, draws in groups if draws is not None]
        self.take_draws(packing.spread(draws) if len(draws) == len(groups) else None)
        packed = packing.pack([tokens for tokens, _ in entered])
        after_blocks: list[list[Features]] = [[] for _ in groups]
        for block in self.blocks:
            run = partial(packing.run, block)  # pyright: ignore[reportArgumentType]
            packed = checkpointed(block, run, packed) if self._checkpoints else run(packed)
            if blocks:
                for collected, tokens, (_, grid) in zip(after_blocks, packing.unpack(packed), entered, strict=True):
                    collected.append(self._features(tokens, grid))
        last = packing.unpack(self.norm(packed))
        return [(self._features(tokens, grid), collected) for tokens, (_, grid), collected in zip(last, entered, after_blocks, strict=True)]

    def _tokens(self, images: Tensor, draws: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        images = self.condition(images)
        if not self.training:
            draws = None
        elif draws is None:
            draws = torch.rand(images.shape[0], NUM_DRAWS, device=images.device)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        return self.patch_generator(images, draws), grid

    @property
    def _checkpoints(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _enter(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor | Parted:
        return tokens if self.windows is None else self.windows.enter(tokens, grid)

    def _step(self, number: int, state: Tensor | Parted) -> Tensor | Parted:
        block = self.blocks[number]
        if self._checkpoints:
            block = partial(checkpointed, block, block)
        if isinstance(state, Tensor):
            return block(state)
        assert self.windows is not None
        return self.windows.step(block, number, state)  # pyright: ignore[reportArgumentType]

    def _leave(self, state: Tensor | Parted, grid: tuple[int, int]) -> Tensor:
        if isinstance(state, Tensor):
            return state
        assert self.windows is not None
        return self.windows.leave(state, grid)

    def _features(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        summary = tokens[:, : self.num_summaries].flatten(1)
        spatial = tokens[:, self.num_prefix :].unflatten(1, grid)
        return Features(summary, spatial)


def initialise(module: nn.Module) -> None:
    """Linear layers from a normal distribution of deviation 0.02, cut at 2 deviations, and biases of zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
