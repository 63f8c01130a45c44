"""A teacher object of the user's own, passed in Python."""

from typing import Literal

from ..errors import UserError
from .base import Teacher, TeacherSettings


class OwnSettings(TeacherSettings):
    """The place of a teacher that is passed as an object: `amradio.distill(recipe, teachers={"name": teacher})`."""

    type: Literal["own"] = "own"

    def build(self) -> Teacher:
        """Raises UserError: there is nothing to load."""
        raise UserError(
            "a teacher of type 'own' is an object that only Python can pass: "
            'amradio.distill(recipe, teachers={"name": teacher}), where teacher is an amradio.teachers.Teacher'
        )
