"""The settings of the teachers of the SAM family under `teachers.NAME` of a recipe. Reading them needs no torch."""

from typing import TYPE_CHECKING, Any, Literal

from .settings import TeacherSettings, read_with

if TYPE_CHECKING:
    from .base import Teacher

Levels = Literal["all", "coarse"]
_SAM = {"vit-b": "facebook/sam-vit-base", "vit-l": "facebook/sam-vit-large", "vit-h": "facebook/sam-vit-huge"}
"""As published RADIO checkpoints name their SAM -> on the hub."""


class SamSettings(TeacherSettings):
    """SAM. No summary; map: the encoder's features before the neck. The input size is fixed: the encoder refuses any other."""

    type: Literal["sam"] = "sam"
    model: str
    """Hub name (facebook/sam-vit-large) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .sam import build

        return read_with(build, self)

    @classmethod
    def keys_of_source(cls, source: str) -> dict[str, Any]:
        """A name on the hub, or `vit-h` as published RADIO checkpoints call it."""
        return {"model": _SAM.get(source, source)}


class Sam2Settings(TeacherSettings):
    """SAM 2 and 2.1 on images. No summary; map: the trunk's stages before the neck, in cells of 16 px. The input size is fixed."""

    type: Literal["sam2"] = "sam2"
    model: str
    """Hub name (facebook/sam2.1-hiera-large) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    levels: Levels = "all"
    """all: the four stages (of 4 and 8 px in 16 and 4 groups of channels), which the mask decoder needs; coarse: those of 16 and 32 px."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`."""
        from .sam2 import build

        return read_with(build, self)


class Sam3Settings(TeacherSettings):
    """SAM 3. No summary; map: the trunk's features before the neck. The input size is fixed: rotary positions are made for it."""

    type: Literal["sam3"] = "sam3"
    model: str
    """Hub name (facebook/sam3; its owner asks for consent) or local folder in the format of transformers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def build(self) -> "Teacher":
        """Loads the model; see `TeacherSettings.build`. A detector alone (model_type sam3) has no decoder for clicks and boxes."""
        from .sam3 import build

        return read_with(build, self)
