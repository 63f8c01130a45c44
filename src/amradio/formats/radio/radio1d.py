"""RADIO1D in the published layout: settings from the arguments that describe it and the weights' shapes."""

import re
from collections.abc import Mapping
from typing import Any

import pydantic

from ...errors import UserError
from ...students.radio1d_settings import PUBLISHED, Radio1dSettings
from ...students.vit_settings import SIZES
from .layout import Published, square_root
from .rules import crops_positions
from .vit import EMBEDDER, HARMLESS, TABLE, TOKENS, conditioned, token_shape

NAME = re.compile(rf"radio1d_({'|'.join(PUBLISHED)})_patch16_224$")
FILLER, PREFIX, FIRST_LAYER = "student.decoder.filler_tokens", "student.decoder.prefix_tokens", "student.blocks.0.mlp.fc1.weight"
ARGUMENTS = {"downscale_levels": "merge_before", "decoder_depth": "decoder_depth", "decoder_upscale_levels": "split_before"}
"""`model_kwargs` -> our settings."""
READ = frozenset({*ARGUMENTS, "progressive_reduction", "cpe_max_size"})
OF_TRAINING = frozenset(
    {"num_cls_tokens", "num_registers", "register_multiple", "k_sample_config", "uniform_k", "dynamic_rate", "dynamic_temperature"}
    | {"cka_weight", "cka_weight_final", "grad_checkpointing", "decoder_grad_checkpointing", "downscale_expansion_factor"}
)
"""`model_kwargs` that the weights show anyway, or that change nothing outside of training."""


def is_radio1d(settings: Mapping[str, Any]) -> bool:
    """Whether `args.model` names a RADIO1D."""
    return str(settings.get("model")).startswith("radio1d_")


def read_radio1d(published: Published, where: str, align_corners: bool, num_summaries: int) -> tuple[Radio1dSettings, Published]:
    """The student as arguments and weights describe it, and the weights for images that are normalised as ours are.

    Raises UserError for an argument that is not known here, and where weights and arguments contradict each other.
    """
    settings, weights = published.settings, published.weights
    size, changes = _checked(published, where)
    tokens = token_shape(published, where, num_summaries)
    patch_size, side, table = tokens.patch_size, tokens.table_side, changes.get("cpe_max_size")
    if not crops_positions({**settings, "cpe_max_size": table}, patch_size):
        raise UserError(
            f"{where}: args.model_kwargs.cpe_max_size {table} is the size that args.model is made for, so the official reader crops the "
            "position table and never stretches it (no CPE); such a model is not read here"
        )
    described = _shape(size, changes, len(weights[FIRST_LAYER])) | {
        "drops_early": bool(changes.get("progressive_reduction")),
        "filler_side": square_root(len(weights[FILLER]), published.name_in_file(FILLER)),
        "layer_scale": (changes.get("init_values") or 1e-5) if "student.blocks.0.ls1.gamma" in weights else None,
        "final_norm": bool(settings.get("model_norm")),
        "max_image_size": table if table and round(table / patch_size) == side else side * patch_size,
        "patch_size": patch_size,
        "num_registers": tokens.num_registers,
        "align_corners": align_corners,
    }
    for theirs, ours in ARGUMENTS.items():
        value = changes.get(theirs)
        described |= {} if value is None else {ours: sorted(value) if isinstance(value, (list, tuple)) else value}
    try:
        student = Radio1dSettings.model_validate(described)
    except pydantic.ValidationError as error:
        raise UserError(*(f"{where}: {problem['msg'].removeprefix('Value error, ')}" for problem in error.errors())) from None
    return student, conditioned(published, where)


def _checked(published: Published, where: str) -> tuple[str, dict[str, Any]]:
    """The size that `args.model` names and `args.model_kwargs`; UserError for what is not known, missing or of another form."""
    model, weights = str(published.settings.get("model")), published.weights
    changes = dict(published.settings.get("model_kwargs") or {})
    name = NAME.match(model)
    problems = [] if name else [f"{where}: args.model '{model}': of RADIO1D there is: {', '.join(PUBLISHED)}"]
    unknown = sorted(set(changes) - HARMLESS - READ - OF_TRAINING)
    problems += [f"{where}: args.model_kwargs.{key}: not known here; it may change what the model computes" for key in unknown]
    for key in ("downscale_levels", "decoder_upscale_levels"):
        levels = changes.get(key)
        usual = key == "decoder_upscale_levels" and levels is None
        if not usual and not (isinstance(levels, (list, tuple)) and levels and all(type(level) is int for level in levels)):
            problems.append(f"{where}: args.model_kwargs.{key}: found {levels!r}; a RADIO1D has a list of blocks here")
    needed = {EMBEDDER: 2, TABLE: 3, TOKENS: 2, FIRST_LAYER: 2, FILLER: 2, PREFIX: 2}
    problems += [f"{where}: missing: {published.name_in_file(key)}" for key in needed if key not in weights]
    problems += [
        f"{where}: {published.name_in_file(key)} has {weights[key].ndim} axes, not {axes}"
        for key, axes in needed.items()
        if key in weights and weights[key].ndim != axes
    ]
    if problems:
        raise UserError(*problems)
    assert name is not None
    return name[1], changes


def _shape(size: str, changes: Mapping[str, Any], mlp_dim: int) -> dict[str, Any]:
    """Width and depth: of the named size, and what differs from it."""
    shape = SIZES[size]
    named = {"dim": ("embed_dim", shape.dim), "depth": ("depth", shape.depth), "num_heads": ("num_heads", shape.num_heads)}
    values = {key: changes[argument] for key, (argument, usual) in named.items() if changes.get(argument, usual) != usual}
    return {"size": size, **values} | ({"mlp_dim": mlp_dim} if values.get("dim") or mlp_dim != shape.mlp_dim else {})
