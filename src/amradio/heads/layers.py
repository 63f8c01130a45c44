"""The layers of heads: from the student's features into one teacher's space."""

from collections.abc import Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import UserError
from ..features import Features, Kind


class MlpHead(nn.Module):
    """[..., in_dim] -> [..., out_dim]: Linear, residual (LN, GELU, Linear), then LN, GELU, Linear; LayerNorm eps 1e-5, GELU with erf.

    With `upsample_factor` u: [B, H, W, in_dim] -> [B, uH, uW, out_dim]; the last layer's channels are ordered (row, column, channel).
    Parameter names and order are those of the published checkpoints (`mlp_version` v2). The last bias begins at zero.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_inner: int = 0, upsample_factor: int = 1):
        super().__init__()
        self.upsample_factor = upsample_factor
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.blocks = nn.ModuleList(_norm_gelu_linear(hidden_dim, hidden_dim) for _ in range(num_inner))
        self.final = _norm_gelu_linear(hidden_dim, out_dim * upsample_factor**2)
        nn.init.zeros_(final_linear(self).bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """UserError for a summary [B, D] when the head upsamples."""
        hidden = self.fc1(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        output = self.final(hidden)
        return output if self.upsample_factor == 1 else _pixel_shuffle(output, self.upsample_factor)


class MlpV1Head(nn.Module):
    """[..., in_dim] -> [..., out_dim]: Linear, LN, ReLU, as often as there are hidden layers, then Linear; LayerNorm eps 1e-5.

    Parameter names and order are those of the published checkpoints (`mlp_version` v1). The last bias begins at zero.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_inner: int = 0):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        inner = [(nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU()) for _ in range(num_inner)]
        self.inner = nn.Sequential(*(layer for group in inner for layer in group))
        self.fc2 = nn.Linear(hidden_dim, out_dim)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [..., in_dim] -> [..., out_dim], cell by cell."""
        return self.fc2(self.inner(nn.functional.relu(self.norm(self.fc1(inputs)))))


class AttentionHead(nn.Module):
    """[B, H, W, in_dim] -> [B, H, W, out_dim]: pre-norm blocks over all cells, then an `MlpHead`.

    The blocks have no qkv bias, LayerScale from 1e-5 and LayerNorm eps 1e-6; names as in the published checkpoints.
    """

    def __init__(self, in_dim: int, depth: int, num_heads: int, mlp: MlpHead):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        blocks = [Block(in_dim, num_heads, qkv_bias=False, init_values=1e-5, norm_layer=norm) for _ in range(depth)]  # pyright: ignore[reportArgumentType]
        self.blocks = nn.ModuleList(blocks)
        self.mlp = mlp

    def forward(self, inputs: Tensor) -> Tensor:
        """UserError for anything but a map [B, H, W, in_dim]."""
        if inputs.ndim != 4:
            raise UserError(
                f"attention head: found shape {tuple(inputs.shape)}; it reads a map [B, H, W, D], take an 'mlp' head for summaries"
            )
        tokens = inputs.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.mlp(tokens.unflatten(1, inputs.shape[1:3]))


class LinearHead(nn.Module):
    """[..., in_dim] -> [..., out_dim]: one linear layer whose bias begins at zero."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.final = nn.Linear(in_dim, out_dim)
        nn.init.zeros_(self.final.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [..., in_dim] -> [..., out_dim], cell by cell."""
        return self.final(inputs)


class TransformerHead(nn.Module):
    """[B, D] or [B, H, W, D], beside the other kind of feature -> the same with out_dim channels: pre-norm blocks over all tokens of both,
    then a linear layer on those of the first.

    LayerNorm eps 1e-6, qkv bias, no LayerScale. The last bias begins at zero. Where the other kind has other channels, a linear layer
    brings them to D.
    """

    def __init__(self, in_dim: int, out_dim: int, depth: int, num_heads: int, other_dim: int | None = None):
        """other_dim: channels of the other kind; None where it is not given."""
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.other = nn.Linear(other_dim, in_dim) if other_dim not in (None, in_dim) else None
        blocks = [Block(in_dim, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)]  # pyright: ignore[reportArgumentType]
        self.blocks = nn.ModuleList(blocks)
        self.final = nn.Linear(in_dim, out_dim)
        nn.init.zeros_(self.final.bias)

    def forward(self, inputs: Tensor, other: Tensor | None = None) -> Tensor:
        """other: the feature of the other kind, of the same images."""
        tokens = _tokens(inputs)
        count = tokens.shape[1]
        if other is not None:
            tokens = torch.cat([tokens, _tokens(other if self.other is None else self.other(other))], 1)
        for block in self.blocks:
            tokens = block(tokens)
        output = self.final(tokens[:, :count])
        return output[:, 0] if inputs.ndim == 2 else output.unflatten(1, inputs.shape[1:3])


class LadderHead(nn.Module):
    """A tensor [..., in_dim] for each block -> [..., out_dim]: Linear and GELU each, then one linear layer on all of them side by side.

    The same as the sum of a linear layer for each, so that an affine map is folded into one layer. Weights begin with a deviation of 0.02,
    biases at zero.
    """

    def __init__(self, in_dim: int, hidden_dims: Sequence[int], out_dim: int):
        """hidden_dims: of each block, the last one's last."""
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(in_dim, hidden_dim) for hidden_dim in hidden_dims)
        self.final = nn.Linear(sum(hidden_dims), out_dim)
        for linear in (*self.steps, self.final):
            assert isinstance(linear, nn.Linear)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """blocks: one tensor [..., in_dim] a block, in their order, all of one shape -> [..., out_dim]."""
        assert len(blocks) == len(self.steps), f"a ladder of {len(self.steps)} steps, and {len(blocks)} blocks"
        return self.final(torch.cat([nn.functional.gelu(step(block)) for step, block in zip(self.steps, blocks, strict=True)], -1))


class Head(nn.Module):
    """One teacher's head: the student's features in, a prediction in that teacher's target space out."""

    def __init__(self, summary: nn.Module | None, spatial: nn.Module | None, slot: int, summary_dim: int):
        """slot: which of the student's summaries is read; summary_dim: channels of one of them. A kind that is None is not predicted."""
        super().__init__()
        self.summary = summary
        self.spatial = spatial
        self.slot = slot
        self.summary_dim = summary_dim

    def part(self, kind: Kind) -> nn.Module | None:
        """The layers of one kind, None where it is not predicted."""
        return self.summary if kind == "summary" else self.spatial

    @property
    def reads_blocks(self) -> bool:
        """Whether `forward` needs the features after each block."""
        return isinstance(self.summary, LadderHead) or isinstance(self.spatial, LadderHead)

    def forward(self, features: Features, blocks: Sequence[Features] = ()) -> Features:
        """Student's summary [B, n * summary_dim] and spatial [B, H, W, D] -> summary [B, out], spatial [B, uH, uW, out].

        blocks: the same after each block of the student, where `reads_blocks`.
        """
        summary = None if self.summary is None else self._predict(self.summary, "summary", features, blocks)
        spatial = None if self.spatial is None else self._predict(self.spatial, "spatial", features, blocks)
        return Features(summary, spatial)

    def _predict(self, part: nn.Module, kind: Kind, features: Features, blocks: Sequence[Features]) -> Tensor:
        if isinstance(part, LadderHead):
            return part([self._read(block, kind) for block in blocks])
        if isinstance(part, TransformerHead):
            return part(self._read(features, kind), self._read(features, "spatial" if kind == "summary" else "summary"))
        return part(self._read(features, kind))

    def _read(self, features: Features, kind: Kind) -> Tensor:
        """The map, or the summary of this head's slot."""
        feature = features.of(kind)
        assert feature is not None, f"the student has no {kind}"
        if kind == "spatial":
            return feature
        start = self.slot * self.summary_dim
        assert feature.shape[1] >= start + self.summary_dim, "the student has no summary for this slot"
        return feature[:, start : start + self.summary_dim]


def final_linear(module: nn.Module) -> nn.Linear:
    """The last linear layer of a built-in head, or of any module whose `final` is one or ends in one."""
    if isinstance(module, AttentionHead):
        module = module.mlp
    if isinstance(module, MlpV1Head):
        return module.fc2
    final = module.final
    if isinstance(final, nn.Sequential):
        final = final[-1]
    assert isinstance(final, nn.Linear)
    return final


def _tokens(features: Tensor) -> Tensor:
    """[B, D] -> [B, 1, D], [B, H, W, D] -> [B, H * W, D]."""
    return features[:, None] if features.ndim == 2 else features.flatten(1, 2)


def _norm_gelu_linear(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_dim), nn.GELU(), nn.Linear(in_dim, out_dim))


def _pixel_shuffle(output: Tensor, factor: int) -> Tensor:
    """[B, H, W, u*u*C] -> [B, uH, uW, C], channels ordered (row, column, channel)."""
    if output.ndim != 4:
        raise UserError(
            f"upsample_factor {factor}: found shape {tuple(output.shape)}; only a spatial head upsamples, set it to 1 for summaries"
        )
    B, H, W, _ = output.shape
    return output.reshape(B, H, W, factor, factor, -1).permute(0, 1, 3, 2, 4, 5).reshape(B, H * factor, W * factor, -1)
