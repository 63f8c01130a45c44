"""What formats of ViTs share: settings from a shape, LayerScale and normalisation folded into other weights, exactly."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import validate
from ..students.base import CLIP_MEAN, CLIP_STD
from ..students.vit_pretrained import EMBEDDER, TABLE
from ..students.vit_settings import MlpKind, VitSettings, VitShape, known_size

LAYER_SCALE = 1e-5
"""What C-RADIOv3-B and -L began with; of a model that is read only its presence matters."""
SCALED = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}
"""The layer whose output each scale multiplies; of SwiGLU the second is `mlp.w3`."""


class VitLayout(NamedTuple):
    """What a foreign file says of a ViT."""

    shape: VitShape
    patch_size: int
    table_side: int
    """Positions per side of its table."""
    num_registers: int
    layer_scale: bool
    align_corners: bool
    mlp: MlpKind = "gelu"

    def settings(self, where: str) -> VitSettings:
        """The student's settings: the name of a known size, or the numbers. Raises UserError, after `where`, where they do not fit."""
        size = known_size(self.shape, self.mlp)
        named = {"size": size} if size else {**self.shape._asdict(), "size": "small"}
        return validate(
            VitSettings,
            {
                "type": "vit",
                **named,
                "mlp": self.mlp,
                "patch_size": self.patch_size,
                "max_image_size": self.table_side * self.patch_size,
                "num_registers": self.num_registers,
                "layer_scale": LAYER_SCALE if self.layer_scale else None,
                "align_corners": self.align_corners,
            },
            where,
        )


def mlp_ratio(shape: VitShape) -> float:
    """The ratio of which libraries that compute `int(dim * ratio)` make the hidden channels."""
    ratio = shape.mlp_dim / shape.dim
    return ratio if int(shape.dim * ratio) == shape.mlp_dim else (shape.mlp_dim + 0.5) / shape.dim


def fold_scales(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ViT (published names) without LayerScale: each scale is multiplied, in float64, into the layer before it."""
    folded = {name: tensor for name, tensor in weights.items() if not name.endswith(".gamma")}
    for name in weights.keys() - folded.keys():
        start, scale = name[: -len("ls1.gamma")], name[-len("ls1.gamma") :]
        gamma = weights[name].double()
        scaled = f"{start}{SCALED[scale]}"
        scaled = scaled if f"{scaled}.weight" in weights else f"{start}mlp.w3"
        for kind, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            layer = f"{scaled}.{kind}"
            folded[layer] = (weights[layer].double() * factor).to(weights[layer].dtype)
    return folded


def without_idle_scales(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without LayerScale where every scale is 1, as libraries write it that cannot leave it out."""
    scales = [name for name in weights if name.endswith(".gamma")]
    idle = all(bool((weights[name] == 1).all()) for name in scales)
    return {name: tensor for name, tensor in weights.items() if not (idle and name in scales)}


def fold_normalisation(
    weights: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float], bias: Tensor | None = None
) -> dict[str, Tensor]:
    """The weights of a ViT that normalised images by `mean` and `std`, and added `bias` [D] to patches, for our mean and std and no bias.

    (x - m') / s' in terms of (x - m) / s scales the patches' weights and leaves a constant, which goes into the position table: bilinear
    stretching keeps constants, so this is exact wherever positions are not dropped. Weights that fit already are returned as they are.
    """
    ours, theirs = (
        (torch.tensor(m, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)) for m, s in ((CLIP_MEAN, CLIP_STD), (mean, std))
    )
    same = torch.allclose(ours[0], theirs[0], rtol=0, atol=1e-6) and torch.allclose(ours[1], theirs[1], rtol=0, atol=1e-6)
    if same and (bias is None or not bias.any()):
        return dict(weights)
    patches, table = weights[EMBEDDER], weights[TABLE]
    by_channel = patches.double().unflatten(1, (3, -1))
    constant = torch.einsum("dcp,c->d", by_channel, (ours[0] - theirs[0]) / theirs[1])
    if bias is not None:
        constant = constant + bias.double()
    scaled = (by_channel * (ours[1] / theirs[1])[:, None]).flatten(1)
    return {**weights, EMBEDDER: scaled.to(patches.dtype), TABLE: (table.double() + constant).to(table.dtype)}
