"""The settings that a recipe can hold, found by walking over the annotations, and those in which two recipes differ."""

import inspect
from collections.abc import Iterator

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


def name_of(cls: type[Settings], field: str) -> str:
    """`Class.field`, of the class that declares the field."""
    declaring = [base for base in cls.__mro__ if field in inspect.get_annotations(base)]
    return f"{declaring[-1].__name__}.{field}" if field != "type" else f"{cls.__name__}.type"


def all_settings(value: object) -> Iterator[tuple[str, object]]:
    """Every setting below `value` that has a value, by name, with the value where it is a leaf."""
    if isinstance(value, Settings):
        for field in type(value).model_fields:
            yield name_of(type(value), field), getattr(value, field)
            yield from all_settings(getattr(value, field))
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from all_settings(item)


def changed_settings(first: Settings, second: Settings) -> set[str]:
    """The names of the settings in which two recipes differ."""
    values: tuple[dict, dict] = ({}, {})
    for recipe, into in ((first, values[0]), (second, values[1])):
        for name, value in all_settings(recipe):
            into.setdefault(name, []).append(value)
    return {name for name in values[0] | values[1] if values[0].get(name) != values[1].get(name)}
