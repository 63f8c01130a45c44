"""Teachers: frozen foundation models behind one interface. `TEACHERS` lists their settings."""

from typing import TYPE_CHECKING

from ..config import one_of
from ..lazy import lazily
from .catalogue import Known, catalogue
from .sam_settings import Sam2Settings, Sam3Settings, SamSettings
from .settings import (
    Aimv2Settings,
    ClipSettings,
    CustomSettings,
    DepthAnythingSettings,
    Dinov2Settings,
    Dinov3Settings,
    EmbeddedSettings,
    InternvlSettings,
    LabelsSettings,
    Metaclip2Settings,
    ModelSettings,
    OpenClipSettings,
    PeSettings,
    Precision,
    RadioSettings,
    SiglipSettings,
    TeacherSettings,
    TimmSettings,
)

if TYPE_CHECKING:
    from .base import Teacher

TEACHERS: tuple[type[TeacherSettings], ...] = (
    ClipSettings,
    OpenClipSettings,
    Metaclip2Settings,
    SiglipSettings,
    PeSettings,
    Aimv2Settings,
    InternvlSettings,
    Dinov2Settings,
    Dinov3Settings,
    DepthAnythingSettings,
    SamSettings,
    Sam2Settings,
    Sam3Settings,
    RadioSettings,
    TimmSettings,
    EmbeddedSettings,
    ModelSettings,
    LabelsSettings,
    CustomSettings,
)
"""Every kind of teacher; a new one is one file and one entry here."""

if TYPE_CHECKING:
    AnyTeacher = TeacherSettings
else:
    AnyTeacher = one_of(TEACHERS)

__all__ = [
    "TEACHERS",
    "Aimv2Settings",
    "AnyTeacher",
    "ClipSettings",
    "CustomSettings",
    "DepthAnythingSettings",
    "Dinov2Settings",
    "Dinov3Settings",
    "EmbeddedSettings",
    "InternvlSettings",
    "Known",
    "LabelsSettings",
    "Metaclip2Settings",
    "ModelSettings",
    "OpenClipSettings",
    "PeSettings",
    "Precision",
    "RadioSettings",
    "Sam2Settings",
    "Sam3Settings",
    "SamSettings",
    "SiglipSettings",
    "Teacher",
    "TeacherSettings",
    "TimmSettings",
    "catalogue",
]

__getattr__ = lazily(__name__, {"Teacher": "base"})
