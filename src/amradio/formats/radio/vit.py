"""The ViT in the published layout: settings from the weights' shapes and the architecture's name, and back."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pydantic
import torch

from ...errors import UserError
from ...network import NetworkConfig
from ...students.vit_settings import SIZES, MlpKind, VitSettings, VitShape, known_size
from .heads import own_part
from .layout import OWN_MEAN, OWN_STD, Published, same_conditioner, square_root
from .rules import crops_positions

EMBEDDER = "student.patch_generator.embedder.weight"
BIAS = "student.patch_generator.embedder.bias"
TABLE = "student.patch_generator.pos_embed"
TOKENS = "student.patch_generator.cls_token.token"
DINO: dict[str, tuple[str, MlpKind]] = {"dino_v2_g_student": ("giant", "swiglu"), "dino_v2_l_student": ("large", "gelu")}
"""Architectures of DINOv2's own ViT: the size, and the kind of MLP."""
MLPNORM = "_mlpnorm"
"""End of the names of architectures with a norm in their MLPs."""
NOT_READ = (
    (r"^hybrid_", "a ConvNeXt beside a ViT"),
    (r"_dyt", "tanh in place of norms"),
    (r"xpos", "rotary positions"),
)
"""Pattern in the name of a published architecture that is not built here -> what it is."""
WHAT_IS_READ = "RADIO's plain ViTs with a cropped position table are read, RADIO1D and E-RADIO"
SHAPE = frozenset({"embed_dim", "depth", "num_heads", "mlp_ratio", "init_values", "patch_size", "img_size", "class_token", "reg_tokens"})
OF_TRAINING = frozenset({"drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate"})
HARMLESS = SHAPE | OF_TRAINING | {"num_classes", "weight_init", "no_embed_class", "dynamic_img_size", "global_pool"}
"""`model_kwargs` that the weights show anyway, or that change nothing outside of training."""
WITH_LAYER_SCALE = ("base", "large")
"""Sizes of which there is an architecture with LayerScale (`vit_base_patch16_v2_224`); the others get it through `init_values`."""


class Architecture(NamedTuple):
    """What `args.model` and `args.model_kwargs` say of a ViT."""

    shape: VitShape
    """Without the hidden channels of its MLPs, which are 0."""
    mlp: MlpKind
    is_dino: bool
    """Whether it is DINOv2's own ViT, whose patches have a bias."""


class TokenShape(NamedTuple):
    """What the weights show of the tokens that enter the first block."""

    num_registers: int
    patch_size: int
    table_side: int


def token_shape(published: Published, where: str, num_summaries: int) -> TokenShape:
    """Registers, patches and positions; UserError where there are fewer prefix tokens than summaries, or a number is no square."""
    num_registers = len(published.weights[TOKENS]) - num_summaries
    if num_registers < 0:
        there = f"{published.name_in_file(TOKENS)} has {len(published.weights[TOKENS])}"
        raise UserError(f"{where}: its teachers want {num_summaries} summary tokens, {there}")
    patch_size = square_root(published.weights[EMBEDDER].shape[1] // 3, published.name_in_file(EMBEDDER))
    return TokenShape(num_registers, patch_size, square_root(published.weights[TABLE].shape[1], published.name_in_file(TABLE)))


def read_vit(published: Published, where: str, align_corners: bool, num_summaries: int) -> tuple[VitSettings, Published]:
    """The student as the weights show it, and the weights for images that are normalised as ours are.

    The number of attention heads and the kind of MLP, which the weights do not show, are the architecture's. Raises UserError for another
    kind of ViT, and where weights and settings contradict each other.
    """
    architecture = _architecture(published.settings, where)
    _check(published, architecture, where)
    settings, weights = published.settings, published.weights
    tokens = token_shape(published, where, num_summaries)
    patch_size, side, stated = tokens.patch_size, tokens.table_side, settings.get("cpe_max_size")
    if not own_part(settings) and not crops_positions(settings, patch_size):
        raise UserError(
            f"{where}: args.cpe_max_size {stated} is the size that args.model is made for, so the official reader crops the position table "
            "and never stretches it (no CPE); such a model is not read here"
        )
    shape = _shape(published, architecture, where)
    size = known_size(shape, architecture.mlp)
    given: dict[str, Any] = {"size": size} if size else {"size": "base", **shape._asdict()}
    given["mlp"] = architecture.mlp
    given["max_image_size"] = stated if stated and round(stated / patch_size) == side else side * patch_size
    given["final_norm"] = bool(settings.get("model_norm"))
    if "student.blocks.0.ls1.gamma" in weights:
        given["layer_scale"] = (settings.get("model_kwargs") or {}).get("init_values") or 1e-5
    try:
        student = VitSettings(**given, patch_size=patch_size, num_registers=tokens.num_registers, align_corners=align_corners)
    except pydantic.ValidationError as error:
        raise UserError(*(f"{where}: {problem['msg'].removeprefix('Value error, ')}" for problem in error.errors())) from None
    return student, conditioned(_without_bias(published) if architecture.is_dino else published, where)


def _first_layer(mlp: MlpKind) -> str:
    return f"student.blocks.0.mlp.{'w12' if mlp == 'swiglu' else 'fc1'}.weight"


def _check(published: Published, architecture: Architecture, where: str) -> None:
    needed = (EMBEDDER, TABLE, TOKENS, _first_layer(architecture.mlp))
    missing = [published.name_in_file(key) for key in needed if key not in published.weights]
    if missing:
        raise UserError(f"{where}: missing: {', '.join(missing)}; {WHAT_IS_READ}")
    shapes = [
        f"{published.name_in_file(key)} has {published.weights[key].ndim} axes, not {n}"
        for key, n in zip(needed, (2, 3, 2, 2), strict=True)
        if published.weights[key].ndim != n
    ]
    if shapes:
        raise UserError(f"{where}: wrong shape: {', '.join(shapes)}")


def _shape(published: Published, architecture: Architecture, where: str) -> VitShape:
    dim = published.weights[TOKENS].shape[1]
    depth = len({match[1] for key in published.weights if (match := re.match(r"student\.blocks\.(\d+)\.", key))})
    stated = architecture.shape
    wrong = [
        f"{where}: the weights have {name} {value}, args.model and model_kwargs say {said}; they belong to different models"
        for name, value, said in (("embed_dim", dim, stated.dim), ("depth", depth, stated.depth))
        if value != said
    ]
    if wrong:
        raise UserError(*wrong)
    rows = len(published.weights[_first_layer(architecture.mlp)])
    return stated._replace(mlp_dim=rows // 2 if architecture.mlp == "swiglu" else rows)


def _architecture(settings: Mapping[str, Any], where: str) -> Architecture:
    """What `model` and `model_kwargs` name; raises UserError for an architecture that is not read here."""
    model = str(settings.get("model"))
    match = re.match(rf"vit_({'|'.join(SIZES)})_(?:v2_)?patch\d+_(?:v2_)?\d+({MLPNORM})?$", model)
    changes = dict(settings.get("model_kwargs") or {})
    problems = [
        f"{where}: args.model_kwargs.{key}: not known here; it may change what the model computes" for key in set(changes) - HARMLESS
    ]
    if not match and model not in DINO:
        reason = next((f" ({reason})" for pattern, reason in NOT_READ if re.search(pattern, model)), "")
        raise UserError(f"{where}: args.model '{model}'{reason} is not read here; {WHAT_IS_READ}", *problems)
    if problems:
        raise UserError(*problems)
    name, mlp = DINO[model] if match is None else (match[1], "gelu_norm" if match[2] else "gelu")
    size = SIZES[name]
    dim, depth, num_heads = (
        changes.get(key, value) for key, value in (("embed_dim", size.dim), ("depth", size.depth), ("num_heads", size.num_heads))
    )
    return Architecture(VitShape(dim, depth, num_heads, 0), mlp, match is None)


def _without_bias(published: Published) -> Published:
    """The bias of DINOv2's patches, as a constant in the position table: bilinear stretching keeps constants."""
    bias = published.weights.get(BIAS)
    if bias is None:
        return published
    table = published.weights[TABLE]
    rest = {key: tensor for key, tensor in published.weights.items() if key != BIAS}
    return published._replace(weights={**rest, TABLE: (table.double() + bias.double()).to(table.dtype)})


def conditioned(published: Published, where: str) -> Published:
    """Another mean and std than CLIP's, folded into the patches and, as a constant, into the position table: exactly."""
    if same_conditioner(published, where):
        return published
    mean, std = (published.conditioner[key].double().flatten() for key in ("norm_mean", "norm_std"))
    weight, table = published.weights[EMBEDDER], published.weights[TABLE]
    patches = weight.double().unflatten(1, (3, -1))
    bias = torch.einsum("dcp,c->d", patches, (OWN_MEAN - mean) / std)
    folded = (patches * (OWN_STD / std)[:, None]).flatten(1)
    changed = {EMBEDDER: folded.to(weight.dtype), TABLE: (table.double() + bias).to(table.dtype)}
    return published._replace(weights=published.weights | changed)


def lacks_vit(config: NetworkConfig, num_named: int) -> tuple[str, ...]:
    """Why the published code could not rebuild this ViT; empty where it can. num_named: teachers in its list, each with a token."""
    student = config.student
    assert isinstance(student, VitSettings)
    reasons = []
    if student.align_corners:
        reasons.append("its position table is read with align_corners true; the published code has read it with false since June 2025")
    num_prefix = config.num_summaries + student.num_registers
    if config.num_summaries > 1 and num_named > num_prefix:
        reasons.append(f"the published code wants a summary token for each of {num_named} heads, there are {num_prefix}; leave heads out")
    if student.mlp == "swiglu" and not _is_dino_giant(student):
        reasons.append("of ViTs with SwiGLU the published code has DINOv2's giant with LayerScale and patches of 14 px alone")
    return tuple(reasons)


def _is_dino_giant(student: VitSettings) -> bool:
    giant = VitSettings(size="giant", mlp="swiglu")
    return (student.mlp, student.shape(), student.patch_size) == ("swiglu", giant.shape(), 14) and student.layer_scale is not None


def vit_architecture(config: NetworkConfig, num_named: int) -> dict[str, Any]:
    """`model`, `model_kwargs` and the tokens of a ViT. num_named: teachers in the list, each with a token."""
    student = config.student
    assert isinstance(student, VitSettings)
    model, changes = _model_of(student)
    if not crops_positions({"model": model, "model_kwargs": changes, "cpe_max_size": student.max_image_size}, student.patch_size):
        # Of the same size as its table, the published code would crop the table and no longer stretch it.
        changes["img_size"] = (student.table_side() + 1) * student.patch_size
    num_prefix = config.num_summaries + student.num_registers
    return {
        "model": model,
        "model_kwargs": changes,
        "model_norm": student.final_norm,
        "cpe_max_size": student.max_image_size,
        # Registers fill up to the next multiple, so the number of all tokens gives as many as there are.
        "register_multiple": num_prefix if num_prefix > (num_named if config.num_summaries > 1 else 1) else None,
        "cpe_num_registers": None,
    }


def _model_of(student: VitSettings) -> tuple[str, dict[str, Any]]:
    """The name of the architecture, and the keywords that change it into this one."""
    if _is_dino_giant(student):
        return "dino_v2_g_student", {}
    shape = student.shape()
    sizes = {"huge": SIZES["huge"]} if student.mlp == "gelu_norm" else SIZES
    size = next((name for name, size_shape in sizes.items() if size_shape == shape), None)
    changes: dict[str, Any] = {} if size else _changes(shape)
    default = next(iter(sizes)) if len(sizes) == 1 else "base"
    middle, end = "patch16", MLPNORM if student.mlp == "gelu_norm" else ""
    if student.layer_scale is not None and (size or default) in WITH_LAYER_SCALE:
        middle = "patch16_v2"
    elif student.layer_scale is not None:
        changes["init_values"] = student.layer_scale
    if student.patch_size != 16:
        changes["patch_size"] = student.patch_size
    return f"vit_{size or default}_{middle}_224{end}", changes


def vit_extras(student: VitSettings, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights that the published architecture has beside ours, under our names: the bias of DINOv2's patches, which is zero."""
    return {BIAS: torch.zeros(student.shape().dim, dtype=dtype)} if _is_dino_giant(student) else {}


def _changes(shape: VitShape) -> dict[str, Any]:
    changes: dict[str, Any] = {"embed_dim": shape.dim, "depth": shape.depth, "num_heads": shape.num_heads}
    if shape.mlp_dim != 4 * shape.dim:
        changes["mlp_ratio"] = (shape.mlp_dim + 0.5) / shape.dim  # the half keeps int() of the product from falling one short
    return changes
