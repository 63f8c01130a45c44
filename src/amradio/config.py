"""Settings: strict, frozen pydantic models beside the class they set; YAML files and `key=value` words merged left to right."""

import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

from .errors import UserError, nearest
from .recipes import locate


class Settings(pydantic.BaseModel):
    """Base of all settings: unknown keys are refused, types are strict, nothing changes after it was read."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)


SettingsType = TypeVar("SettingsType", bound=Settings)

AsTuple = pydantic.BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
"""Lets a YAML list fill a tuple field: `Annotated[tuple[float, float], AsTuple]`."""


def one_of(choices: Sequence[type[Settings]]) -> Any:
    """The tagged union of `choices` by their field `type`; a bare word stands for `{type: word}`."""
    if len(choices) == 1:
        union: Any = choices[0]
    else:
        union = Annotated[Union[tuple(choices)], pydantic.Field(discriminator="type")]  # noqa: UP007
    return Annotated[union, pydantic.BeforeValidator(_bare_word)]


def _bare_word(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: `3e-4` is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:float"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parses YAML; raises UserError that names `where` and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{where}:{line} not valid YAML ({getattr(error, 'problem', None) or error})") from None


def defaults(cls: type[Settings]) -> dict[str, Any]:
    """The defaults of `cls` as a mapping, so that `loss.spatial.beta=2` changes one key of a default and not the whole of it."""
    fields = {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items() if not field.is_required()}
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, list) else value


def read_words(words: Sequence[str], start: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Merges YAML files and `key=value` words, left to right, into one mapping, over `start` (see `defaults`).

    A mapping whose `type` changes starts afresh; a value of null takes an entry away. Raises UserError with all problems at once.
    """
    merged: dict[str, Any] = dict(start or {})
    problems: list[str] = []
    for word in words:
        try:
            merged = merge(merged, _read_word(word))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return merged


def _read_word(word: str) -> dict[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or "/" in key or key.endswith((".yaml", ".yml")):
        return _read_file(word)
    if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", key):
        raise UserError(f"'{word}': '{key}' is not a key; write words as key.part=value")
    found: Any = parse_yaml(value, f"'{word}'")
    for part in reversed(key.split(".")):
        found = {part: found}
    return found


def _read_file(word: str) -> dict[str, Any]:
    path = locate(word)
    found = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(found, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, found {type(found).__name__}")
    return found


def merge(old: Any, new: Any) -> Any:
    """`new` over `old`: mappings are merged key by key, everything else is replaced. `{0: x}` over a list, or over nothing, sets item 0."""
    if isinstance(old, str) and isinstance(new, Mapping) and "type" not in new:
        old = {"type": old}  # `loss.summary=cosine` and then `loss.summary.beta=2`
    if (isinstance(old, list) or old is None) and isinstance(new, Mapping) and new and all(str(k).isdigit() for k in new):
        items = list(old or ())
        for key, value in new.items():
            index = int(key)
            if index > len(items):
                raise UserError(f"item {index}: the list has {len(items)} items")
            items[index : index + 1] = [merge(items[index] if index < len(items) else None, value)]
        return items
    if old is None and isinstance(new, Mapping):
        old = {}
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if "type" in new and new["type"] != old.get("type", new["type"]):
        return dict(new)
    merged = dict(old)
    for key, value in new.items():
        merged[key] = merge(old.get(key), value)
        if value is None and key in old and isinstance(old[key], Mapping):
            del merged[key]
    return merged


def validate(cls: type[SettingsType], data: Mapping[str, Any], where: str = "") -> SettingsType:
    """Builds settings from a mapping; raises UserError with every problem, each with its key and the nearest name."""
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        raise UserError(*(_problem(cls, data, detail, where) for detail in error.errors())) from None


def _problem(cls: type[Settings], data: Any, detail: Any, where: str) -> str:
    loc = [part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    key = where + ".".join(_visible(data, loc))
    kind, found = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return f"{key}: there is no such key; {nearest(str(loc[-1]), _names_at(cls, loc[:-1]))}"
    if kind == "missing":
        return f"{key}: this key is required and missing"
    if kind == "union_tag_invalid":
        return f"{key}: there is no type '{detail['ctx']['tag']}'; {nearest(detail['ctx']['tag'], _tags(detail))}"
    if kind == "union_tag_not_found":
        return f"{key}: 'type' is missing; there is: {', '.join(_types_at(cls, loc))}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, found {found!r} ({type(found).__name__})"


def _tags(detail: Any) -> list[str]:
    expected = detail.get("ctx", {}).get("expected_tags", "")
    return re.findall(r"'([^']+)'", expected)


def _types_at(cls: Any, loc: Sequence[Any]) -> list[str]:
    """The words that `type` can be at `loc` below the settings class `cls`."""
    return [found.model_fields["type"].default for found in _classes_at(cls, loc) if "type" in found.model_fields]


def _visible(data: Any, loc: Sequence[Any]) -> list[str]:
    """The location without the tags of unions, which pydantic puts in and the user never wrote."""
    parts: list[str] = []
    for part in loc:
        if isinstance(data, Mapping):
            is_tag = part not in data and part == data.get("type")
            if is_tag:
                continue
            data = data.get(part)
        elif isinstance(data, str) and part == data:
            continue
        elif isinstance(data, Sequence) and isinstance(part, int) and part < len(data):
            data = data[part]
        parts.append(str(part))
    return parts


def _names_at(cls: Any, loc: Sequence[Any]) -> list[str]:
    """The field names that are legal at `loc` below the settings class `cls`."""
    return sorted({name for found in _classes_at(cls, loc) for name in found.model_fields})


def _classes_at(cls: Any, loc: Sequence[Any]) -> list[type[Settings]]:
    """The settings classes that can stand at `loc` below the settings class `cls`."""
    here: Any = cls
    for part in loc:
        here = _step_into(_settings_in(here), part)
        if here is None:
            return []
    return [found for found in _settings_in(here) if isinstance(found, type) and issubclass(found, Settings)]


def _settings_in(annotation: Any) -> list[Any]:
    """The settings classes and containers that an annotation can be."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _settings_in(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [found for argument in get_args(annotation) for found in _settings_in(argument)]
    return [annotation]


def _step_into(candidates: Sequence[Any], part: Any) -> Any:
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            if part in candidate.model_fields:
                return candidate.model_fields[part].annotation
            tag = candidate.model_fields.get("type")
            if tag is not None and tag.default == part:
                return candidate
        elif get_origin(candidate) in (dict, Mapping):
            return get_args(candidate)[1]
        elif get_origin(candidate) in (list, tuple):
            return get_args(candidate)[0]
    return None


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that reads back to equal settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)
