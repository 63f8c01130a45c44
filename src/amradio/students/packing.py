"""Images of several sizes through the blocks of a ViT in one pass, without padding (NaViT, Dehghani et al. 2023, "Patch n' Pack")."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor


class Packing:
    """Where the tokens of each image stand in a pack [T, D], and which images have as many tokens as one another.

    Norms and MLPs run on the whole pack at once. Attention runs once for every length, on all images of this length: a block-diagonal
    mask over the pack would cost the square of its length.
    """

    def __init__(self, lengths: Sequence[int]):
        """lengths: tokens of each image. Images of one length stand side by side in the pack."""
        self.lengths = lengths
        self.order = sorted(range(len(lengths)), key=lambda image: lengths[image])
        ordered = [lengths[image] for image in self.order]
        self.groups = [(length, ordered.count(length)) for length in sorted(set(lengths))]

    def pack(self, tokens: Sequence[Tensor]) -> Tensor:
        """[1, length, D] of each image -> [T, D]."""
        return torch.cat([tokens[image][0] for image in self.order])

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """[T, D] -> [1, length, D] of each image."""
        parts = packed.split([self.lengths[image] for image in self.order])
        sequences = dict(zip(self.order, parts, strict=True))
        return [sequences[image][None] for image in range(len(sequences))]

    def run(self, block: Block, packed: Tensor) -> Tensor:
        """What a pre-norm block makes of a pack [T, D], each image seeing itself alone."""
        packed = packed + block.ls1(self._attend(block.attn, block.norm1(packed)))
        return packed + block.ls2(block.mlp(block.norm2(packed)))

    def _attend(self, attention, packed: Tensor) -> Tensor:
        qkv = attention.qkv(packed).unflatten(-1, (3, attention.num_heads, -1))
        outputs: list[Tensor] = []
        for (length, count), part in zip(self.groups, qkv.split([length * count for length, count in self.groups]), strict=True):
            q, k, v = part.unflatten(0, (count, length)).permute(2, 0, 3, 1, 4)
            outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1).flatten(1))
        return attention.proj(torch.cat(outputs))
