from .base import Precision, Teacher, TeacherSettings, resize
from .catalogue import Known, catalogue
from .clip import ClipSettings
from .dinov2 import Dinov2Settings
from .dinov3 import Dinov3Settings
from .folder import ModelSettings
from .open_clip import OpenClipSettings
from .own import OwnSettings
from .radio import RadioSettings
from .sam import SamSettings
from .shipped import EmbeddedSettings
from .siglip import SiglipSettings
from .timm import TimmSettings

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
    OwnSettings,
)
"""Every kind of teacher; a new one is one file and one entry here."""

__all__ = ["TEACHERS", "Known", "Precision", "Teacher", "TeacherSettings", "catalogue", "resize"]
