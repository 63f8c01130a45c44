"""timm's radio ViTs: the entries there are, the call that makes one of any shape, and their names for what the published files hold."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from ...features import Features
from ...network import Network, NetworkConfig
from ...students.base import CLIP_MEAN, CLIP_STD
from ...students.vit import Vit, VitShape
from ...students.vit_pretrained import EMBEDDER, TABLE, TOKENS
from ...students.vit_settings import SIZES, VitSettings
from ..base import LoadedModel
from ..vit_weights import LAYER_SCALE, SCALED, VitLayout, mlp_ratio, without_idle_scales
from .base import Call, Family

PATCH_SIZE, TABLE_SIDE = 16, 128
"""Of all entries: px, and positions per side."""
PATCH_BIAS = "patch_generator.embedder.bias"
"""timm's patches have one (zero in published models), ours have none."""


class Entry(NamedTuple):
    """A radio ViT that timm has, as `naflexvit_{name}` and as `vit_{name}`."""

    name: str
    shape: VitShape
    reg_tokens: int
    """All prefix tokens but the first summary."""
    layer_scale: bool
    align_corners: bool


ENTRIES = (
    Entry("base_patch16_radio_v3", SIZES["base"], 7, True, True),
    Entry("large_patch16_radio_v3", SIZES["large"], 7, True, False),
    Entry("huge_patch16_radio_v4", SIZES["huge"], 9, False, False),
    Entry("huge_patch16_radio_v3", SIZES["huge"], 7, False, True),
    Entry("giant_patch16_radio_v3", SIZES["giant"], 7, False, False),
    Entry("so400m_patch16_radio_v4", SIZES["so400m"], 9, False, False),
)
"""As in timm 1.0.31."""


class RadioVit(Family):
    """A ViT as a `naflexvit_*_radio_*`, which stretches positions at every size as RADIO does."""

    def unsupported_reasons(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """Another student than a ViT, a rotation of the map, other MLPs or a final norm, or no prefix token."""
        student = network.student
        if not isinstance(student, Vit):
            return (f"timm's radio models are ViTs, and this student is of type '{config.student.type}'; 'onnx' has a place for it",)
        rotates = "timm's radio ViTs have no place for the rotation of the map; 'torchhub' and 'hf' have"
        bare = "timm's radio ViTs have a class token, and this student has neither summaries nor registers"
        assert isinstance(config.student, VitSettings)
        plain = config.student.mlp == "gelu" and not config.student.final_norm
        other = "timm's radio ViTs have plain MLPs and no final norm; 'onnx' has a place for other ones"
        return (*([rotates] if config.rotates else []), *([] if student.num_prefix else [bare]), *([] if plain else [other]))

    def call(self, model: LoadedModel) -> Call:
        """Name and arguments of `timm.create_model` for timm's RADIO ViT."""
        return call_for(*_vit(model))[1]

    def their_weights(self, model: LoadedModel) -> dict[str, Tensor]:
        """The state dict under timm's names."""
        return naflex_names(model.network.student.state_dict(), call_for(*_vit(model))[0])

    def our_weights(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The state dict under our names, from timm's. The bias of the patches is `PATCH_BIAS`."""
        return without_idle_scales(published_names(tensors, where))

    def normalisation(self, config: NetworkConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std per channel of RGB in [0, 1]: CLIP's, as all of RADIO."""
        del config
        return CLIP_MEAN, CLIP_STD

    def features(self, backbone: Any, config: NetworkConfig, images: Tensor) -> Features:
        """Features of images [B, 3, H, W], normalised already, computed by timm's own model."""
        tokens = backbone.forward_features(images)
        assert isinstance(config.student, VitSettings)
        grid = [edge // config.student.patch_size for edge in images.shape[2:]]
        return Features(tokens[:, _slots(config)].flatten(1), tokens[:, backbone.num_prefix_tokens :].unflatten(1, grid))

    def lines(self, config: NetworkConfig) -> tuple[str, ...]:
        """What the snippet adds to show how summary and map are read."""
        return (
            "tokens = model.forward_features(images)",
            f"summary = tokens[:, {_slots(config)}].flatten(1)  # [B, D]",
            "spatial = tokens[:, model.num_prefix_tokens:]  # [B, H * W, D], patches row by row",
        )


def _vit(model: LoadedModel) -> tuple[VitSettings, int]:
    """Its settings, and how many prefix tokens it has."""
    assert isinstance(model.config.student, VitSettings)
    assert isinstance(model.network.student, Vit)
    return model.config.student, model.network.student.num_prefix


def _slots(config: NetworkConfig) -> list[int]:
    return list(range(config.num_summaries)) if config.summary_slots is None else config.summary_slots


def call_for(settings: VitSettings, num_prefix: int) -> tuple[Entry, Call]:
    """The entry of the nearest width, and what must be overridden to make it this ViT; the entry of the same shape where there is one."""

    def unlike(entry: Entry) -> tuple[int, bool, int]:
        return (
            abs(entry.shape.dim - settings.shape().dim),
            entry.layer_scale != (settings.layer_scale is not None),
            len(_overrides(entry, settings, num_prefix)),
        )

    entry = min(ENTRIES, key=unlike)
    return entry, Call(f"naflexvit_{entry.name}", _overrides(entry, settings, num_prefix))


def _overrides(entry: Entry, settings: VitSettings, num_prefix: int) -> dict[str, Any]:
    """Keywords of timm whose value for this ViT is not the entry's own; an entry's LayerScale cannot be left out, and is written as 1."""
    expected, shape, side = entry.shape, settings.shape(), settings.table_side()
    pairs = {
        "embed_dim": (expected.dim, shape.dim),
        "depth": (expected.depth, shape.depth),
        "num_heads": (expected.num_heads, shape.num_heads),
        "mlp_ratio": (mlp_ratio(expected), mlp_ratio(shape)),
        "reg_tokens": (entry.reg_tokens, num_prefix - 1),
        "patch_size": (PATCH_SIZE, settings.patch_size),
        "pos_embed_grid_size": ((TABLE_SIDE, TABLE_SIDE), (side, side)),
        "pos_embed_align_corners": (entry.align_corners, settings.align_corners),
        "init_values": (None, LAYER_SCALE if settings.layer_scale is not None and not entry.layer_scale else None),
    }
    return {key: wanted for key, (theirs, wanted) in pairs.items() if wanted != theirs}


def naflex_names(weights: Mapping[str, Tensor], entry: Entry) -> dict[str, Tensor]:
    """The weights of our ViT under the names and in the shapes of timm's NaFlexVit; patches are flattened (y, x, channel) there."""
    rest = {name: tensor for name, tensor in weights.items() if name not in (EMBEDDER, TABLE, TOKENS)}
    side, patch = math.isqrt(weights[TABLE].shape[1]), math.isqrt(weights[EMBEDDER].shape[1] // 3)
    patches = weights[EMBEDDER].unflatten(1, (3, patch, patch)).permute(0, 2, 3, 1).flatten(1)
    renamed = {
        "embeds.cls_token": weights[TOKENS][None, :1],
        "embeds.reg_token": weights[TOKENS][None, 1:],
        "embeds.pos_embed": weights[TABLE].unflatten(1, (side, side)),
        "embeds.proj.weight": patches,
        "embeds.proj.bias": patches.new_zeros(len(patches)),
        **rest,
    }
    if not renamed["embeds.reg_token"].numel():
        del renamed["embeds.reg_token"]
    if entry.layer_scale:
        for scale, layer in SCALED.items():
            last = f"{layer}.bias"
            for name in [name for name in rest if name.endswith(last)]:
                renamed.setdefault(name.removesuffix(last) + scale, torch.ones_like(rest[name]))
    return renamed


def is_naflex(keys: set[str]) -> bool:
    """Whether these are the keys of a NaFlexVit with learned positions and a class token."""
    return {"embeds.proj.weight", "embeds.pos_embed", "embeds.cls_token"} <= keys


def is_radio(keys: set[str]) -> bool:
    """Whether these are the keys of a radio ViT of timm: prefix tokens and no final norm, which no other family leaves out."""
    plain = {"patch_embed.proj.weight", "pos_embed", "cls_token", "reg_token"} <= keys
    return (plain or is_naflex(keys)) and not {"norm.weight", "fc_norm.weight"} & keys


def published_names(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """timm's tensors, of either layout, under the published names; the bias of the patches as `PATCH_BIAS`.

    Raises UserError where a patch or the table is not square, or the widths differ.
    """
    naflex = is_naflex(set(tensors))
    names = ("embeds.proj.weight", "embeds.proj.bias", "embeds.") if naflex else ("patch_embed.proj.weight", "patch_embed.proj.bias", "")
    rest = dict(tensors)
    patches, bias = rest.pop(names[0]), rest.pop(names[1], None)
    cls, registers, table = (rest.pop(f"{names[2]}{name}", None) for name in ("cls_token", "reg_token", "pos_embed"))
    assert cls is not None
    assert table is not None
    area = patches[0].numel() // 3
    side = math.isqrt(area)
    positions = table.flatten(1, -2)
    tokens = [part for part in (cls, registers) if part is not None]
    widths = {len(patches), positions.shape[-1], *(part.shape[-1] for part in tokens)}
    if patches[0].numel() != 3 * side**2 or math.isqrt(positions.shape[1]) ** 2 != positions.shape[1] or len(widths) > 1:
        shapes = ", ".join(
            f"{name} {list(tensor.shape)}" for name, tensor in ((names[0], patches), ("pos_embed", table), ("cls_token", cls))
        )
        raise UserError(f"{where}: {shapes} are not those of one ViT with square patches of RGB and a square table; the file is damaged")
    by_channel = patches.reshape(-1, side, side, 3).permute(0, 3, 1, 2) if naflex else patches
    biases = {} if bias is None else {PATCH_BIAS: bias}
    return {EMBEDDER: by_channel.flatten(1), TABLE: positions, TOKENS: torch.cat(tokens, 1)[0], **biases, **rest}


def layout_of(weights: Mapping[str, Tensor], architecture: str, options: Mapping[str, Any], where: str) -> VitLayout:
    """The ViT that these weights (published names) are of.

    architecture, options: `architecture` and `model_args` of timm's config.json; empty where there is none, and then the entry is known
    by its shape and registers.
    Raises UserError where nothing says how many attention heads there are.
    """
    dim, area = weights[EMBEDDER].shape
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    fc1 = weights.get("blocks.0.mlp.fc1.weight")
    mlp_dim = 4 * dim if fc1 is None else len(fc1)
    same = [entry for entry in ENTRIES if (entry.shape.dim, entry.shape.depth, entry.shape.mlp_dim) == (dim, depth, mlp_dim)]
    same.sort(key=lambda entry: entry.reg_tokens != len(weights[TOKENS]) - 1)
    named = [entry for entry in ENTRIES if architecture.endswith(f"vit_{entry.name}")]
    entry = next(iter((*named, *same)), None)
    num_heads = options.get("num_heads", entry.shape.num_heads if entry else None)
    if entry is None or not isinstance(num_heads, int):
        raise UserError(
            f"{where}: nothing says how many attention heads this ViT of {dim} channels and {depth} blocks has; "
            "put timm's config.json (architecture, model_args) beside it"
        )
    return VitLayout(
        VitShape(dim, depth, num_heads, mlp_dim),
        math.isqrt(area // 3),
        math.isqrt(weights[TABLE].shape[1]),
        len(weights[TOKENS]) - 1,
        any(name.endswith(".gamma") for name in weights),
        bool(options.get("pos_embed_align_corners", entry.align_corners)),
    )
