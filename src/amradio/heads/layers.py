"""The layers of heads: from the student's features into one teacher's space."""

from functools import partial

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
        """See the class."""
        return self.final(inputs)


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

    def forward(self, features: Features) -> Features:
        """Student's summary [B, n * summary_dim] and spatial [B, H, W, D] -> summary [B, out], spatial [B, uH, uW, out]."""
        summary = spatial = None
        if self.summary is not None:
            assert features.summary is not None
            start = self.slot * self.summary_dim
            assert features.summary.shape[1] >= start + self.summary_dim, "the student has no summary for this slot"
            summary = self.summary(features.summary[:, start : start + self.summary_dim])
        if self.spatial is not None:
            assert features.spatial is not None
            spatial = self.spatial(features.spatial)
        return Features(summary, spatial)


def final_linear(module: nn.Module) -> nn.Linear:
    """The last linear layer of a built-in head, or of any module whose `final` is one or ends in one."""
    if isinstance(module, AttentionHead):
        module = module.mlp
    final = module.final
    if isinstance(final, nn.Sequential):
        final = final[-1]
    assert isinstance(final, nn.Linear)
    return final


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
