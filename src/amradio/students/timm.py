"""The timm student: any backbone of timm, at any level of its pyramid; strides, channels and legal sizes are found out, not assumed."""

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import timm
import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from timm.models import group_parameters
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..errors import UserError
from ..features import Features
from .base import Student
from .checkpointing import checkpoint_modules
from .timm_pretrained import start_trunk
from .timm_settings import SummaryFrom, TimmSettings

PYRAMID_STRIDES = (4, 8, 16, 32)
"""px of a cell of the maps that `forward_pyramid` returns, of those that a backbone has."""


def build(settings: TimmSettings, num_summaries: int) -> "TimmStudent":
    """A student around timm's backbone, on the default device; random weights or those of `start_from`.

    Raises UserError where the backbone gives no usable map, has no such level or token, or cannot be of this size.
    """
    backbone = survey(settings.model, settings.image_size)
    levels = _levels(settings, backbone)
    if settings.summary == "token" and backbone.token_dim is None:
        raise UserError(f"student.summary: timm's {settings.model} has no class token; use 'pooled' or 'map'")
    trunk = timm.create_model(settings.model, num_classes=0, **backbone.options)
    started_from = start_trunk(trunk, settings.model, settings.start_from, backbone.options) if settings.start_from is not None else None
    if settings.summary == "map":
        trunk.prune_intermediate_layers(levels, prune_norm=backbone.is_pyramid, prune_head=True)  # pyright: ignore[reportCallIssue]
    neck = Neck([backbone.dims[level] for level in levels], settings.neck_dim or backbone.dims[-1]) if settings.neck else None
    student = TimmStudent(trunk, backbone, levels, neck, settings.summary, None if settings.shares_summary else num_summaries)
    student.started_from = started_from
    if settings.gradient_checkpointing:
        checkpoint_modules(_blocks_of(trunk))
    return student


def _blocks_of(trunk: Any) -> list[nn.Module]:
    """The modules of a backbone that are computed again in the backward pass: the blocks of each stage, or the stage where it has none."""
    stages = [trunk.get_submodule(name) for name in dict.fromkeys(level["module"] for level in trunk.feature_info) if name]
    blocks: list[nn.Module] = []
    for stage in stages:
        inner = dict(stage.named_children()).get("blocks", stage)
        blocks += inner if isinstance(inner, (nn.Sequential, nn.ModuleList)) else [inner]
    return blocks


def _levels(settings: TimmSettings, backbone: "Survey") -> list[int]:
    """The student's level, and with a neck the last level of every coarser stride."""
    count = len(backbone.strides)
    level = backbone.default_level if settings.level is None else settings.level
    if not -count <= level < count:
        raise UserError(f"student.level: {level} of {count}; timm's {settings.model} has levels of {_listed(backbone.strides)} px a cell")
    level %= count
    if not settings.neck:
        return [level]
    coarser = sorted({stride: n for n, stride in enumerate(backbone.strides) if stride > backbone.strides[level]}.values())
    if not coarser:
        way_out = "leave neck out" if len(set(backbone.strides)) == 1 else "give a finer level"
        raise UserError(f"student.neck: timm's {settings.model} has nothing coarser than level {level} to add to it; {way_out}")
    return [level, *coarser]


class Survey(NamedTuple):
    """What was found out about a backbone, without its weights."""

    options: Mapping[str, Any]
    """With which timm builds it."""
    strides: tuple[int, ...]
    """px of a cell of each level."""
    dims: tuple[int, ...]
    """Channels of each level."""
    pooled_dim: int
    """Channels of what the classifier would read."""
    token_dim: int | None
    """Channels of the class token; None where there is none."""
    input_size: int | None
    """px of the one square size that it takes; None where any multiple of `step` will do."""
    step: int
    least: int
    """px of the smallest side."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def is_pyramid(self) -> bool:
        """Whether levels differ in stride. Those of other backbones (ViT) all go through the final norm, so that any may be the map."""
        return len(set(self.strides)) > 1

    @property
    def default_level(self) -> int:
        """The last one of 16 px a cell or less, or the first."""
        return max((n for n, stride in enumerate(self.strides) if stride <= 16), default=0)


@lru_cache(maxsize=64)
def survey(model: str, image_size: int | None = None) -> Survey:
    """Finds out what a backbone of timm is by running it on the meta device, where nothing is allocated or computed.

    image_size: px of the square for which windows and position tables are made, None for its own.
    Raises UserError where there is no usable map (every level of H/stride x W/stride cells), or the size does not suit.
    """
    plain = _on_meta(model, {})
    accepted = inspect.signature(type(plain).__init__).parameters
    sized = bool(plain.pretrained_cfg["fixed_input_size"])
    if image_size is not None and not (sized and "img_size" in accepted):
        raise UserError(f"student.image_size: timm's {model} has no windows or positions of one size; leave it out")
    options: dict[str, Any] = {"img_size": image_size} if image_size is not None else {}
    options |= {key: value for key, value in (("dynamic_img_size", True), ("strict_img_size", False)) if key in accepted}
    trunk = _on_meta(model, options)
    strides = tuple(int(level["reduction"]) for level in trunk.feature_info)
    step = max(strides)
    side = (image_size or trunk.pretrained_cfg["input_size"][-1]) if sized and "dynamic_img_size" not in accepted else None
    least = step
    if side is not None:
        maps, final, pooled = _run(trunk, model, (side, side))
    else:
        maps, final, pooled = _run(trunk, model, (2 * step, 3 * step))
        least = next(cells for cells in (1, 2, 3) if cells == 3 or _runs(trunk, model, cells * step)) * step
    _check_maps(model, maps, strides, (side, side) if side else (2 * step, 3 * step))
    return Survey(
        options=options,
        strides=strides,
        dims=tuple(cells_of_level.shape[1] for cells_of_level in maps),
        pooled_dim=pooled.shape[-1],
        token_dim=final.shape[-1] if final.ndim == 3 and _num_tokens(trunk) else None,
        input_size=side,
        step=step,
        least=least,
        mean=tuple(trunk.pretrained_cfg["mean"]),
        std=tuple(trunk.pretrained_cfg["std"]),
    )


def _num_tokens(trunk: Any) -> int:
    """Tokens before the patches: what timm's transformers call `num_prefix_tokens`, and no other class has."""
    return trunk.num_prefix_tokens if "num_prefix_tokens" in vars(trunk) else 0


def _on_meta(model: str, options: Mapping[str, Any]) -> Any:
    try:
        with torch.device("meta"):
            trunk: Any = timm.create_model(model, num_classes=0, **options)
    except Exception as error:  # the library raises whatever its builders do
        raise UserError(f"student: timm cannot build {model} with {dict(options)}: {_first_line(error)}; choose another size") from None
    if not callable(getattr(type(trunk), "forward_intermediates", None)) or not trunk.feature_info:
        raise UserError(f"student.model: timm's {model} gives no maps of its stages; choose another backbone")
    return trunk.eval()


def _run(trunk: Any, model: str, size: tuple[int, int]) -> tuple[list[Tensor], Tensor, Tensor]:
    """(maps of all levels [1, D, H, W], final features, what the classifier would read [1, D]) at height x width px, all on meta."""
    try:
        final, maps = trunk.forward_intermediates(torch.empty(1, 3, *size, device="meta"))
        pooled = trunk.forward_head(final, pre_logits=True)
    except Exception as error:  # as above
        height, width = size
        raise UserError(
            f"student: timm's {model} cannot be run on {height}x{width} px: {_first_line(error)}; "
            "set image_size to a size it can be built for, or choose another backbone"
        ) from None
    if not isinstance(final, Tensor):
        raise UserError(f"student.model: timm's {model} has more than one branch, so no map of its own; choose another backbone")
    return maps, final, pooled


def _runs(trunk: Any, model: str, side: int) -> bool:
    try:
        _run(trunk, model, (side, side))
    except UserError:
        return False
    return True


def _check_maps(model: str, maps: Sequence[Tensor], strides: Sequence[int], size: tuple[int, int]) -> None:
    """Raises UserError where a level's map is not [1, D, H / stride, W / stride]."""
    for number, (cells, stride) in enumerate(zip(maps, strides, strict=True)):
        if tuple(cells.shape[2:]) != (size[0] // stride, size[1] // stride):
            raise UserError(
                f"student.model: timm's {model} has no usable map: level {number} says {stride} px a cell, but gives "
                f"{'x'.join(map(str, cells.shape[2:]))} cells of {size[0]}x{size[1]} px; choose another backbone"
            )


def _listed(strides: Sequence[int]) -> str:
    distinct = list(dict.fromkeys(strides))
    return f"{distinct[0]}" if len(distinct) == 1 else ", ".join(map(str, strides))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Neck(nn.Module):
    """Brings the levels of a pyramid together at the finest: in the manner of a feature pyramid network, in one step.

    Each level is normalised over its channels and projected where it is (1x1), brought to the finest by nearest neighbour, and added; a
    depthwise 3x3 smooths the sum. Nothing in it looks at other images.
    """

    def __init__(self, dims: Sequence[int], out_dim: int):
        """dims: channels of the levels, finest first."""
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(dim) for dim in dims)
        self.projections = nn.ModuleList(nn.Conv2d(dim, out_dim, 1) for dim in dims)
        self.smooth = nn.Conv2d(out_dim, out_dim, 3, padding=1, groups=out_dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, D_i, H_i, W_i], finest first -> [B, out_dim, H_0, W_0]."""
        grid = maps[0].shape[-2:]
        projected = [project(norm(level)) for norm, project, level in zip(self.norms, self.projections, maps, strict=True)]
        total = projected[0]
        for coarse in projected[1:]:
            total = total + F.interpolate(coarse, grid, mode="nearest")
        return total + self.smooth(total)


class TimmStudent(Student):
    """A backbone of timm as a student.

    Attributes: `levels`, those of timm's `feature_info` that are read, the student's own first; `input_size`, px of the one square size it
    takes, or None. In training, BatchNorm (where the backbone has it) looks at the whole batch.
    """

    def __init__(
        self,
        trunk: nn.Module,
        backbone: Survey,
        levels: Sequence[int],
        neck: Neck | None,
        summary: SummaryFrom,
        num_summaries: int | None,
    ):
        """trunk: of timm, without a classifier. num_summaries: linear layers on the summary, one each; None for one shared summary."""
        super().__init__()
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (backbone.mean, backbone.std))
        self.trunk, self.neck = trunk, neck
        self.levels = tuple(levels)
        self.patch_size = backbone.strides[levels[0]]
        self.spatial_dim = neck.smooth.out_channels if neck is not None else backbone.dims[levels[0]]
        self.summary_dim = {"pooled": backbone.pooled_dim, "token": backbone.token_dim or 0, "map": self.spatial_dim}[summary]
        self.num_summaries = num_summaries or 1
        self.summarise = None if num_summaries is None else nn.Linear(self.summary_dim, num_summaries * self.summary_dim)
        self.summary_rows = {f"summarise.{name}": self.summary_dim for name in ("weight", "bias")} if num_summaries else {}
        self._summary, self._norm = summary, not backbone.is_pyramid
        self._has_batchnorm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trunk.modules())
        self.input_size, self._step, self._least = backbone.input_size, backbone.step, backbone.least
        self._last = len(backbone.strides) - 1
        deepest = max(levels) if summary == "map" else self._last  # what is above was pruned
        usable = enumerate(backbone.strides[: deepest + 1]) if backbone.is_pyramid else ()
        by_stride = {stride: level for level, stride in usable if stride in PYRAMID_STRIDES}
        self._levels_by_stride = by_stride if len(by_stride) > 1 else {}
        self._dims = {stride: backbone.dims[level] for stride, level in self._levels_by_stride.items()}

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The nearest multiples of the coarsest stride, or the one size of a backbone of fixed size."""
        if self.input_size is not None:
            return self.input_size, self.input_size
        step = self._step
        return max(round(height / step) * step, self._least), max(round(width / step) * step, self._least)

    def no_decay(self) -> set[str]:
        """What timm says of the backbone (tokens, position tables, position biases)."""
        listed = self.trunk.no_weight_decay() if "no_weight_decay" in dir(self.trunk) else set()  # pyright: ignore[reportCallIssue]
        return {name for name, _ in self.trunk.named_parameters("trunk") if any(f".{word}." in f"{name}." for word in listed)}

    def blocks_in_order(self) -> Sequence[nn.Module]:
        """What timm calls the backbone's `blocks` (of a ViT, a Mixer, an EfficientNet); empty where it has none of that name."""
        blocks = dict(self.trunk.named_children()).get("blocks")
        return tuple(blocks) if isinstance(blocks, (nn.Sequential, nn.ModuleList)) else ()

    def layers(self) -> dict[str, int]:
        """As timm numbers the layers of the backbone; a neck and the layers of summaries are in the last one.

        Raises UserError where timm has no numbering for the backbone.
        """
        trunk: Any = self.trunk
        if not callable(getattr(type(trunk), "group_matcher", None)):
            raise UserError("timm does not number the layers of this backbone; leave it out")
        grouped: Any = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
        numbers = {f"trunk.{name}": int(number) for name, number in grouped.items()}
        return {name: numbers.get(name, max(numbers.values())) for name, _ in self.named_parameters()}

    def fuse_attention(self, fused: bool) -> None:
        """Computes attention in PyTorch's fused kernel (True) or step by step (False), in those of timm's layers that have both."""
        for module in self.trunk.modules():
            if "fused_attn" in vars(module):
                module.fused_attn = fused  # type: ignore[assignment]

    def deploy(self) -> Self:
        """Merges parallel branches into one convolution where timm can (FastViT, RepViT, MobileOne)."""
        self.trunk = reparameterize_model(self.trunk)
        return super().deploy()

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features of a batch; nothing is drawn.

        images: [B, 3, H, W] in [0, 1], of a legal size (UserError names the nearest).
        Returns summary [B, num_summaries * summary_dim] and spatial [B, H/patch_size, W/patch_size, spatial_dim].
        """
        del draws
        if self.training and images.shape[0] == 1 and self._has_batchnorm:
            raise UserError("BatchNorm needs more than one image in training: give a larger batch")
        final, maps = self._encode(self.condition(images))
        cells = self.neck(maps) if self.neck is not None else maps[0]
        if self._summary == "map":
            summary = cells.mean((2, 3))
        elif self._summary == "token":
            summary = final[:, 0]
        else:
            summary = self.trunk.forward_head(final, pre_logits=True)  # pyright: ignore[reportCallIssue]
        if self.summarise is not None:
            summary = self.summarise(summary)
        return Features(summary, cells.permute(0, 2, 3, 1))

    @property
    def pyramid(self) -> dict[int, int]:
        """The levels of stride 4, 8, 16 and 32 that the backbone has, the last of each stride; empty for backbones of one stride."""
        return self._dims

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Maps [B, D, H/stride, W/stride] of the last level of each stride of `pyramid`; UserError where the backbone has one stride."""
        if not self._levels_by_stride:
            return super().forward_pyramid(images)
        trunk: Any = self.trunk
        levels = list(self._levels_by_stride.values())
        return trunk.forward_intermediates(self.condition(images), indices=levels, norm=False, stop_early=True, intermediates_only=True)

    def _encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(final features, maps [B, D, H, W] of `levels`); what is above the levels is not run where the summary is that of the map."""
        trunk: Any = self.trunk
        levels = list(self.levels)
        if self._summary == "map":
            maps = trunk.forward_intermediates(images, indices=levels, norm=self._norm, stop_early=True, intermediates_only=True)
            return maps[-1], maps
        # The last level is asked for as well: Hiera stops at the last that is.
        final, maps = trunk.forward_intermediates(images, indices=sorted({*levels, self._last}), norm=self._norm)
        return final, maps[: len(levels)]
