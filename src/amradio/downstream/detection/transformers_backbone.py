"""Students as backbones of transformers' detectors (DETR, RT-DETRv2, D-FINE, Deformable DETR): a registered `AutoBackbone`."""

import json
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from ...config import validate
from ...errors import UserError, brief
from ...model import Model
from ...network import NetworkConfig, misfits
from .pyramid import STRIDES, SimplePyramid, stride_of_map

MAP = "map"
"""The stage of a student with one map: that map itself, without further layers."""
MODEL_TYPE = "amradio_backbone"


class AmradioBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    """The student's own config and the stages that it has, as transformers stores it."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        stage_names: list[str] | None = None,
        stage_channels: list[int] | None = None,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **others: Any,
    ):
        """network: `config.json` of a model folder. stage_names: finest first. Others as of every config of transformers."""
        super().__init__(**others)
        self.network = network or {}
        self.stage_names, self.stage_channels = list(stage_names or [MAP]), list(stage_channels or [1])
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)


class FixedNorm(nn.Module):
    """A BatchNorm in evaluation mode, and what timm puts behind it.

    Detectors of transformers replace every `nn.BatchNorm2d` of a backbone by one with an epsilon of 1e-5 and without activation, which
    would change what the student computes.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        """norm: its tensors are taken over under the same names."""
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        has_activation = isinstance(norm, BatchNormAct2d)
        self.drop: nn.Module = cast(nn.Module, norm.drop) if has_activation else nn.Identity()
        self.act: nn.Module = cast(nn.Module, norm.act) if has_activation else nn.Identity()

    def forward(self, cells: Tensor) -> Tensor:
        """[B, D, H, W] -> the same shape."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return self.act(self.drop(F.batch_norm(cells, mean, variance, self.weight, self.bias, False, 0.0, self.eps)))


def fix_norms(module: nn.Module) -> None:
    """Replaces the BatchNorms within a module by `FixedNorm`s, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FixedNorm(child))
        else:
            fix_norms(child)


class AmradioBackbone(BackboneMixin, PreTrainedModel):
    """A student within a detector of transformers: images [B, 3, H, W] in [0, 1], not normalized, -> maps [B, channels, height, width].

    The student stays in evaluation mode. Students with maps of several strides (E-RADIO, timm) give these; a ViT gives its `map`, and
    `stride4` to `stride32` through ViTDet's simple pyramid, whose layers are new and are trained with the detector.
    """

    config_class = AmradioBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    has_attentions = False
    _supports_sdpa = True

    def __init__(self, config: AmradioBackboneConfig):
        super().__init__(config)
        stated = validate(NetworkConfig, config.network, "network.").without_start()
        with torch.device("cpu"):  # transformers builds on the meta device, where non-persistent buffers (mean, std) would stay empty
            network = stated.build()
            self.student, self.rotation = network.student, network.rotation
            self._has_levels = bool(self.student.pyramid)
            stride = stride_of_map(self.student.patch_size)
            of_stages = dict(zip(config.stage_names, config.stage_channels, strict=True))
            self.levels = nn.ModuleDict()  # of the simple pyramid, those that are asked for
            names = [] if self._has_levels else [f"stride{target}" for target in STRIDES]
            for number, name in enumerate(names):
                if name in (config.out_features or ()):
                    self.levels[name] = SimplePyramid(self.student.spatial_dim, stride, of_stages[name]).levels[number]
        fix_norms(self.student)
        self.num_features = config.stage_channels
        stored = self.state_dict()
        self._not_stored = {name: buffer.detach().clone() for name, buffer in self.named_buffers() if name not in stored}
        self.post_init()
        self.train(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fills what `from_pretrained` leaves empty: the buffers that are in no file."""
        if module is self:
            for name, value in self._not_stored.items():
                self.get_buffer(name).copy_(value)

    def train(self, mode: bool = True) -> "AmradioBackbone":
        """Training mode of all but the student."""
        super().train(mode)
        self.student.eval()
        return self

    def forward(self, pixel_values: Tensor, **others: Any) -> BackboneOutput:  # type: ignore[override]
        """The maps of `out_features`. Raises UserError where the student takes no images of this size. Others are ignored."""
        del others
        height, width = pixel_values.shape[-2:]
        legal = self.student.nearest_size(height, width)
        if legal != (height, width):
            fix = f"let the image processor resize and pad to {legal[0]}x{legal[1]} px"
            raise UserError(f"pixel_values: the student takes no images of {height}x{width} px; {fix}")
        maps = dict(zip(self.config.stage_names, self.student.forward_pyramid(pixel_values), strict=True)) if self._has_levels else {}
        if not self._has_levels:
            spatial = self.student(pixel_values).spatial
            maps[MAP] = (spatial if self.rotation is None else self.rotation(spatial)).permute(0, 3, 1, 2)
            stride = stride_of_map(self.student.patch_size)
            sides = max(1, height // stride), max(1, width // stride)
            fits = maps[MAP].shape[-2:] == sides
            cells = maps[MAP] if fits else F.interpolate(maps[MAP], sides, mode="bilinear", antialias=True)
            maps |= {name: level(cells) for name, level in self.levels.items()}
        return BackboneOutput(feature_maps=cast(Any, tuple(maps[name] for name in self.out_features or ())))


AutoConfig.register(MODEL_TYPE, AmradioBackboneConfig)
AutoModel.register(AmradioBackboneConfig, AmradioBackbone)
AutoBackbone.register(AmradioBackboneConfig, AmradioBackbone)


def backbone_config(model: Model, out_features: Sequence[str], channels: int = 256) -> AmradioBackboneConfig:
    """The config of a backbone for `backbone_config=` of a detector of transformers.

    Args:
        model: the student; its heads are left out.
        out_features: stages, finest first: `stride8`, `stride16`, `stride32`, ..., or `map` of a student with one map.
        channels: of the stages of a ViT's pyramid; a student with levels and `map` have their own.

    Raises UserError for a stage that the student does not have, and where there is none.
    """
    if isinstance(out_features, str) or not out_features:
        raise UserError(f"out_features: found {brief(out_features)}; give a list of stages, such as ['stride8', 'stride16', 'stride32']")
    student = model.network.student
    if student.pyramid:
        stages = {f"stride{stride}": dim for stride, dim in student.pyramid.items()}
    else:
        stages = {f"stride{stride}": channels for stride in STRIDES} | {MAP: student.spatial_dim}
    unknown = [name for name in out_features if name not in stages]
    if unknown:
        raise UserError(*(f"out_features: this student has no stage '{name}'; there is: {', '.join(stages)}" for name in unknown))
    bare = model.config.model_copy(update={"heads": {}, "training": None, "normalizes_blocks": None})
    in_order = [name for name in stages if name in out_features]
    return AmradioBackboneConfig(json.loads(bare.model_dump_json()), list(stages), list(stages.values()), in_order)


def take_weights(detector: nn.Module, model: Model) -> None:
    """Copies the weights of a model into the backbone of a detector that was built with its `backbone_config`, in place.

    Raises UserError where the detector has no such backbone, or it was built for another student.
    """
    backbones = [module for module in detector.modules() if isinstance(module, AmradioBackbone)]
    if not backbones:
        raise UserError("detector: it has no backbone of amradio; build it with backbone_config=backbone_config(model, ...)")
    for backbone in backbones:
        weights = model.network.student.state_dict()
        problems = misfits(
            backbone.student.state_dict(),
            {name: tensor.shape for name, tensor in weights.items()},
            "model: not the student that the detector was built for",
        )
        if problems:
            raise UserError(*problems)
        backbone.student.load_state_dict(weights)
        if backbone.rotation is not None and model.network.rotation is not None:
            backbone.rotation.load_state_dict(model.network.rotation.state_dict())
