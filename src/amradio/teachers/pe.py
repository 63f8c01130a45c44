"""Perception Encoder: core with its text tower (OpenCLIP), and core, lang and spatial without (timm)."""

from ..errors import UserError, nearest
from ..libraries import need
from ..names import recognise
from . import open_clip, timm
from .base import Teacher
from .loading import Source, cached_folder
from .open_clip import OpenClipTeacher
from .settings import OpenClipSettings, PeSettings, TimmSettings
from .timm import TimmTeacher

IN_OPEN_CLIP, IN_TIMM = "PE-", "vit_pe_"
TAG = "meta"
"""Of the only weights of these models in OpenCLIP."""


def build(settings: PeSettings) -> Teacher:
    """Loads the model of `settings` by the library whose name or folder it is; raises UserError where it is absent or damaged."""
    keys = {"model": settings.model, "revision": settings.revision, "input_size": settings.input_size, "precision": settings.precision}
    recognised = recognise(settings.model)
    name = recognised.text.split("/")[-1]
    if recognised.kind == "word" and not name.startswith((IN_OPEN_CLIP, IN_TIMM)):
        raise UserError(f"{Source(settings.type, settings.model).where}: it is no Perception Encoder; {nearest(name, _names())}")
    folder = recognised.path if recognised.kind == "folder" else None
    if recognised.kind == "hub":
        folder = cached_folder(recognised.text, settings.revision, "open_clip")
    in_open_clip = name.startswith(IN_OPEN_CLIP) if folder is None else (folder / open_clip.CONFIG_FILE).is_file()
    if not in_open_clip:
        return _checked(settings, timm.build(TimmSettings.model_validate(keys)))
    pretrained = TAG if recognised.kind == "word" else None
    return _checked(settings, open_clip.build(OpenClipSettings.model_validate(keys | {"pretrained": pretrained})))


def _checked(settings: PeSettings, teacher: OpenClipTeacher | TimmTeacher) -> Teacher:
    """The teacher where its tower is a Perception Encoder, else a UserError that names the type for it."""
    architecture = _architecture(teacher)
    if not architecture.startswith(IN_TIMM):
        where, kind = Source(settings.type, settings.model).where, "timm" if isinstance(teacher, TimmTeacher) else "open_clip"
        raise UserError(f"{where}: its tower is '{architecture}', no Perception Encoder; use type '{kind}'")
    return teacher


def _architecture(teacher: OpenClipTeacher | TimmTeacher) -> str:
    if isinstance(teacher, TimmTeacher):
        return teacher.model.pretrained_cfg["architecture"]
    visual = teacher.model.visual
    return type(visual).__name__ if teacher.gives_tokens else visual.trunk.pretrained_cfg["architecture"]


def _names() -> list[str]:
    """All Perception Encoders of the two libraries."""
    import timm as towers

    library = need("open_clip", "teachers of type pe")
    return [*(name for name in library.list_models() if name.startswith(IN_OPEN_CLIP)), *towers.list_pretrained(f"{IN_TIMM}*")]
