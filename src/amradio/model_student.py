"""The settings of a student that is a model already: a run continues from it."""

from typing import TYPE_CHECKING, Literal

from .config import UserPath
from .errors import UserError
from .students.settings import TrainedSettings

if TYPE_CHECKING:
    from .formats import Found


class ModelStudentSettings(TrainedSettings):
    """A model in any format that `amradio.load` reads: its student, and its heads of those teachers that the recipe names as it does."""

    type: Literal["model"] = "model"
    path: UserPath
    """A model folder, a run folder or a checkpoint file."""
    align_corners: bool | None = None
    """How a ViT's position table is stretched in evaluation; null for what the file says, or false."""
    gradient_checkpointing: bool = False
    """Computes each block again in the backward pass: less memory, more time, the same numbers. For ViT students."""

    def read(self) -> "Found":
        """The model; raises UserError where there is none, or none that has these settings."""
        from . import formats

        try:
            found = formats.read(self.path, self.align_corners)
        except UserError as error:
            raise UserError(*(f"student.path: {problem}" for problem in error.problems)) from None
        student = found.config.student
        given = {"align_corners": self.align_corners is not None, "gradient_checkpointing": self.gradient_checkpointing}
        unknown = [name for name, is_given in given.items() if is_given and name not in type(student).model_fields]
        if unknown:
            raise UserError(*(f"student.{name}: {self.path} is of type '{student.type}', which has no such key" for name in unknown))
        if self.gradient_checkpointing:
            student = student.model_copy(update={"gradient_checkpointing": True})
        return found._replace(config=found.config.model_copy(update={"student": student}))
