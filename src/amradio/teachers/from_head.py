"""From a head back to its teacher: the text encoder and the mask decoder that go with a student's head."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import validate
from ..errors import UserError
from ..files import local_path, read_json
from ..hub import no_downloads
from . import TEACHERS
from .base import Teacher
from .loading import KIND_OF, cached_folder
from .mask_decoder import MaskDecoder
from .settings import TeacherSettings
from .text_encoder import TextEncoder

Card = Mapping[str, str | int | float | None]
"""A head's teacher as config.json describes it: `type` and `source` (see `HeadConfig.teacher`)."""
Given = Teacher | str | Path | None
"""A teacher as the user names it: a folder, a hub name, `embedded clip`, or the object; None for the one of config.json."""

_KINDS: dict[str, type[TeacherSettings]] = {settings.model_fields["type"].default: settings for settings in TEACHERS}
_EMBEDDED = "embedded "


def text_encoder(
    head: str, card: Card, dims: tuple[int | None, int | None], given: Given, encode: Callable[[Any, Any], Tensor] | None = None
) -> TextEncoder:
    """The text encoder in whose space the summary of `head` is; dims: channels of summary and map, None where it has none.

    encode: see `TextEncoder`. Raises UserError where the head has no summary, or its teacher cannot be found, has no text encoder or
    another dimension.
    """
    dim, spatial_dim = dims
    if dim is None:
        raise UserError(f"text: head '{head}' has no summary, to compare with texts; train it with summary_weight 1")
    teacher = find(head, card, given)
    if not teacher.has_text:
        raise UserError(f"text: teacher '{teacher.source}' of head '{head}' has no text encoder; CLIP, OpenCLIP and SigLIP have one")
    _check_dim(head, teacher, "summary", teacher.summary_dim, dim)
    if given is not teacher:
        teacher.drop_encoder()
    return TextEncoder(teacher, encode if spatial_dim is not None else None)


def mask_decoder(
    head: str,
    card: Card,
    dim: int | None,
    given: Given,
    encode: Callable[[Tensor, int | None], Tensor] | None = None,
    read: Callable[[Any], Tensor] | None = None,
) -> MaskDecoder:
    """SAM's mask decoder for the map of `head`; dim: channels of that map, None where it has none. encode, read: see `MaskDecoder`.

    Raises UserError where the head has no map, or its teacher cannot be found, has no mask decoder or another dimension.
    """
    if dim is None:
        raise UserError(f"masks: head '{head}' has no map to make masks of; train it with spatial_weight 1")
    teacher = find(head, card, given)
    if teacher.mask_decoder is None:
        raise UserError(f"masks: teacher '{teacher.source}' of head '{head}' has no mask decoder; SAM has one; name the head of a SAM")
    _check_dim(head, teacher, "map", teacher.spatial_dim, dim)
    if given is not teacher and encode is not None:
        teacher.drop_encoder()
    return MaskDecoder(teacher, encode, read)


def find(head: str, card: Card, given: Given = None) -> Teacher:
    """The teacher of a head, on the CPU.

    The one of config.json is looked up on this machine only; one that the user names may be fetched. Raises UserError.
    """
    if isinstance(given, Teacher):
        return given
    settings = settings_of(head, card, None if given is None else str(given))
    if given is not None:
        return settings.build()
    with no_downloads():
        try:
            return settings.build()
        except UserError as error:
            raise UserError(*(f"head '{head}': {problem}; or pass teacher=" for problem in error.problems)) from None


def settings_of(head: str, card: Card, name: str | None = None) -> TeacherSettings:
    """The settings that load the teacher of a head.

    name: a folder or hub name from the user, whose kind is then read from its files if possible; None for the teacher of config.json.
    Raises UserError where the kind is unknown.
    """
    stated, source = str(card.get("type")), str(card.get("source")) if name is None else name
    kind = "embedded" if source.startswith(_EMBEDDED) else _kind_in(source) or stated
    if kind not in _KINDS or kind == "custom" or (kind == "embedded" and not source.startswith(_EMBEDDED)):
        problem = f"its teacher was '{source}' of type '{kind}'" if name is None else f"teacher '{name}' is not on this machine"
        fix = "pass teacher=: the folder of a CLIP, SigLIP or SAM, a hub name that is in the cache, or an object"
        raise UserError(f"head '{head}': {problem}, and its kind is unknown, so it cannot be loaded; {fix}")
    return validate(_KINDS[kind], {"type": kind, **_KINDS[kind].keys_of_source(source)}, f"head '{head}': ")


def _kind_in(name: str) -> str | None:
    """The kind of teacher in a folder, or in the cache under a hub name, from its files; None where it is unknown."""
    folder = local_path(name)
    folder = folder if folder is not None and folder.is_dir() else cached_folder(name) if name.count("/") == 1 else None
    if folder is None:
        return None
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    try:
        return KIND_OF.get(str(read_json(folder / "config.json").get("model_type")))
    except UserError:
        return None


def _check_dim(head: str, teacher: Teacher, kind: str, teacher_dim: int | None, dim: int) -> None:
    if teacher_dim != dim:
        raise UserError(
            f"head '{head}': its {kind} has {dim} channels, that of teacher '{teacher.source}' {teacher_dim}; it is another teacher"
        )
