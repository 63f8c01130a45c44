"""What differs between the models of timm that a student becomes: a radio ViT, or the backbone that it is."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...features import Features
from ...network import Network, NetworkConfig
from ..base import LoadedModel


class Call(NamedTuple):
    """`timm.create_model(architecture, checkpoint_path=..., **overrides)`."""

    architecture: str
    overrides: dict[str, Any]


class Family:
    """One kind of model of timm."""

    def unsupported_reasons(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """Why timm has no such model, one sentence each."""
        raise NotImplementedError

    def call(self, model: LoadedModel) -> Call:
        """What makes the model that takes `their_weights`."""
        raise NotImplementedError

    def their_weights(self, model: LoadedModel) -> dict[str, Tensor]:
        """The student's weights under timm's names."""
        raise NotImplementedError

    def our_weights(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """timm's tensors under the student's names; those that belong nowhere keep theirs. Raises UserError where they cannot fit."""
        raise NotImplementedError

    def normalisation(self, config: NetworkConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB in [0, 1]."""
        raise NotImplementedError

    def features(self, backbone: Any, config: NetworkConfig, images: Tensor) -> Features:
        """What timm's model says of normalised images [B, 3, H, W]."""
        raise NotImplementedError

    def lines(self, config: NetworkConfig) -> tuple[str, ...]:
        """The Python lines with which a user gets `summary` and `spatial` from `model` and normalised `images`."""
        raise NotImplementedError
