"""`amradio.load` and what it returns: a frozen model with a head per teacher."""

from collections.abc import Iterable
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn

from . import formats
from .errors import UserError, nearest
from .features import Features
from .network import Network, NetworkConfig


class Model(nn.Module):
    """A student with its heads, ready to use: in eval mode, heads speak raw teacher space.

    Attributes: `config` as in config.json.
    """

    def __init__(self, config: NetworkConfig, network: Network):
        super().__init__()
        self.config = config
        self.network = network
        self.eval().requires_grad_(False)

    @overload
    def forward(self, images: Tensor, heads: None = None) -> Features: ...
    @overload
    def forward(self, images: Tensor, heads: Iterable[str]) -> dict[str, Features]: ...
    def forward(self, images: Tensor, heads: Iterable[str] | None = None) -> Features | dict[str, Features]:
        """Features of images.

        images: [B, 3, H, W], RGB float in [0, 1], of a legal size (`nearest_size`), on the model's device.
        Without `heads` the backbone's Features: summary [B, summary_dim], spatial [B, H', W', spatial_dim].
        With `heads` a dict with `backbone` and one entry a name. Raises UserError for an unknown head, a wrong shape or size.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(f"images: expected float [B, 3, H, W] in [0, 1], found {images.dtype} {list(images.shape)}")
        if heads is None:
            return self.network(images)["backbone"]
        wanted = list(heads)
        unknown = [name for name in wanted if name not in self.config.heads]
        if unknown:
            raise UserError(*(f"heads: there is no head '{name}'; {nearest(name, self.config.heads)}" for name in unknown))
        return self.network(images, None, wanted)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        return tuple(self.config.heads)

    @property
    def patch_size(self) -> int:
        """Pixels per cell of the map."""
        return self.network.student.patch_size

    @property
    def summary_dim(self) -> int:
        """Channels of the backbone's summary: its summaries, one after another."""
        return self.network.summary_dim

    @property
    def spatial_dim(self) -> int:
        """Channels of the backbone's map."""
        return self.network.spatial_dim

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The legal input size nearest to height x width px."""
        return self.network.student.nearest_size(height, width)

    def intermediates(self, images: Tensor, indices: Iterable[int]) -> list[Features]:
        """Features after the blocks `indices` (negative ones count from the end), for ViT students; UserError for others."""
        student = self.network.student
        if not callable(getattr(student, "intermediates", None)):
            raise UserError(f"a student of type '{self.config.student.type}' has no intermediates; ViT students have")
        return student.intermediates(images, list(indices))  # type: ignore[operator]


def load(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """Loads a model in any format that `formats.FORMATS` reads, found from the content; of a run folder its model. Never unpickles code.

    Raises UserError where there is no model, a file is damaged, or weights and config do not fit.
    """
    found = formats.read(path)
    return Model(found.config, found.network).to(device)
