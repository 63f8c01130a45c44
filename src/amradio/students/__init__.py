"""Students: the backbones that are trained. `STUDENTS` lists them; a new one is a file and an entry here."""

from .base import Student, StudentRow, StudentSettings
from .eradio import EradioSettings
from .timm import TimmSettings
from .vit import VitSettings

STUDENTS: tuple[type[StudentSettings], ...] = (VitSettings, EradioSettings, TimmSettings)


def catalogue() -> list[StudentRow]:
    """Every size of every student, for `amradio students`; nothing is allocated or fetched."""
    return [row for settings in STUDENTS for row in settings.catalogue()]


__all__ = ["STUDENTS", "EradioSettings", "Student", "StudentRow", "StudentSettings", "TimmSettings", "VitSettings", "catalogue"]
