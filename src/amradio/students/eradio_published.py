"""E-RADIO's official weights: which settings they follow from, what of them is read, and what is written.

Parameters and BatchNorm statistics are named as here, behind the file's prefix (`model.` or `base_model.`). What the keywords of the
published entrypoints are called here; all can be seen in the shapes, too (`settings_from`):

| keyword | setting |
|---|---|
| `dim`, `in_dim`, `depths` | `dim`, `stem_dim`, `depths` |
| `num_heads` | `num_heads`: the last two of it, as stages without attention have none |
| `window_size` | `window_size`: of the last stage; the one before has the same |
| `conv_base` | `subsampling`: `conv` where it is true, else `pool` |
| `conv_groups_ratio` | `depthwise`: whether it is 1 |
| `cpb_mlp_hidden` | `cpb_hidden_dim`; 512 where it is missing |
| `use_neck`, `neck_start_stage`, `full_features_head_dim` | `neck`, `neck_start`, `neck_dim` |

The published model stretches its maps to multiples of `window_size` (`window: fixed`), until it is told to take the `optimal` one.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .eradio import DEAD_NORM, Eradio
from .eradio_attention import WindowAttention, make_window
from .eradio_settings import SIZES, EradioSettings, EradioShape, WindowRule

_DERIVED = ("relative_coords_table", "relative_position_index", "relative_bias")
_BIAS = "levels.{}.blocks.0.attention_blocks.{}.attn.pos_emb_funct."


def settings_from(weights: Mapping[str, Tensor], window: WindowRule = "fixed") -> EradioSettings:
    """The settings of a network with these weights (published names without prefix), from their shapes alone.

    Where all is as of a size, that size is named, else every override is set. UserError where the weights are not E-RADIO's.
    """
    bias = [_BIAS.format(stage, 0) for stage in (2, 3)]
    needed = ["patch_embed.conv_down.2.conv.weight", "levels.2.blocks.0.attention_blocks.1.pre_conv.conv.weight"]
    needed += [f"{prefix}cpb_mlp.2.weight" for prefix in bias] + [f"{bias[1]}relative_position_index"]
    missing = [key for key in needed if key not in weights]
    if missing:
        raise UserError(f"these are not the weights of an E-RADIO: there is no {', '.join(missing)}; give an official E-RADIO file")
    stem, pre_conv, *heads, index = (weights[key].shape for key in needed)
    branches = [weights[key].shape[0] for key in weights if re.fullmatch(r"high_res_neck\.neck_features_proj\.\d\.conv2\.weight", key)]
    pooled = "levels.2.blocks.0.attention_blocks.0.downsample_mixer.conv.weight" in weights
    shape: dict[str, Any] = {
        "dim": stem[0],
        "stem_dim": stem[1],
        "depths": tuple(_count(weights, rf"levels\.{i}\.blocks\.(?:m\.)?(\d+)\.") for i in range(4)),
        "num_heads": (heads[0][0], heads[1][0]),
        "window_size": math.isqrt(index[0]),
        "subsampling": "pool" if pooled else "conv",
        "depthwise": pre_conv[1] == 1,
        "cpb_hidden_dim": heads[0][1],
    }
    if branches:
        shape |= {"neck_start": 4 - len(branches), "neck_dim": branches[0]}
    return _named(shape, neck=bool(branches), window=window)


def _count(weights: Iterable[str], pattern: str) -> int:
    return len({match[1] for key in weights if (match := re.match(pattern, key))})


def _named(shape: dict[str, Any], neck: bool, window: WindowRule) -> EradioSettings:
    full = EradioSettings(neck=neck, window=window, **shape)
    sizes = (EradioSettings.model_validate({"size": size, "neck": neck, "window": window}) for size in SIZES)
    return next((named for named in sizes if _told(named) == _told(full)), full)


def _told(settings: EradioSettings) -> EradioShape:
    """The shape, less what weights say nothing of."""
    return settings.shape() if settings.neck else settings.shape()._replace(neck_start=0, neck_dim=0)


def own_weights(weights: Mapping[str, Tensor], student: Eradio) -> dict[str, Tensor]:
    """What `student` has a place for, of official weights (published names without prefix): all but what it computes itself.

    Left out are the position bias's buffers, which are stale in files, and behind a neck the norm, which nothing reads.
    """
    dead = () if student.high_res_neck is None else (DEAD_NORM,)
    return {key: value for key, value in weights.items() if not key.endswith(_DERIVED) and not key.startswith(dead)}


def published_weights(student: Eradio) -> dict[str, Tensor]:
    """The state dict that the published model expects (without prefix): that of the student and the buffers that follow from it.

    The student has one shared summary, and is not deployed.
    """
    assert student.summary_queries is None
    weights = student.state_dict()
    size = student.windows.size
    with torch.no_grad():
        for name, module in student.named_modules():
            if isinstance(module, WindowAttention):
                window = make_window(size, size, module.qkv.weight.device)
                side = 2 * size - 1
                weights[f"{name}.pos_emb_funct.relative_coords_table"] = window.offsets.reshape(1, side, side, 2)
                weights[f"{name}.pos_emb_funct.relative_position_index"] = window.between
                weights[f"{name}.pos_emb_funct.relative_bias"] = module.pos_emb_funct.compute(window) + 8
    return weights
