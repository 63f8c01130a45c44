"""The options of `amradio embed`, made from the settings that the Python function takes."""

import argparse
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from ..config import leaf_types
from ..embedding.settings import EmbedSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds one option for each key of `EmbedSettings`; its help is the key's description, with the default."""
    for name, field in EmbedSettings.model_fields.items():
        types = _types(field)
        choices = get_args(types[0]) if len(types) == 1 and get_origin(types[0]) is Literal else None
        metavar = "A,B" if _is_list(field) else "N" if int in types else "NAME"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int if types == [int] else str,
            choices=choices,
            metavar=None if choices else metavar,
            help=_help(field),
        )


def chosen_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were written on the command line, by key, with the types of the settings."""
    written = {name: value for name in EmbedSettings.model_fields if (value := getattr(options, name)) is not None}
    return {name: _value(EmbedSettings.model_fields[name], value) for name, value in written.items()}


def _value(field: FieldInfo, value: Any) -> Any:
    if _is_list(field):
        return [part for part in value.split(",") if part]
    return int(value) if int in _types(field) and str(value).isdecimal() else value


def _types(field: FieldInfo) -> list[Any]:
    """The types of a key, less null."""
    return [leaf for leaf in leaf_types(field.annotation) if leaf is not type(None)]


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _help(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).rstrip(".").replace("%", "%%")
    text = text[:1].lower() + text[1:]
    return f"{text} (default: {field.default})" if field.default not in (None, ()) else text
