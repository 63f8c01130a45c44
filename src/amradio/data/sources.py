"""The kinds of sources, one line each; `mixture` is made of these and is listed with them in the room's `SOURCES`."""

from .folder import FolderSettings
from .huggingface import HuggingFaceSettings
from .scene_source import ScenesSettings
from .source import SourceSettings
from .webdataset import WebDatasetSettings

SINGLE_SOURCES: tuple[type[SourceSettings], ...] = (FolderSettings, WebDatasetSettings, HuggingFaceSettings, ScenesSettings)
