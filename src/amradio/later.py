"""Settings whose class takes seconds to import: it is imported when a value of it is read, or its keys are listed."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import core_schema


@dataclass(frozen=True)
class Later:
    """`Annotated[Any, Later("module:Class")]` is null or that class of settings; its problems are reported with all others."""

    target: str
    """`module:Class`."""
    from_text: Callable[[str, Any], Any] | None = None
    """From a text in place of the settings, and the class, to a mapping; None where a text is no settings."""

    @property
    def settings(self) -> Any:
        """The class."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)

    def read(self, value: Any) -> Any:
        """Null or the settings; raises pydantic's error with every problem."""
        if value is None:
            return None
        if isinstance(value, str) and self.from_text is not None:
            value = self.from_text(value, self.settings)
        return self.settings.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {"anyOf": [handler(self.settings.__pydantic_core_schema__), {"type": "null"}]}


def annotation_of(field: FieldInfo) -> Any:
    """The type of a field, also where it is imported later."""
    later = next((entry for entry in field.metadata if isinstance(entry, Later)), None)
    return later.settings | None if later is not None else field.annotation
