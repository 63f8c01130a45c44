"""The classes of settings that a recipe can hold, found by walking over the annotations."""

import inspect

from amradio.config import Settings


def settings_below(cls: type[Settings], found: set[type[Settings]]) -> set[type[Settings]]:
    """Every settings class that a recipe can hold."""
    if cls in found:
        return found
    found.add(cls)
    waiting = [field.annotation for field in cls.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        if inspect.isclass(annotation) and issubclass(annotation, Settings):
            settings_below(annotation, found)
        waiting += getattr(annotation, "__args__", ())
    return found
