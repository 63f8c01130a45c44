"""The kinds of sources, one line each; `mixture` is made of these and is listed with them in the room's `SOURCES`."""

from .folder import FolderSettings
from .scene_source import ScenesSettings
from .source import SourceSettings

SINGLE_SOURCES: tuple[type[SourceSettings], ...] = (FolderSettings, ScenesSettings)
