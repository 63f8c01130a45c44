from .base import Precision, Teacher, TeacherSettings, resize
from .catalogue import Known, catalogue
from .clip import ClipSettings
from .dinov2 import Dinov2Settings
from .own import OwnSettings
from .sam import SamSettings
from .shipped import EmbeddedSettings

TEACHERS: tuple[type[TeacherSettings], ...] = (ClipSettings, Dinov2Settings, SamSettings, EmbeddedSettings, OwnSettings)
"""Every kind of teacher; a new one is one file and one entry here."""

__all__ = ["TEACHERS", "Known", "Precision", "Teacher", "TeacherSettings", "catalogue", "resize"]
