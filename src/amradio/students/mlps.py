"""The MLPs of a ViT's blocks beside the plain one: SwiGLU, and one with a norm."""

import torch.nn.functional as F
from torch import Tensor, nn

from .vit_settings import MlpKind


class SwiGlu(nn.Module):
    """[..., dim] -> [..., dim]: w3(silu(a) * b), where a and b are the halves of w12's output (arXiv 2002.05202), named as in DINOv2."""

    def __init__(self, dim: int, hidden_dim: int):
        """hidden_dim: channels of each half."""
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        gate, value = self.w12(inputs).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def change_mlp(block: nn.Module, kind: MlpKind, dim: int, hidden_dim: int) -> None:
    """Gives a block of timm, whose MLP is fc2(gelu(fc1(x))), another one in place.

    gelu_norm: fc2(norm(gelu(fc1(x)))), with LayerNorm's default eps of 1e-5, as published with `mlpnorm`; swiglu: `SwiGlu`.
    """
    if kind == "swiglu":
        block.mlp = SwiGlu(dim, hidden_dim)
    elif kind == "gelu_norm":
        block.get_submodule("mlp").norm = nn.LayerNorm(hidden_dim)
