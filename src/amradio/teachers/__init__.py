"""Teachers: frozen foundation models behind one interface. `TEACHERS` lists their settings."""

from typing import TYPE_CHECKING

from ..config import one_of
from ..lazy import lazily
from .catalogue import Known, catalogue
from .settings import (
    ClipSettings,
    CustomSettings,
    Dinov2Settings,
    Dinov3Settings,
    EmbeddedSettings,
    ModelSettings,
    OpenClipSettings,
    Precision,
    RadioSettings,
    SamSettings,
    SiglipSettings,
    TeacherSettings,
    TimmSettings,
)

if TYPE_CHECKING:
    from .base import Teacher

TEACHERS: tuple[type[TeacherSettings], ...] = (
    ClipSettings,
    OpenClipSettings,
    SiglipSettings,
    Dinov2Settings,
    Dinov3Settings,
    SamSettings,
    RadioSettings,
    TimmSettings,
    EmbeddedSettings,
    ModelSettings,
    CustomSettings,
)
"""Every kind of teacher; a new one is one file and one entry here."""

if TYPE_CHECKING:
    AnyTeacher = TeacherSettings
else:
    AnyTeacher = one_of(TEACHERS)

__all__ = [
    "TEACHERS",
    "AnyTeacher",
    "ClipSettings",
    "CustomSettings",
    "Dinov2Settings",
    "Dinov3Settings",
    "EmbeddedSettings",
    "Known",
    "ModelSettings",
    "OpenClipSettings",
    "Precision",
    "RadioSettings",
    "SamSettings",
    "SiglipSettings",
    "Teacher",
    "TeacherSettings",
    "TimmSettings",
    "catalogue",
]

__getattr__ = lazily(__name__, {"Teacher": "base"})
