"""Settings of a student that continues from an existing model."""

from typing import Literal

from ..config import UserPath
from .settings import TrainedSettings


class ModelStudentSettings(TrainedSettings):
    """Continues from a model in any format that `amradio.load` reads: its student, and its heads of teachers that the recipe has too."""

    type: Literal["model"] = "model"
    path: UserPath
    """A model folder, a run folder or a checkpoint file."""
    align_corners: bool | None = None
    """How a ViT's position table is stretched in evaluation; null for what the file says, or false."""
    gradient_checkpointing: bool = False
    """Computes each block again in the backward pass: less memory, more time, the same numbers."""
