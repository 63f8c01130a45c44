"""The three small teachers that come with the package, in the formats of transformers, read by the very adapters of real ones."""

from ..errors import UserError
from .base import Teacher
from .catalogue import EMBEDDED
from .sam_settings import SamSettings
from .settings import ClipSettings, Dinov2Settings, EmbeddedSettings


def build(settings: EmbeddedSettings) -> "Teacher":
    """Loads the embedded teacher of `settings`; raises UserError where the installation lacks its files."""
    folder = EMBEDDED / settings.name
    if not folder.is_dir():
        raise UserError(f"teacher 'embedded {settings.name}': this installation lacks {folder}; install amradio anew")
    common = {"model": str(folder), "precision": settings.precision}
    kinds = {"clip": ClipSettings, "dino": Dinov2Settings, "sam": SamSettings}
    teacher = kinds[settings.name](**common).build()
    teacher.source = f"embedded {settings.name}"
    teacher.licence = "Apache-2.0"
    return teacher
