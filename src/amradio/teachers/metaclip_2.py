"""MetaCLIP 2 as in transformers (`MetaClip2Model`): the towers of CLIP with a multilingual tokenizer."""

from .clip import ClipTeacher, build_as
from .settings import Metaclip2Settings


def build(settings: Metaclip2Settings) -> ClipTeacher:
    """Loads the MetaClip2Model of `settings`; raises UserError where it is not there or damaged."""
    return build_as(settings, {"metaclip_2": "MetaClip2Model"})
