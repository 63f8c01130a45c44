"""Images of several sizes through the blocks of a ViT in one pass, without padding (NaViT, Dehghani et al. 2023, "Patch n' Pack")."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor


class Packing:
    """Where the tokens of each group of images stand in a pack [T, D], and which images have as many tokens as one another.

    Norms and MLPs run on the whole pack at once. Attention runs once for every length, on all images of this length: a block-diagonal
    mask over the pack would cost the square of its length.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]]):
        """shapes: (images, tokens of each) of the groups. Groups of one length stand side by side in the pack."""
        self.shapes = shapes
        self.order = sorted(range(len(shapes)), key=lambda group: shapes[group][1])
        lengths = sorted({length for _, length in shapes})
        self.lengths = [(length, sum(count for count, other in shapes if other == length)) for length in lengths]

    def pack(self, tokens: Sequence[Tensor]) -> Tensor:
        """[images, length, D] of each group -> [T, D]."""
        return torch.cat([tokens[group].flatten(0, 1) for group in self.order])

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """[T, D] -> [images, length, D] of each group."""
        counts = [self.shapes[group] for group in self.order]
        parts = packed.split([count * length for count, length in counts])
        sequences = {group: part.unflatten(0, self.shapes[group]) for group, part in zip(self.order, parts, strict=True)}
        return [sequences[group] for group in range(len(sequences))]

    def spread(self, numbers: Sequence[Tensor]) -> Tensor:
        """Rows [images, N] of each group -> [T, N], those of its image for each token."""
        return torch.cat([numbers[group].repeat_interleave(self.shapes[group][1], 0) for group in self.order])

    def run(self, block: Block, packed: Tensor) -> Tensor:
        """What a pre-norm block makes of a pack [T, D], each image seeing itself alone."""
        packed = packed + block.drop_path1(block.ls1(self._attend(block.attn, block.norm1(packed))))
        return packed + block.drop_path2(block.ls2(block.mlp(block.norm2(packed))))

    def _attend(self, attention, packed: Tensor) -> Tensor:
        qkv = attention.qkv(packed).unflatten(-1, (3, attention.num_heads, -1))
        outputs: list[Tensor] = []
        for (length, count), part in zip(self.lengths, qkv.split([length * count for length, count in self.lengths]), strict=True):
            q, k, v = part.unflatten(0, (count, length)).permute(2, 0, 3, 1, 4)
            if attention.fused_attn:
                seen = F.scaled_dot_product_attention(q, k, v)
            else:
                seen = ((q * attention.scale) @ k.mT).softmax(-1) @ v
            outputs.append(seen.transpose(1, 2).flatten(0, 1).flatten(1))
        return attention.proj(torch.cat(outputs))
