"""The rules by which the published code builds a model from a file's settings, computed anew from what was written.

They share nothing with `tokens`, `vit` and `writing`, which wrote it: an export is compared with them, because the published code itself
is not run.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import UserError
from ...students.eradio import Eradio
from ...students.vit import Vit
from ...students.vit_settings import VitSettings
from ..base import LoadedModel

ENTRY_SIZE = {"vit_base_patch16_v2_224": 592, "vit_large_patch16_v2_224": 592}
"""px for which these architectures are made; the others for the number at the end of their name."""
SHAPES = {
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "so400m": (1152, 27, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),
    "small": (384, 12, 6),
    "tiny": (192, 12, 3),
}
"""Channels, blocks and attention heads of the architectures."""
LARGEST_WINDOW = 16
STRIDE = 32
"""px of a cell in which E-RADIO's windows are counted."""


def entry_size(settings: Mapping[str, Any]) -> int | None:
    """px for which the published code makes the ViT of these settings before it puts its own positions in; None where that is unknown."""
    stated = (settings.get("model_kwargs") or {}).get("img_size")
    if stated is not None:
        return stated[0] if isinstance(stated, (list, tuple)) else stated
    model = str(settings.get("model"))
    match = re.search(r"_(\d+)$", model)
    return ENTRY_SIZE.get(model) or (int(match[1]) if match else None)


def crops_positions(settings: Mapping[str, Any], patch_size: int) -> bool:
    """Whether the published code stretches the position table to the image and crops it (CPE), or only crops it.

    It does the former where the table is made for another size than the architecture: `cpe_max_size`, in whole patches, is not its px.
    """
    size, entry = settings.get("cpe_max_size"), entry_size(settings)
    return size is None or (size != entry and round(size / patch_size) * patch_size != entry)


def windows(height: int, width: int) -> int:
    """Cells per side of E-RADIO's windows after `set_optimal_window_size`: the largest divisor of the shorter side up to 16."""
    cells = min(height, width) // STRIDE
    return max(size for size in range(1, LARGEST_WINDOW + 1) if cells % size == 0)


def compare_rules(
    settings: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], model: LoadedModel, sizes: Sequence[tuple[int, int]]
) -> str:
    """What the published code makes of a written file, in words; raises UserError where that is not the model.

    settings: `args` of the file. shapes: of its backbone's tensors, by the names of the published code. sizes: (height, width) in px at
    which outputs are compared.
    """
    student = model.network.student
    if isinstance(student, Eradio):
        actual, wanted = _eradio(settings, student, sizes), _eradio_wanted(student, sizes)
    else:
        assert isinstance(student, Vit)
        actual, wanted = _vit(settings, shapes), _vit_wanted(student, model)
    names = [str(teacher["name"]) for teacher in settings["teachers"]]
    shares = not settings.get("cls_token_per_teacher", True)
    slots = {
        name: 0 if shares else names.index(name) if (slot := teacher.get("token_slot")) is None else slot
        for name, teacher in reversed([*zip(names, settings["teachers"], strict=True)])
    }
    summaries = [names.index(name) for name, teacher in zip(names, settings["teachers"], strict=True) if teacher.get("use_summary", True)]
    actual["summary of tokens"] = [0] if shares else sorted(set(summaries))
    wanted["summary of tokens"] = list(model.network.summary_slots)
    heads = {name: head.slot for name, head in model.config.heads.items() if head.summary is not None}
    actual["heads read tokens"], wanted["heads read tokens"] = {name: slots.get(name) for name in heads}, heads
    wrong = [f"{key} {_told(value)}, not {_told(wanted[key])}" for key, value in actual.items() if value != wanted[key]]
    if wrong:
        start = "export: by its published rules the official reader would build another model"
        raise UserError(f"{start}: {'; '.join(wrong)}; nothing was kept")
    return ", ".join(f"{key} {_told(value)}" for key, value in actual.items() if value not in ({}, []))


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return " ".join(f"{key}:{item}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _vit(settings: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    changes = settings.get("model_kwargs") or {}
    is_dino = settings["model"] == "dino_v2_g_student"
    patch = changes.get("patch_size", 14 if is_dino else 16)
    side = round(settings["cpe_max_size"] / patch)
    names = {teacher["name"] for teacher in settings["teachers"]}
    classes = len(names) if settings.get("cls_token_per_teacher", True) else 1
    multiple = settings.get("register_multiple")
    registers = settings.get("cpe_num_registers") or (multiple - classes % multiple if multiple else 0)
    size = re.match(r"vit_([a-z0-9]+)_patch", settings["model"])
    name = "giant" if is_dino else size[1] if size else ""
    dim, depth, heads = SHAPES.get(name, (0, 0, 0))
    table = shapes["patch_generator.pos_embed"]
    return {
        "cropped positions": crops_positions(settings, patch),
        "position table": f"{side}x{side}" if table[-2] == side**2 else f"{side}x{side} of {table[-2]} positions",
        "patches of px": patch if shapes["patch_generator.embedder.weight"][1] == 3 * patch**2 else f"{patch}, in weights of another size",
        "class tokens and registers together": classes + registers,
        "channels": changes.get("embed_dim", dim),
        "blocks": changes.get("depth", depth),
        "attention heads": changes.get("num_heads", heads),
        "MLP": "swiglu" if is_dino else "gelu_norm" if settings["model"].endswith("_mlpnorm") else "gelu",
        "LayerScale": is_dino or "_v2_" in settings["model"] or changes.get("init_values") is not None,
        "final norm": bool(settings.get("model_norm")),
    }


def _vit_wanted(student: Vit, model: LoadedModel) -> dict[str, Any]:
    assert isinstance(model.config.student, VitSettings)
    shape, side = model.config.student.shape(), student.patch_generator.table_side
    return {
        "cropped positions": True,
        "position table": f"{side}x{side}",
        "patches of px": student.patch_size,
        "class tokens and registers together": student.num_prefix,
        "channels": shape.dim,
        "blocks": shape.depth,
        "attention heads": shape.num_heads,
        "MLP": model.config.student.mlp,
        "LayerScale": any(name.endswith(".gamma") for name in student.state_dict()),
        "final norm": model.config.student.final_norm,
    }


def _eradio(settings: Mapping[str, Any], student: Eradio, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    fixed = 12 if str(settings["model"]).endswith("ws12") else 16
    key = "windows by set_optimal_window_size (as printed below)" if student.windows.rule == "optimal" else "windows of cells"
    return {
        "neck": bool((settings.get("model_kwargs") or {}).get("return_full_features")),
        "class tokens": bool(settings.get("cls_token_per_teacher", True)),
        key: [f"{height}x{width}px:{windows(height, width) if student.windows.rule == 'optimal' else fixed}" for height, width in sizes],
    }


def _eradio_wanted(student: Eradio, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    key = "windows by set_optimal_window_size (as printed below)" if student.windows.rule == "optimal" else "windows of cells"
    chosen = [f"{height}x{width}px:{student.window_for(height, width)}" for height, width in sizes]
    return {"neck": student.high_res_neck is not None, "class tokens": False, key: chosen}
