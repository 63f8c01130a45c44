"""Whether a path is a vision-language model, told without importing one."""

from pathlib import Path

from ...formats.base import CONFIG_FILE, peek
from ...formats.model_folder import folder_of

MODEL_TYPE = "llava"


def is_vlm(path: Path) -> bool:
    """Whether there is a LLaVA folder: `path` itself, or `path/model` of a run folder."""
    file = folder_of(path) / CONFIG_FILE
    return file.is_file() and (peek(file) or {}).get("model_type") == MODEL_TYPE
