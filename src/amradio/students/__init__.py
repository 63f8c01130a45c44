"""Students: the backbones that are trained. `STUDENTS` lists them; a new one is a file and an entry here."""

from typing import TYPE_CHECKING

from ..config import one_of
from ..lazy import lazily
from .eradio_settings import EradioSettings
from .radio1d_settings import Radio1dSettings
from .settings import CustomSettings, StudentRow, StudentSettings
from .timm_settings import TimmSettings
from .vit_settings import VitSettings

if TYPE_CHECKING:
    from .base import Student
    from .custom import CustomStudent

STUDENTS: tuple[type[StudentSettings], ...] = (VitSettings, EradioSettings, TimmSettings, Radio1dSettings, CustomSettings)

if TYPE_CHECKING:
    AnyStudent = StudentSettings
else:
    AnyStudent = one_of(STUDENTS)


def catalogue() -> list[StudentRow]:
    """Every size of every student, for `amradio students`; nothing is allocated or fetched."""
    return [row for settings in STUDENTS for row in settings.catalogue()]


__all__ = [
    "STUDENTS",
    "AnyStudent",
    "CustomSettings",
    "CustomStudent",
    "EradioSettings",
    "Radio1dSettings",
    "Student",
    "StudentRow",
    "StudentSettings",
    "TimmSettings",
    "VitSettings",
    "catalogue",
]

__getattr__ = lazily(__name__, {"CustomStudent": "custom", "Student": "base"})
