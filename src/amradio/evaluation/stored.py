"""Results as JSON files keep them: read and checked in one place, so that whoever shows them can rely on their shape."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ..config import Settings, validate
from ..errors import UserError
from ..files import read_json

DETECTION = "detection"
"""The name under which `amradio detect train` stores COCO's numbers, {name: value in %}."""
HELD_OUT = "held_out"
"""The name under which a run stores agreement with the teachers on held-out images, beside the results of its suite."""

Number = Annotated[float, pydantic.Field(allow_inf_nan=True)]
"""NaN where a number could not be measured."""


class _Stored(Settings):
    """What is read of a file; keys that another version wrote are left alone."""

    model_config = pydantic.ConfigDict(extra="ignore")


class _Metric(_Stored):
    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] | None
    headline: bool


class _Details(_Stored):
    by_size: dict[str, dict[Annotated[str, pydantic.Field(pattern=r"^[0-9]{1,9}$")], dict[str, Number]]] = pydantic.Field(
        default_factory=dict
    )


class _Result(_Stored):
    """The keys of `plain(result)` that reports read."""

    metrics: list[_Metric] = pydantic.Field(default_factory=list)
    rows: dict[str, dict[str, Number]]
    counts: dict[str, int] = pydantic.Field(default_factory=dict)
    fingerprint: str = ""
    floors: dict[str, Number] = pydantic.Field(default_factory=dict)
    row_floors: dict[str, dict[str, Number]] = pydantic.Field(default_factory=dict)
    details: _Details = pydantic.Field(default_factory=_Details)


class _HeldOut(_Stored):
    """The content of the file."""

    held_out: dict[str, dict[str, Number]]


def counted(counts: Mapping[str, int]) -> str:
    """`1,024 images, 1 size`: what the numbers of a result are means of, in words; `broken` only where there are some."""
    present = {name.replace("_", " "): count for name, count in counts.items() if count or name != "broken"}
    return ", ".join(f"{count:,} {_one_of(name) if count == 1 else name}" for name, count in present.items())


def _one_of(name: str) -> str:
    for ending, singular in (("sses", "ss"), ("ies", "y"), ("s", "")):
        if name.endswith(ending):
            return name.removesuffix(ending) + singular
    return name


def check_names(results: dict[str, Any]) -> dict[str, Any]:
    """The same results or evaluations by name; ValueError where one has the name of the agreement on held-out images."""
    if HELD_OUT in results:
        raise ValueError(f"no evaluation can be named '{HELD_OUT}': a run stores agreement on held-out images under it; take another name")
    return results


class _Detection(_Stored):
    """The content of the file."""

    detection: dict[str, Number]


def _detection(scores: Mapping[str, float]) -> dict[str, Any]:
    """COCO's numbers as a result of one model."""
    metrics = [
        {"name": name, "title": name.replace("_", " "), "unit": "%", "better": "higher", "headline": name.endswith(("_ap", "_ap50"))}
        for name in scores
    ]
    return {"metrics": metrics, "rows": {"detector": dict(scores)}}


class _Several(_Stored):
    """What `amradio evaluate --json` writes."""

    results: Annotated[dict[str, _Result], pydantic.AfterValidator(check_names)]


def read_results(file: Path) -> dict[str, dict[str, Any]]:
    """{name: result} of a file: one result of a run's suite, all of `amradio evaluate --json`, or a run's `held_out.json`.

    A result has `rows` {model: {metric: value}}; `held_out` is {head/kind: {measure: value}}. Raises UserError where the file is damaged
    or of another shape, with the keys that do not fit.
    """
    content = read_json(file)
    try:
        if file.stem == HELD_OUT:
            validate(_HeldOut, {HELD_OUT: content}, f"{file}: ")
        elif file.stem == DETECTION and "rows" not in content:
            validate(_Detection, {DETECTION: content}, f"{file}: ")
            return {DETECTION: _detection(content)}
        elif "results" in content:
            validate(_Several, content, f"{file}: ")
            return content["results"]
        else:
            validate(_Result, content, f"{file}: ")
    except UserError as error:
        advice = "this is no result as amradio writes it; remove the file, or evaluate again"
        raise UserError(*(f"{problem}; {advice}" for problem in error.problems)) from None
    return {file.stem: content}
