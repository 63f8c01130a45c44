"""Backbones of timm, which a student of type `timm` is: their own names, their own architecture."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from ...features import Features
from ...network import Network, NetworkConfig
from ...students.timm import TimmStudent, survey
from ...students.timm_settings import TimmSettings
from ..base import LoadedModel
from .base import Call, Family

TRUNK = "trunk."


class Backbone(Family):
    """The whole backbone; what the student adds to it has no place."""

    def unsupported_reasons(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """What is beyond the timm backbone: a rotation of the map, a neck, layers of summaries, or weights that are not there."""
        settings = _settings(config)
        reasons = [f"timm's {settings.model} has no place for the rotation of the map; 'onnx' has"] if config.rotates else []
        if settings.neck:
            reasons.append(f"timm's {settings.model} has no place for the student's neck; 'onnx' has")
        if settings.summaries == "per_teacher":
            reasons.append(f"timm's {settings.model} has no place for the linear layers of `summaries: per_teacher`; 'onnx' has")
        call = _call(settings)
        with torch.device("meta"):
            whole = timm.create_model(call.architecture, **call.overrides).state_dict()
        missing = [name for name in whole if f"{TRUNK}{name}" not in network.student.state_dict()]
        if missing:
            reasons.append(
                f"`summary: {settings.summary}` left out layers that timm's {settings.model} has ({missing[0]}); 'onnx' does without"
            )
        return tuple(reasons)

    def call(self, model: LoadedModel) -> Call:
        """Name and arguments of `timm.create_model` for a plain timm backbone."""
        return _call(_settings(model.config))

    def their_weights(self, model: LoadedModel) -> dict[str, Tensor]:
        """The state dict under timm's names."""
        return {name.removeprefix(TRUNK): tensor for name, tensor in model.network.student.state_dict().items()}

    def our_weights(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The state dict under our names, from timm's. Raises UserError where keys are missing or left over."""
        del where
        return {f"{TRUNK}{name}": tensor for name, tensor in tensors.items()}

    def normalisation(self, config: NetworkConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std per channel of RGB in [0, 1], as timm states them for this model and tag."""
        settings = _settings(config)
        backbone = survey(settings.model, settings.image_size)
        return backbone.mean, backbone.std

    def features(self, backbone: Any, config: NetworkConfig, images: Tensor) -> Features:
        """Features of images [B, 3, H, W], normalised already, computed by timm's own model."""
        final, maps = backbone.forward_intermediates(images, indices=[_level(config)], norm=True)
        summary = final[:, 0] if _settings(config).summary == "token" else backbone.forward_head(final, pre_logits=True)
        return Features(summary, maps[0].permute(0, 2, 3, 1))

    def lines(self, config: NetworkConfig) -> tuple[str, ...]:
        """What the snippet adds to show how summary and map are read."""
        summary = "final[:, 0]" if _settings(config).summary == "token" else "model.forward_head(final, pre_logits=True)"
        return (
            f"final, maps = model.forward_intermediates(images, indices=[{_level(config)}], norm=True)",
            f"summary, spatial = {summary}, maps[0]  # [B, D], [B, D, H, W]",
        )


def _settings(config: NetworkConfig) -> TimmSettings:
    assert isinstance(config.student, TimmSettings)
    return config.student


def _call(settings: TimmSettings) -> Call:
    return Call(settings.model, {"num_classes": 0, **survey(settings.model, settings.image_size).options})


def _level(config: NetworkConfig) -> int:
    """The level of timm's whose map is the student's."""
    with torch.device("meta"):
        student = _settings(config).model_copy(update={"start_from": None}).build(config.num_summaries)
    assert isinstance(student, TimmStudent)
    return student.levels[0]
