"""Students: the backbones that are trained. `STUDENTS` lists them; a new one is a file and an entry here."""

from .base import Student, StudentRow, StudentSettings
from .eradio import EradioSettings
from .own import OwnSettings, OwnStudent
from .timm import TimmSettings
from .vit import VitSettings

STUDENTS: tuple[type[StudentSettings], ...] = (VitSettings, EradioSettings, TimmSettings, OwnSettings)


def catalogue() -> list[StudentRow]:
    """Every size of every student, for `amradio students`; nothing is allocated or fetched."""
    return [row for settings in STUDENTS for row in settings.catalogue()]


__all__ = [
    "STUDENTS",
    "EradioSettings",
    "OwnSettings",
    "OwnStudent",
    "Student",
    "StudentRow",
    "StudentSettings",
    "TimmSettings",
    "VitSettings",
    "catalogue",
]
