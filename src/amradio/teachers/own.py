"""A teacher object of the user's own, passed in Python."""

from typing import Literal, Self

import pydantic

from ..errors import UserError
from .base import Teacher, TeacherSettings


class OwnSettings(TeacherSettings):
    """The place of a teacher that is passed as an object: `amradio.distill(recipe, teachers={"name": teacher})`."""

    type: Literal["own"] = "own"

    @pydantic.model_validator(mode="after")
    def _has_its_own_precision(self) -> Self:
        if self.precision != "auto":
            raise ValueError("precision: a teacher that is passed as an object has the precision that it was given; leave this key out")
        return self

    def build(self) -> Teacher:
        """Raises UserError: there is nothing to load."""
        raise UserError(
            "a teacher of type 'own' is an object that only Python can pass: "
            'amradio.distill(recipe, teachers={"name": teacher}), where teacher is an amradio.teachers.Teacher'
        )
