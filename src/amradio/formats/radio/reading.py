"""From a published model to our network."""

import re
from collections.abc import Mapping
from typing import Any

import pydantic
import torch
from torch import Tensor

from ...config import validate
from ...errors import UserError
from ...features import KINDS
from ...network import HeadConfig, NetworkConfig, TrainingFacts, load_exactly
from ...students.base import CLIP_MEAN, CLIP_STD
from ...students.vit import SIZES, VitSettings, VitShape
from ..base import Found
from .heads import OWN_KEY, head_config, own_part
from .layout import Published, square_root
from .tokens import first_of, teachers_in, tokens_of

EMBEDDER = "student.patch_generator.embedder.weight"
TABLE = "student.patch_generator.pos_embed"
TOKENS = "student.patch_generator.cls_token.token"
WHAT_IS_READ = "RADIO's plain ViTs with a cropped position table are read, and E-RADIO"
DEAD = ("student.reg_token", "student.patch_generator.video_embedder.")
"""Starts of names that do nothing to an image: timm's unused registers, and the patches of video models."""
SHAPE = frozenset({"embed_dim", "depth", "num_heads", "mlp_ratio", "init_values", "patch_size", "img_size", "class_token", "reg_tokens"})
OF_TRAINING = frozenset({"drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate"})
HARMLESS = SHAPE | OF_TRAINING | {"num_classes", "weight_init", "no_embed_class", "dynamic_img_size", "global_pool"}
"""`model_kwargs` that the weights show anyway, or that change nothing outside of training."""


def network_of(published: Published, where: str, align_corners: bool | None, summary_slots: tuple[int, ...] | None = None) -> Found:
    """Builds the network that the weights and settings describe, and fills it.

    summary_slots: which tokens make the backbone's summary, where the file says so itself. Raises UserError that names every missing,
    left-over and misshapen tensor as the file spells it, and settings that the weights contradict.
    """
    published = _without_dead(published, where)
    tokens = tokens_of(published.settings, where)
    student = _vit(published, where, bool(align_corners))
    num_prefix = len(published.weights[TOKENS])
    slots = summary_slots or tokens.summary_slots
    num_summaries = max(tokens.num_summaries, max(slots) + 1)
    if num_summaries > num_prefix:
        raise UserError(f"{where}: its teachers want {num_summaries} summary tokens, {published.spell(TOKENS)} has {num_prefix}")
    weights = _conditioned(published, where)
    heads = _heads(published, tokens.slots, where)
    config = NetworkConfig(
        student=student.model_copy(update={"num_registers": num_prefix - num_summaries}),
        num_summaries=num_summaries,
        heads=heads,
        image_size=_image_size(published.settings, student),
        summary_slots=None if slots == tuple(range(num_summaries)) else list(slots),
        rotates=any(key.startswith("rotation.") for key in weights),
        training=_training(published.settings, where),
        origin=str(origin) if (origin := own_part(published.settings).get("origin")) else None,
    )
    network = config.build()
    load_exactly(network, weights, where, published.spell)
    return Found(config, network, published.dead)


def _without_dead(published: Published, where: str) -> Published:
    """Less the tensors that do nothing: known ones, and the heads that we wrote because the official loader wants both kinds."""
    if any(key.startswith("intermediate_rotation.") for key in published.weights):
        spelt = published.spell("intermediate_rotation.")
        raise UserError(f"{where}: {spelt}*: a normaliser of the intermediate features, which is not read here")
    starts = list(DEAD)
    for name, (_, teacher) in first_of(teachers_in(published.settings, where)).items():
        kinds = own_part(teacher).get("kinds", KINDS)
        starts += [f"heads.{name}.{kind}." for kind in KINDS if kind not in kinds]
    left_out = [key for key in published.weights if key.startswith(tuple(starts))]
    weights = {key: tensor for key, tensor in published.weights.items() if not key.startswith(tuple(starts))}
    return published._replace(weights=weights, dead=(*published.dead, *map(published.spell, left_out)))


def _vit(published: Published, where: str, align_corners: bool) -> VitSettings:
    """The student as the weights show it; the number of attention heads, which they do not, is the architecture's."""
    missing = [published.spell(key) for key in (EMBEDDER, TABLE, TOKENS) if key not in published.weights]
    if missing:
        raise UserError(
            f"{where}: missing: {', '.join(missing)}; only RADIO's plain ViTs with a cropped position table and E-RADIO are read"
        )
    settings = published.settings
    if settings.get("model_norm"):
        raise UserError(f"{where}: args.model_norm: the model ends in a norm, which the students here have not")
    patch_size = square_root(published.weights[EMBEDDER].shape[1] // 3, published.spell(EMBEDDER))
    side = square_root(published.weights[TABLE].shape[1], published.spell(TABLE))
    max_size = settings.get("cpe_max_size")
    if max_size is None or round(max_size / patch_size) != side:
        max_size = side * patch_size
    shape = _shape(published, where)
    size = next((name for name, own in SIZES.items() if own == shape), None)
    given = {"size": size} if size else {"size": "base", **shape._asdict()}
    scale = (settings.get("model_kwargs") or {}).get("init_values") or 1e-5
    has_scale = "student.blocks.0.ls1.gamma" in published.weights
    try:
        return VitSettings(
            **given,  # type: ignore[arg-type]
            patch_size=patch_size,
            max_image_size=max_size,
            layer_scale=scale if has_scale else None,
            align_corners=align_corners,
        )
    except pydantic.ValidationError as error:
        raise UserError(*(f"{where}: {problem['msg'].removeprefix('Value error, ')}" for problem in error.errors())) from None


def _shape(published: Published, where: str) -> VitShape:
    dim = published.weights[TOKENS].shape[1]
    depth = len({found[1] for key in published.weights if (found := re.match(r"student\.blocks\.(\d+)\.", key))})
    first = published.weights.get("student.blocks.0.mlp.fc1.weight")
    if first is None:
        raise UserError(f"{where}: missing: {published.spell('student.blocks.0.mlp.fc1.weight')}; {WHAT_IS_READ}")
    stated = stated_shape(published.settings, where)
    wrong = [
        f"{where}: the weights have {name} {found}, args.model and model_kwargs say {said}; they belong to different models"
        for name, found, said in (("embed_dim", dim, stated.dim), ("depth", depth, stated.depth))
        if found != said
    ]
    if wrong:
        raise UserError(*wrong)
    return VitShape(dim, depth, stated.num_heads, len(first))


def stated_shape(settings: Mapping[str, Any], where: str) -> VitShape:
    """The shape that `model` and `model_kwargs` name; raises UserError for an architecture that is not read here."""
    model = str(settings.get("model"))
    found = re.match(rf"vit_({'|'.join(SIZES)})_(?:v2_)?patch\d+_(?:v2_)?\d+$", model)
    changes = dict(settings.get("model_kwargs") or {})
    unknown = sorted(set(changes) - HARMLESS)
    problems = [] if found else [f"{where}: args.model '{model}': not read here; vit_*_patch16_224 of {', '.join(SIZES)} are, and E-RADIO"]
    problems += [f"{where}: args.model_kwargs.{key}: not known here; it may change what the model computes" for key in unknown]
    if problems or not found:
        raise UserError(*problems)
    size = SIZES[found[1]]
    return VitShape(changes.get("embed_dim", size.dim), changes.get("depth", size.depth), changes.get("num_heads", size.num_heads), 0)


def _heads(published: Published, slots: Mapping[str, int], where: str) -> dict[str, HeadConfig]:
    found = {
        name: head_config(published, teacher, slots[name], where)
        for name, (_, teacher) in first_of(teachers_in(published.settings, where)).items()
    }
    return {name: head for name, head in found.items() if head is not None}


def _image_size(settings: Mapping[str, Any], student: VitSettings) -> int:
    """What we wrote, else the size of the training images, else a quarter of the table (512 of 2048 px, as C-RADIOv3 and v4 prefer)."""
    own, stated = own_part(settings).get("image_size"), settings.get("input_size")
    size = own or (stated[-1] if isinstance(stated, (list, tuple)) and stated else None) or student.max_image_size / 4
    return max(round(size / student.patch_size), 1) * student.patch_size


def _training(settings: Mapping[str, Any], where: str) -> TrainingFacts | None:
    own = own_part(settings).get("training")
    return validate(TrainingFacts, own, f"{where}: args.{OWN_KEY}.training.") if own else None


def _conditioned(published: Published, where: str) -> dict[str, Tensor]:
    """The weights for images that are normalised as ours are.

    Another mean and std than CLIP's are folded into the patches and, as a constant, into the position table, exactly. Half files hold
    rounded ones: they count as CLIP's.
    """
    missing = [key for key in ("norm_mean", "norm_std") if key not in published.conditioner]
    if missing:
        raise UserError(*(f"{where}: input_conditioner.{key} is missing; the file is not whole" for key in missing))
    mean, std = (published.conditioner[key].double().flatten() for key in ("norm_mean", "norm_std"))
    own_mean, own_std = torch.tensor(CLIP_MEAN).double(), torch.tensor(CLIP_STD).double()
    tolerance = 2 * torch.finfo(published.conditioner["norm_mean"].dtype).eps
    if torch.allclose(mean, own_mean, tolerance, 0) and torch.allclose(std, own_std, tolerance, 0):
        return published.weights
    weight, table = published.weights[EMBEDDER], published.weights[TABLE]
    patches = weight.double().unflatten(1, (3, -1))
    bias = torch.einsum("dcp,c->d", patches, (own_mean - mean) / std)
    folded = (patches * (own_std / std)[:, None]).flatten(1)
    return published.weights | {EMBEDDER: folded.to(weight.dtype), TABLE: (table.double() + bias).to(table.dtype)}
