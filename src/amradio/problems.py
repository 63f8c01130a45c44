"""pydantic's complaints as messages: the key as the user wrote it, what was found, and how to fix it."""

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import pydantic

from .errors import brief, near_names, nearest, shown
from .later import annotation_of

SYNONYMS = {
    "learning_rate": ("lr", "rate", "base_lr", "max_lr"),
    "final_learning_rate": ("min_lr", "final_lr"),
    "weight_decay": ("wd", "decay"),
    "warmup_steps": ("warmup", "num_warmup_steps"),
    "batch_size": ("bs", "batch", "per_device_train_batch_size"),
    "epsilon": ("eps", "adam_epsilon"),
    "clip": ("grad_clip", "clip_grad", "max_grad_norm", "gradient_clipping"),
    "steps": ("epochs", "iterations", "iters", "num_steps", "max_steps"),
    "accumulate": ("gradient_accumulation_steps", "accum", "accum_freq"),
    "image_size": ("resolution", "img_size", "size", "input_size"),
    "num_workers": ("workers",),
    "out": ("output", "output_dir", "dir", "save_dir", "logdir"),
    "precision": ("amp", "fp16", "bf16", "mixed_precision"),
    "device": ("gpu", "gpus", "accelerator"),
    "dim": ("width", "embed_dim", "hidden_size"),
    "depth": ("layers", "num_layers", "num_hidden_layers"),
    "num_heads": ("heads", "num_attention_heads"),
    "model": ("arch", "architecture", "backbone"),
    "ema": ("ema_decay",),
    "seed": ("random_seed",),
    "log_every": ("log_interval", "log_freq"),
    "checkpoint_every": ("save_every", "save_steps", "checkpoint_interval"),
    "track": ("tensorboard",),
    "evaluate": ("eval", "evaluation", "val"),
    "path": ("folder", "root", "dir"),
}
"""Names by which other programs know our keys."""


FLAGS = {
    "data.train.path": ("data", "data_dir", "data_path", "dataset", "train_dir", "train_data", "image_folder", "input", "input_dir"),
    "student": ("model", "arch", "architecture", "backbone", "network"),
    "out": ("o", "output", "output_dir", "out_dir", "save_dir", "logdir", "log_dir", "exp_dir", "work_dir"),
    "data.num_workers": ("j", "workers"),
    "stages.0.partitions.0.batch_size": ("b",),
}
"""Flags of other trainers that no key has as its last word -> the key of a recipe; the rest is found by `SYNONYMS`."""


class _Location(NamedTuple):
    """Where a complaint is: the key as it was written, the settings classes that can stand there, and the complaint's last word."""

    key: str
    classes: Sequence[type[pydantic.BaseModel]]


def problems_of(cls: type[pydantic.BaseModel], data: Any, error: pydantic.ValidationError, where: str = "") -> list[str]:
    """One sentence for every key with a problem; the alternatives of a union are one problem."""
    groups: dict[str, list[Any]] = {}
    for detail in error.errors(include_url=False):
        location = _locate(cls, data, detail)
        groups.setdefault(location.key, []).append((location, detail))
    return [_problem(cls, where + key if key else where.removesuffix(": "), details, _beside(data, key)) for key, details in groups.items()]


def _beside(data: Any, key: str) -> list[str]:
    """Names in the mapping that holds `key`, which have a type of their own: one may have been meant by a key that has none."""
    *parents, name = key.split(".")
    for parent in parents:
        data = data.get(parent) if isinstance(data, Mapping) else None
    others = data.items() if isinstance(data, Mapping) else ()
    return [str(other) for other, value in others if other != name and isinstance(value, Mapping) and "type" in value]


def _problem(cls: type[pydantic.BaseModel], key: str, details: Sequence[tuple[_Location, Any]], others: Sequence[str]) -> str:
    prefix = f"{key}: " if key else ""
    for location, detail in details:
        kind, name = detail["type"], str(detail["loc"][-1]) if detail["loc"] else ""
        if kind == "extra_forbidden":
            return f"{prefix}there is no such key; {_key_hint(cls, name, location.classes)}"
        if kind == "missing":
            return f"{prefix}this key is required and missing"
        if kind == "union_tag_invalid":
            return f"{prefix}there is no type {brief(detail['ctx']['tag'])}; {_type_hint(str(detail['ctx']['tag']), location.classes)}"
        if kind == "union_tag_not_found":
            near = near_names(key.rpartition(".")[2], others)
            hint = f"did you mean {' or '.join(repr(other) for other in near)}? If it is a new one: " if near else ""
            return _without_type(prefix + hint, detail["input"], location.classes)
        if kind in ("value_error", "assertion_error"):
            return prefix + detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return prefix + _expected([detail for _, detail in details])


def _without_type(prefix: str, value: Any, classes: Sequence[type[pydantic.BaseModel]]) -> str:
    names = ", ".join(_types(classes))
    if isinstance(value, Mapping):
        return f"{prefix}'type' is missing; there is: {names}"
    return f"{prefix}should be a type or a mapping with a type, found {_found(value)}; there is: {names}"


_PHRASES = (
    (r"a valid dictionary( or (instance|object)\b.*)?|a valid mapping", "a mapping of keys to values"),
    (r"a valid string", "a text"),
    (r"a valid (list|tuple)", "a list"),
    (r"a valid integer", "an integer"),
    (r"a valid number", "a number"),
    (r"a valid boolean", "true or false"),
    (r"a finite number", "a finite number"),
)


def _expected(details: Sequence[Any]) -> str:
    """`should be an integer or 'own', found 'big'`."""
    wanted: list[str] = []
    others: list[str] = []
    for detail in details:
        message = detail["msg"]
        message = re.sub(
            r"^(Dictionary|List|Tuple|Set|Value|String) should have (.*?)( after validation)?, not \d+$", r"Input should have \2", message
        )
        match = re.match(r"Input should (be )?(.*)", message, re.S)
        if match is None:
            others.append(message[0].lower() + message[1:])
            continue
        phrase = match[2] if match[1] else message.removeprefix("Input should ")
        phrase = next((plain for pattern, plain in _PHRASES if re.fullmatch(pattern, phrase)), phrase)
        if phrase not in wanted:
            wanted.append(phrase)
    shown_value = _found(details[0].get("input"), numbers=any("_type" in d["type"] and d["type"] != "string_type" for d in details))
    text = ("should be " + " or ".join(wanted) if wanted else "; ".join(dict.fromkeys(others))).replace("should be have", "should have")
    return f"{text}, found {shown_value}"


def _found(value: Any, numbers: bool = False) -> str:
    if value is None:
        return "nothing (null)"
    if numbers and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?|true|false|null", value):
        return f"the text {brief(value)} (take its quotes away)"
    return brief(value)


def _key_hint(cls: type[pydantic.BaseModel], name: str, classes: Sequence[type[pydantic.BaseModel]]) -> str:
    names = {field for settings in classes for field in settings.model_fields}
    known = [key for key, others in SYNONYMS.items() if name.lower() in others and key in names]
    if known:
        return "did you mean " + " or ".join(f"'{key}'" for key in known) + "?"
    if near_names(name, names) or not names:
        return nearest(name, names)
    wanted = {name, *(key for key, others in SYNONYMS.items() if name.lower() in others)}
    elsewhere = [key for key in _keys(cls) if key.rpartition(".")[2] in wanted]
    if elsewhere:
        return "did you mean " + " or ".join(f"'{key}'" for key in elsewhere[:2]) + "?"
    return nearest(name, names)


def key_of_flag(cls: type[pydantic.BaseModel], flag: str) -> str | None:
    """The key of the settings `cls` that a command line flag stands for: `--lr` for `optimizer.learning_rate`; None where there is none.

    flag: as it was written, with or without its dashes.
    """
    name = flag.lstrip("-").replace("-", "_").lower()
    keys = list(_keys(cls))
    key_of_name = next((key for key, flags in FLAGS.items() if name in flags and key.partition(".")[0] in keys), None)
    if key_of_name is None and name.replace("__", ".") in keys:
        return name.replace("__", ".")
    wanted = [name, *(key for key, others in SYNONYMS.items() if name in others)]
    return key_of_name or next((key for last in wanted for key in keys if key.rpartition(".")[2] == last), None)


def _keys(cls: type[pydantic.BaseModel]) -> Iterator[str]:
    """Keys of the settings tree, the shallow ones first; `0` stands for an item of a list, unions and names of the user's are left out."""
    waiting: list[tuple[str, Any]] = [("", cls)]
    for prefix, here in waiting:
        for name, field in here.model_fields.items():
            yield prefix + name
            kind, item = _unwrapped(annotation_of(field)), ""
            if get_origin(kind) is list:
                kind, item = _unwrapped(get_args(kind)[0]), ".0"
            if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) and prefix.count(".") < 6:
                waiting.append((f"{prefix}{name}{item}.", kind))


def _unwrapped(annotation: Any) -> Any:
    """The one thing that an annotation can be besides None."""
    options = [option for option in _options(annotation) if option is not type(None)]
    return options[0] if len(options) == 1 else None


def _type_hint(tag: str, classes: Sequence[type[pydantic.BaseModel]]) -> str:
    names = _types(classes)
    hint = nearest(tag, names)
    by_model = "timm" in names and re.fullmatch(r"[a-z][a-z0-9]*(_?[a-z0-9]+)*(\.[\w-]+)?", tag) and len(tag) > 4
    if by_model and hint.startswith("there is"):
        return f"{hint}; a model of timm is written {{type: timm, model: {shown(tag[:60])}}}"
    return hint


def _types(classes: Sequence[type[pydantic.BaseModel]]) -> list[str]:
    """The words that `type` can be."""
    return [settings.model_fields["type"].default for settings in classes if "type" in settings.model_fields]


def _locate(cls: type[pydantic.BaseModel], data: Any, detail: Any) -> _Location:
    """Follows pydantic's location, which also contains tags and members of unions that the user never wrote."""
    options, parts, tagged = [cls], [], False
    loc = detail["loc"]
    for number, part in enumerate(loc):
        classes = _classes(options)
        by_tag = [member for member in classes if "type" in member.model_fields and member.model_fields["type"].default == part]
        if by_tag and len(classes) > 1 and not tagged:
            options, tagged = by_tag, True
            continue
        tagged = False
        is_last = number == len(loc) - 1
        if (isinstance(data, Mapping) and part in data) or (
            isinstance(data, Sequence) and not isinstance(data, str) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]
        elif isinstance(data, str) and any(_below(member, part) for member in options):
            pass  # within the file that this text names
        elif not (is_last and detail["type"] in ("missing", "extra_forbidden")):
            continue  # a member of a union, a function, `[key]`
        parts.append(shown(part if isinstance(part, int) else str(part)[:60]))
        if not (is_last and detail["type"] == "extra_forbidden"):
            options = [option for member in options for option in _below(member, part)]
    return _Location(".".join(parts), _classes(options))


def _classes(options: Sequence[Any]) -> list[type[pydantic.BaseModel]]:
    return [option for option in options if isinstance(option, type) and issubclass(option, pydantic.BaseModel)]


def _options(annotation: Any) -> list[Any]:
    """The settings classes, containers and plain types that an annotation can be."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [annotation]


def _below(option: Any, part: Any) -> list[Any]:
    """What can stand at `part` below one of the options."""
    if isinstance(option, type) and issubclass(option, pydantic.BaseModel):
        return _options(annotation_of(option.model_fields[part])) if part in option.model_fields else []
    if get_origin(option) in (dict, Mapping):
        return _options(get_args(option)[1])
    if get_origin(option) in (list, tuple) and get_args(option):
        return _options(get_args(option)[0])
    return []
