#!/usr/bin/env python
"""Writes the reference of every key of recipes and of evaluation files into docs/, from the settings' own descriptions.

    python tools/make_reference.py            # rewrites what follows the marker
    python tools/make_reference.py --check    # says whether they are up to date

What stands above the marker is written by hand and left alone.
"""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pydantic
from pydantic.fields import FieldInfo
from written_documents import main

from amradio.config import Settings
from amradio.downstream.detection.settings import DetectionRecipe
from amradio.downstream.vlm.settings import VlmRecipe
from amradio.engine.settings import RateSettings
from amradio.evaluation.suite import Suite
from amradio.labelled.instances import InstancesSettings
from amradio.later import annotation_of
from amradio.recipe import Recipe
from amradio.teachers.settings import TeacherSettings

DOCUMENTS = Path(__file__).parents[1] / "docs"
MARKER = "<!-- Below: written by tools/make_reference.py; change the descriptions in the code instead. -->"
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "at least"}


class Page(NamedTuple):
    """A document with a generated part."""

    file: Path
    title: str
    root: type[Settings]
    elsewhere: tuple[type[Settings], ...]
    """Settings that another page describes, with all below them."""


PAGES = (
    Page(DOCUMENTS / "recipes.md", "Recipe", Recipe, (Suite,)),
    Page(DOCUMENTS / "evaluations.md", "Evaluation file", Suite, (TeacherSettings,)),
    Page(DOCUMENTS / "detection.md", "Recipe of a detector", DetectionRecipe, (InstancesSettings, RateSettings)),
    Page(DOCUMENTS / "vlm.md", "Recipe of a vision-language model", VlmRecipe, ()),
)


def reference(page: Page) -> str:
    """The generated part: one section for each settings class, in the order in which a file names them."""
    return "\n\n".join([MARKER, *(section(title, found) for title, found in sections(page))]) + "\n"


def sections(page: Page) -> Iterator[tuple[str, type[Settings]]]:
    """(title, settings) of the page's root and of all below it, each class once, where it comes first."""
    seen: set[type[Settings]] = set()
    waiting: list[tuple[str, type[Settings]]] = [(page.title, page.root)]
    while waiting:
        key, found = waiting.pop(0)
        if found in seen or issubclass(found, page.elsewhere):
            continue
        seen.add(found)
        common = shared_by_types(found)
        if common is not None and common not in seen:
            seen.add(common)
            yield f"{key}: every type", common
        yield title_of(key, found), found
        below = []
        for name, field in found.model_fields.items():
            inner = name if found is page.root else f"{key}.{name}"
            below += [(inner + suffix, each) for suffix, each in settings_in(annotation_of(field))]
        waiting = below + waiting


def title_of(key: str, settings: type[Settings]) -> str:
    """`data.train: type folder`."""
    tag = settings.model_fields.get("type")
    return f"{key}: type {tag.default}" if tag is not None else key


def shared_by_types(settings: type[Settings]) -> type[Settings] | None:
    """The first class of settings that holds keys which all types of one kind have (`TeacherSettings`); None where there is none."""
    bases = [base for base in settings.__mro__[1:] if issubclass(base, Settings) and base.model_fields]
    return bases[-1] if "type" in settings.model_fields and bases else None


def settings_in(annotation: Any) -> list[tuple[str, type[Settings]]]:
    """The settings classes that an annotation can hold, each with what its key has more: `.NAME` in a mapping, `.N` in a list."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return settings_in(arguments[0])
    if origin is dict:
        return [(f".NAME{suffix}", found) for suffix, found in settings_in(arguments[1])]
    if origin is list:
        return [(f".N{suffix}", found) for suffix, found in settings_in(arguments[0])]
    if origin in (Union, types.UnionType):
        return [found for argument in arguments for found in settings_in(argument)]
    return [("", annotation)] if isinstance(annotation, type) and issubclass(annotation, Settings) else []


def section(title: str, settings: type[Settings]) -> str:
    """A heading, what the class says of itself, and a table of its keys."""
    lines = [f"### {title}", "", first_paragraph(settings), ""]
    common = shared_by_types(settings)
    shown_above = {"type", *(common.model_fields if common else ())}
    fields = {name: field for name, field in settings.model_fields.items() if name not in shown_above}
    if not fields:
        return "\n".join([*lines, "No keys of its own."])
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {value_of(field)} | {default_of(field)} | {meaning_of(field)} |" for name, field in fields.items()]
    return "\n".join(lines)


def first_paragraph(settings: type[Settings]) -> str:
    """What the class's docstring says before the first empty line."""
    return " ".join((settings.__doc__ or "").split("\n\n")[0].split())


def meaning_of(field: FieldInfo) -> str:
    """The field's description; of a settings class that has one value only, the class's own."""
    inner = settings_in(annotation_of(field))
    said = field.description or (first_paragraph(inner[0][1]) if len(inner) == 1 else "")
    return " ".join(said.split()).replace("|", "\\|")


def value_of(field: FieldInfo) -> str:
    """What may be written there, with its limits."""
    return " ".join(filter(None, (kind_of(annotation_of(field)), limits_of(field.metadata))))


def kind_of(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " ".join(filter(None, (kind_of(arguments[0]), limits_of(arguments[1:]))))
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind_of(argument) for argument in arguments))
    if origin is tuple:
        return f"[{', '.join(kind_of(argument) for argument in arguments)}]"
    if origin is list:
        return f"list of {kind_of(arguments[0])}"
    if origin is dict:
        return f"names and {kind_of(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        tag = annotation.model_fields.get("type")
        return f"`{tag.default}`" if tag is not None else "keys, see below"
    return WORDS.get(annotation, str(annotation))


MOST = 1_000_000_000
"""The upper bound of every count, which the page names once (and that of seeds, 2^63)."""


def limits_of(metadata: Any) -> str:
    """`(> 0, <= 1)`; empty where there are none."""
    parts = [entry for item in metadata for entry in (item.metadata if isinstance(item, FieldInfo) else [item])]
    limits = [(sign, getattr(part, name)) for part in parts for name, sign in LIMITS.items() if getattr(part, name, None) is not None]
    found = [f"{sign} {limit:,}" if isinstance(limit, int) else f"{sign} {limit:g}" for sign, limit in limits if limit < MOST]
    return f"({', '.join(found)})" if found else ""


def default_of(field: FieldInfo) -> str:
    """The default as it would be written in a recipe."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return f"`{written(default)}`"


def written(value: Any) -> str:
    """A value in YAML's flow style; settings that are all default as their type, or `{}`."""
    if isinstance(value, pydantic.BaseModel):
        shown = value.model_dump(exclude_defaults=True)
        tag = type(value).model_fields.get("type")
        if tag is None:
            return written(shown)
        return str(tag.default) if not shown else written({"type": tag.default} | shown)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(each) for each in value) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def outdated() -> dict[Path, str]:
    """{document: what it should be} of those whose generated part is not up to date."""
    found = {}
    for page in PAGES:
        old = page.file.read_text(encoding="utf-8")
        new = old.split(MARKER)[0] + reference(page)
        if new != old:
            found[page.file] = new
    return found


if __name__ == "__main__":
    sys.exit(main(outdated, "make_reference.py", __doc__))
