"""From a published model to our network."""

from collections.abc import Mapping
from typing import Any, Literal

from ...config import validate
from ...features import KINDS
from ...network import HeadConfig, NetworkConfig, TrainingFacts
from ...students.settings import StudentSettings
from ...students.vit_settings import TransformerSettings
from ..base import LoadedModel
from ..building import filled
from ..model_folder import ancestors_in
from .eradio import STEM, read_eradio
from .heads import OWN_KEY, head_config, own_part
from .layout import Published, check_settings
from .radio1d import is_radio1d, read_radio1d
from .tokens import first_of, teachers_in, tokens_of
from .vit import read_vit

DEAD = (
    "student.reg_token",
    "student.patch_generator.video_embedder.",
    "student.mask_token",
    "student._iter_count",
    "student.dynamic_rate_vec",
    "student.dynamic_rate_projector.",
)
"""Starts of names that do nothing to an image: timm's unused registers, the patches of video models, DINOv2's token for hidden patches, and
of RADIO1D the count of its steps and the part that chooses how many tokens to keep, which is not asked in evaluation."""
PREFERRED = 512
"""px that E-RADIO, C-RADIOv3 and v4 prefer."""


def network_of(published: Published, where: str, align_corners: bool | None, summary_slots: tuple[int, ...] | None = None) -> LoadedModel:
    """Builds the network that the weights and settings describe, and fills it.

    summary_slots: which tokens make the backbone's summary, where the file says so itself. Raises UserError that names every missing,
    left-over and misshapen tensor as the file spells it, and settings that the weights contradict.
    """
    check_settings(published.settings, where)
    published = _without_dead(published, where)
    if STEM in published.weights:
        student, published = read_eradio(published, where)
        tokens, slots, num_summaries = tokens_of(published.settings, where), (0,), 1
    else:
        tokens = tokens_of(published.settings, where)
        slots = summary_slots or tokens.summary_slots
        num_summaries = max(tokens.num_summaries, max(slots) + 1)
        read = read_radio1d if is_radio1d(published.settings) else read_vit
        student, published = read(published, where, bool(align_corners), num_summaries)
    stored = own_part(published.settings)
    config = NetworkConfig(
        student=student,
        num_summaries=num_summaries,
        heads=_heads(published, tokens.slots, where),
        image_size=_image_size(published.settings, student),
        summary_slots=None if slots == tuple(range(num_summaries)) else list(slots),
        rotates=any(key.startswith("rotation.") for key in published.weights),
        normalizes_blocks=_normalizes_blocks(published),
        training=validate(TrainingFacts, stored["training"], f"{where}: args.{OWN_KEY}.training.") if stored.get("training") else None,
        origin=str(stored["origin"]) if stored.get("origin") else None,
        distilled_from=ancestors_in(stored, f"{where}: args.{OWN_KEY}."),
    )
    return LoadedModel(config, filled(config, published.weights, where, published.name_in_file), published.ignored_keys, bool(stored))


def _normalizes_blocks(published: Published) -> Literal["shared", "each"] | None:
    between = published.below("block_normalizer.")
    if not between:
        return None
    rotation = between.get("rotation")
    return "each" if rotation is not None and rotation.ndim == 3 else "shared"


def _without_dead(published: Published, where: str) -> Published:
    """Less the tensors that do nothing: known ones, and the heads that we wrote because the official loader wants both kinds."""
    starts = list(DEAD)
    for name, (_, teacher) in first_of(teachers_in(published.settings, where)).items():
        kinds = own_part(teacher).get("kinds", KINDS)
        starts += [f"heads.{name}.{kind}." for kind in KINDS if kind not in kinds]
    left_out = [key for key in published.weights if key.startswith(tuple(starts))]
    weights = {key: tensor for key, tensor in published.weights.items() if not key.startswith(tuple(starts))}
    return published._replace(weights=weights, ignored_keys=(*published.ignored_keys, *map(published.name_in_file, left_out)))


def _heads(published: Published, slots: Mapping[str, int], where: str) -> dict[str, HeadConfig]:
    heads = {
        name: head_config(published, teacher, slots[name], where)
        for name, (_, teacher) in first_of(teachers_in(published.settings, where)).items()
    }
    return {name: head for name, head in heads.items() if head is not None}


def _image_size(settings: Mapping[str, Any], student: StudentSettings) -> int:
    """What we wrote, else the size of the training images, else a quarter of the position table (512 of 2048 px); whole patches."""
    size_stored, stated = own_part(settings).get("image_size"), settings.get("input_size")
    size = size_stored or (stated[-1] if isinstance(stated, (list, tuple)) and stated else None)
    if not isinstance(student, TransformerSettings):
        return size or PREFERRED
    return max(round((size or student.max_image_size / 4) / student.patch_size), 1) * student.patch_size
