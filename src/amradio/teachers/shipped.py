"""The three small teachers that come with the package, in the formats of transformers, read by the very adapters of real ones."""

from typing import Literal

from ..errors import UserError
from .base import Teacher, TeacherSettings
from .catalogue import EMBEDDED
from .clip import ClipSettings
from .dinov2 import Dinov2Settings
from .sam import SamSettings


class EmbeddedSettings(TeacherSettings):
    """A small specialist shipped in the package, trained on generated scenes: no network, no GPU needed."""

    type: Literal["embedded"] = "embedded"
    name: Literal["clip", "dino", "sam"]
    """clip: captions; dino: self-distilled map; sam: prompted masks."""

    def build(self) -> Teacher:
        """Loads the model from the package; raises UserError where the installation lacks its files."""
        folder = EMBEDDED / self.name
        if not folder.is_dir():
            raise UserError(f"teacher 'embedded {self.name}': this installation lacks {folder}; install amradio anew")
        common = {"model": str(folder), "precision": self.precision}
        kinds = {"clip": ClipSettings, "dino": Dinov2Settings, "sam": SamSettings}
        teacher = kinds[self.name](**common).build()
        teacher.source = f"embedded {self.name}"
        teacher.licence = "Apache-2.0"
        return teacher
