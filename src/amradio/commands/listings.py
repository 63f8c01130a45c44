"""`amradio teachers`, `students`, `recipes`, `schema` and `completion`: what there is. Only the schema of evaluations imports torch."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .. import students, teachers
from ..config import Settings
from ..console import columns, command_text, print_text
from ..errors import UserError, nearest
from ..recipes import shipped
from ..yaml12 import parse_yaml

GAP = "  "
DIALECT = "https://json-schema.org/draft/2020-12/schema"
"""The JSON Schema that pydantic writes."""


def list_teachers(as_json: bool = False) -> None:
    """Prints the well-known teachers of every type: dims, licence, and whether the weights are on this machine."""
    rows = [
        {
            "type": known.kind,
            "model": known.model,
            "million parameters": known.million_parameters,
            "summary": known.summary_dim,
            "spatial": known.spatial_dim,
            "input px": known.input_size or f"any x{known.patch_size}",
            "patch px": known.patch_size,
            "licence": known.licence,
            "here": known.is_here,
        }
        for known in teachers.catalogue()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print("Teachers (* the weights are on this machine)")
    print_text("M: million parameters of the vision tower; summary, spatial: channels; licence: of the weights.")
    print()
    _print_groups([row | {"model": f"{'*' if row['here'] else ' '} {row['model']}"} for row in rows], "model", _about(teachers.TEACHERS))
    types = ", ".join(_type(settings) for settings in teachers.TEACHERS)
    print_text(
        f"Any other model of these types works too, by its name on the hub or from a local folder, e.g. teachers.NAME='{{type: TYPE, "
        f"model: ...}}'. Types: {types}. Download one: hf download MODEL."
    )


def list_students(as_json: bool = False) -> None:
    """Prints every size of every type of student."""
    rows = [
        {
            "type": row.type,
            "size": row.size,
            "channels": row.dim,
            "depth": row.depth or None,
            "attention heads": row.num_heads or None,
            "patch px": row.patch_size,
            "million parameters": round(row.parameters / 1e6, 1),
        }
        for row in students.catalogue()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print("Students. M parameters: millions.\n")
    _print_groups(rows, "size", _about(students.STUDENTS))
    for line in (
        "vit: student='{type: vit, size: SIZE, patch_size: 16}'. Counted with the position table of 2048 px and 4 summary tokens.",
        "timm: student='{type: timm, model: NAME}', with these and any other backbone of timm.",
        "custom: any torch module, in Python: amradio.distill(recipe, student=amradio.students.CustomStudent(module, patch_size=16)).",
    ):
        print_text(line)


def list_recipes(name: str | None = None, as_json: bool = False) -> None:
    """Prints the files that come with the package, with their command, cost and result; or the file `name`, below a line for editors.

    as_json: one document for programs in place of it; of one file with its `content`.

    Raises UserError where there is none of this name.
    """
    entries = shipped()
    if name is not None:
        one = next((entry for entry in entries if entry.name == name.removesuffix(".yaml")), None)
        if one is None:
            raise UserError(f"there is no recipe '{name}'; {nearest(name, [entry.name for entry in entries])}")
        text = one.path.read_text(encoding="utf-8")
        if as_json:
            print(json.dumps(one._asdict() | {"path": str(one.path), "content": parse_yaml(text, one.name)}, indent=1))
            return
        schema = "recipe" if one.kind == "part" else one.kind
        print(f"# yaml-language-server: $schema={schema}.schema.json  (beside this file: amradio schema {schema} > {schema}.schema.json)")
        print(text, end="")
    elif as_json:
        print(json.dumps([entry._asdict() | {"path": str(entry.path)} for entry in entries], indent=1))
    else:
        for kind, title in (
            ("recipe", "Recipes, for `amradio distill NAME`"),
            ("part", "Parts of recipes, for `amradio distill RECIPE NAME`"),
            ("detection", "Recipes of detectors, for `amradio detect train NAME`"),
            ("vlm", "Vision-language models, for `amradio vlm train NAME`"),
            ("evaluation", "Evaluation files, for `amradio evaluate PATH NAME`"),
        ):
            print(f"{title}\n")
            for entry in entries:
                if entry.kind == kind:
                    print(entry.name)
                    print_text(entry.about, "    ", "    ")
                    print(*(command_text(command, "    $", columns()) for command in entry.command.splitlines()), sep="\n")
                    print_text(entry.cost, "    cost:   ", " " * 12)
                    print_text(entry.result, "    result: ", " " * 12)
                    print()
        print_text(
            "Show one, to start your own from: amradio recipes NAME > mine.yaml. A file of the same name in the working folder comes first."
        )


def print_schema(of: Literal["recipe", "evaluation", "detection", "vlm"] = "recipe") -> None:
    """Prints the JSON Schema of a recipe, an evaluation file, or the recipe of a detector or a vision-language model.

    It has what every key does, its range and its default.

    Only `type`s, keys and ranges: what keys say against one another is found by `amradio distill ... --dry-run`.
    """
    if of == "recipe":
        from ..recipe import Recipe as Root
    elif of == "detection":
        from ..downstream.detection.settings import DetectionRecipe as Root
    elif of == "vlm":
        from ..downstream.vlm.settings import VlmRecipe as Root
    else:
        from ..evaluation.suite import Suite as Root
    print(json.dumps({"$schema": DIALECT} | Root.model_json_schema(), indent=1))


def print_completion(shell: str) -> None:
    """Prints a script that completes verbs and options: of bash, zsh or tcsh."""
    import shtab

    from .parser import parser

    print(shtab.complete(parser()[0], shell))


def _type(settings: type[Settings]) -> str:
    return settings.model_fields["type"].default


def _about(choices: Sequence[type[Settings]]) -> dict[str, str]:
    """{type: what the class says of itself before the first full stop}."""
    return {_type(settings): (settings.__doc__ or "").strip().split("\n")[0].split(". ")[0].rstrip(".") for settings in choices}


def _print_groups(rows: Sequence[Mapping[str, Any]], name: str, about: Mapping[str, str]) -> None:
    """Rows below a heading for each type; a name is never folded: where a line is too short for a row, the row takes two."""
    shown = [key for key in rows[0] if key not in ("type", "here")]
    titles = {key: {"million parameters": "M"}.get(key, key) for key in shown}
    cells = [{key: _cell(row[key]) for key in shown} for row in rows]
    widths = {key: max(len(titles[key]), *(len(cell[key]) for cell in cells)) for key in shown}
    fits = sum(widths.values()) + len(GAP) * len(shown) <= columns()
    previous = None
    for row, cell in zip(rows, cells, strict=True):
        if row["type"] != previous:
            print("" if previous is None else "\n", end="")
            print_text(f"{row['type']}: {about[row['type']]}")
            if fits:
                print(_line(titles, widths, rows[0]))
            previous = row["type"]
        if fits:
            print(_line(cell, widths, rows[0]))
        else:
            print(f"{GAP}{cell[name]}")
            print_text(", ".join(f"{titles[key]} {cell[key]}" for key in shown if key != name and cell[key] != "-"), GAP * 3, GAP * 3)
    print()


def _line(cell: Mapping[str, str], widths: Mapping[str, int], sample: Mapping[str, Any]) -> str:
    """One row; numbers are flush right."""
    parts = [f"{text:>{widths[key]}}" if isinstance(sample[key], int | float) else f"{text:<{widths[key]}}" for key, text in cell.items()]
    return (GAP + GAP.join(parts)).rstrip()


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
