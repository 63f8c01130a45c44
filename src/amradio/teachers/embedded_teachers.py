"""The small teachers that come with the package: three in the formats of transformers, read by the adapters of real ones, and a student."""

from ..errors import UserError
from ..formats.embedded_models import FOLDER
from .base import Teacher
from .catalogue import EMBEDDED
from .sam_settings import SamSettings
from .settings import ClipSettings, Dinov2Settings, EmbeddedSettings, ModelSettings


def build(settings: EmbeddedSettings) -> "Teacher":
    """Loads the embedded teacher of `settings`; raises UserError where the installation lacks its files."""
    folder = (FOLDER if settings.name == "photos" else EMBEDDED) / settings.name
    if not folder.is_dir():
        raise UserError(f"teacher 'embedded {settings.name}': this installation lacks {folder}; install amradio anew")
    if settings.name == "photos":
        teacher = ModelSettings(path=str(folder), precision=settings.precision).build()
    else:
        kinds = {"clip": ClipSettings, "dino": Dinov2Settings, "sam": SamSettings}
        teacher = kinds[settings.name](model=str(folder), precision=settings.precision).build()
    teacher.source = f"embedded {settings.name}"
    teacher.licence = "Apache-2.0"
    return teacher
