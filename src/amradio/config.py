"""Settings: strict, frozen pydantic models beside the class they set, with bounds on every number."""

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pydantic

from .errors import UserError, brief, shown
from .files import path_problem
from .problems import problems_of
from .yaml12 import write_yaml


class Settings(pydantic.BaseModel):
    """Base of all settings: unknown keys are refused, types are strict, numbers are finite, nothing changes after it was read.

    The one conversion: a float without a fraction fills a field of integers (`steps=1e3`).
    """

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: _whole(value) if isinstance(key, str) and key in _integer_fields(cls) else value for key, value in data.items()}


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_whole(item) for item in value] if isinstance(value, list) else value


@functools.cache
def _integer_fields(cls: type[Settings]) -> frozenset[str]:
    """The fields that hold integers, or lists of them, and no floats."""
    leaves = {name: set(leaf_types(field.annotation)) for name, field in cls.model_fields.items()}
    return frozenset(name for name, types in leaves.items() if int in types and float not in types)


def leaf_types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of, less `Annotated`, unions, lists and tuples; `Literal[...]` is one."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from leaf_types(get_args(annotation)[0])
    elif origin in (Union, types.UnionType, list, tuple):
        for argument in get_args(annotation):
            yield from leaf_types(argument)
    else:
        yield annotation


SettingsType = TypeVar("SettingsType", bound=Settings)

AsTuple = pydantic.BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
"""Lets a YAML list fill a tuple field: `Annotated[tuple[float, float], AsTuple]`."""

Positive = Annotated[int, pydantic.Field(gt=0, le=1_000_000_000)]
"""A count: 1 to a thousand million."""
Natural = Annotated[int, pydantic.Field(ge=0, le=1_000_000_000)]
"""A count that may be 0."""
Pixels = Annotated[int, pydantic.Field(gt=0, le=65_536)]
"""The side of an image: JPEG's limit."""


def _one_problem(value: Any, check: pydantic.ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except pydantic.ValidationError:
        raise ValueError(f"should be 1 to 65,536 px, the side of a square, or [height, width], found {brief(value)}") from None


ImageSides = Annotated[Pixels | Annotated[tuple[Pixels, Pixels], AsTuple], pydantic.WrapValidator(_one_problem)]
"""The size of an image in px: the side of a square, or [height, width]."""
Side = Annotated[float, pydantic.Field(ge=0, le=65_536)]
"""The side of a part of an image, px."""
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
"""What torch's generators take, less the sign."""
SceneSize = Annotated[int, pydantic.Field(ge=16, le=4096)]
"""The side of a generated scene."""
Width = Annotated[int, pydantic.Field(ge=1, le=100_000)]
"""Channels of a layer (ViT-22B: 24,576)."""
Depth = Annotated[int, pydantic.Field(ge=1, le=256)]
"""Layers, or blocks (ViT-22B: 48)."""
Heads = Annotated[int, pydantic.Field(ge=1, le=1000)]
"""Heads of an attention layer."""
Threads = Annotated[int, pydantic.Field(ge=1, le=1024)]
"""More than any machine has cores."""
ReadingProcesses = Annotated[
    Annotated[int, pydantic.Field(ge=0, le=1024)] | None,
    pydantic.Field(description="Processes that read images, for each process of a run; 0: none, null: one for each core but one."),
]
"""The key `num_workers`, with its description."""
Device = Annotated[str, pydantic.Field(description="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")]
"""The key `device`, with its description; `devices.find_device` reads it."""
Autocast = Annotated[
    Literal["auto", "float32", "bfloat16"],
    pydantic.Field(
        description="Autocast precision; auto is bfloat16 where the device computes it in hardware (GPUs since Ampere, CPUs with AMX or "
        "AVX512-BF16)."
    ),
]
"""The key `precision` of what computes, with its description; `devices.autocast_dtype` reads it."""
Rate = Annotated[float, pydantic.Field(ge=0, le=1000)]
"""A learning rate that may be 0."""
LearningRate = Annotated[float, pydantic.Field(gt=0, le=1000)]
"""A learning rate."""
Decay = Annotated[float, pydantic.Field(ge=0, le=1000)]
"""A weight decay."""
Momentum = Annotated[float, pydantic.Field(ge=0, lt=1)]
"""The decay of a running average."""
Factor = Annotated[float, pydantic.Field(gt=0, le=1000)]
"""A ratio of sizes."""
Probability = Annotated[float, pydantic.Field(ge=0, lt=1)]
"""A probability, or a deviation, below 1."""
WindowSide = Annotated[int, pydantic.Field(ge=2, le=1024)]
"""Patches along the side of a window."""
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
"""A probability or a share."""
Weight = Annotated[float, pydantic.Field(ge=0, le=1e6)]
"""A weight of a loss or a source. A million is beyond every use, and its square is still a float32."""


def sides_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of `ImageSides`."""
    return (size, size) if isinstance(size, int) else size


def size_text(sides: tuple[int, int]) -> str:
    """`48` of a square, `48x64` of another (height, width)."""
    return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}x{sides[1]}"


def _check_path(text: str) -> str:
    problem = path_problem(text)
    if problem:
        raise ValueError(problem)
    return text


UserPath = Annotated[str, pydantic.AfterValidator(_check_path)]
"""A path of the user's as it was written; `files.user_path` makes a path of it where it is used."""


def one_of(choices: Sequence[type[Settings]]) -> Any:
    """The tagged union of `choices` by their field `type`; a bare word stands for `{type: word}`, and a former name for the present one."""
    if len(choices) == 1:
        union: Any = choices[0]
    else:
        union = Annotated[Union[tuple(choices)], pydantic.Field(discriminator="type")]  # noqa: UP007
    words = [cls.model_fields["type"].default for cls in choices if all(not field.is_required() for field in cls.model_fields.values())]
    written = union | Literal[tuple(words)] if words else union
    return Annotated[union, pydantic.BeforeValidator(_bare_word, json_schema_input_type=written)]


FORMER_TYPES = {"own": "custom"}
"""Types that had another name in released recipes and model folders."""


def _bare_word(value: Any) -> Any:
    value = {"type": value} if isinstance(value, str) else value
    if isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] in FORMER_TYPES:
        return value | {"type": FORMER_TYPES[value["type"]]}
    return value


def defaults(cls: type[Settings]) -> dict[str, Any]:
    """The defaults of `cls` as a mapping, so that `loss.spatial.beta=2` changes one key of a default and not the whole of it."""
    fields = {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items() if not field.is_required()}
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, list) else value


def validate(cls: type[SettingsType], data: Mapping[str, Any], where: str = "") -> SettingsType:
    """Builds settings from a mapping; raises UserError with every problem, each with its key and the nearest name."""
    unwritable = [f"{where}{key}: {problem}" for key, problem in _unwritable(data)]
    if unwritable:
        raise UserError(*unwritable)
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        raise UserError(*problems_of(cls, data, error, where)) from None


def _unwritable(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts, keys included, that no file can hold."""
    if isinstance(data, str):
        if "\0" in data:
            yield key, f"a text cannot contain a NUL byte, found '{shown(data[:60])}'"
        elif any("\ud800" <= character <= "\udfff" and not "\udc80" <= character <= "\udcff" for character in data):
            yield key, f"a text cannot contain half of a surrogate pair, found '{shown(data[:60])}'"
    elif isinstance(data, Mapping):
        for part, value in data.items():
            below = f"{key}.{shown(part)}" if key else shown(part)
            yield from _unwritable(part, below) if isinstance(part, str) else ()
            yield from _unwritable(value, below)
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _unwritable(value, f"{key}.{number}" if key else str(number))


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that reads back to equal settings."""
    return write_yaml(settings.model_dump(mode="json"))
