"""Libraries of extras, what other libraries may do with the files of a model, and what of their errors is passed on."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from .errors import UserError

NO_CODE = "it asks to run code from its folder or from the hub, and no code of a model is ever run here; take a model that needs none"
NO_PICKLE = "which a file of weights never needs; nothing was run; take the model's safetensors file if there is one"
LONGEST = 400
"""Characters of a library's message that are passed on."""
EXTRA_OF = {"transformers": ("transformers", "train"), "open_clip": ("open_clip_torch", "train")}
"""Module -> (name of its package, the extra of amradio that installs it)."""
PACKAGE_OF = {"mteb": "mteb", "clip_benchmark": "clip-benchmark", "webdataset": "webdataset"}
"""Module -> name of its package, for those of no extra."""


def need(module: str, where: str) -> Any:
    """The module of an optional library; raises UserError, after `where`, with the `pip install` that brings it where it is missing."""
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != top:
            raise
        package, extra = (PACKAGE_OF[top], None) if top in PACKAGE_OF else EXTRA_OF[top]
        advice = package if extra is None else f"'amradio[{extra}]'"
        raise UserError(f"{where}: it takes the library '{package}', which is not installed; pip install {advice}") from None


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message of one line; advice to run a stranger's code is not passed on."""
    text = str(error).strip()
    if "trust_remote_code" in text or "custom code" in text:
        return NO_CODE
    if "weights_only" in text.lower() or "weights only" in text.lower():
        wanted = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:global|function|class) ([\w.]+\.\w+)", text)
        what = f"'{wanted[1]}'" if wanted else "more than tensors and plain values"
        return f"it asks for {what} on being read, {NO_PICKLE}"
    line = next(iter(text.splitlines()), "") or type(error).__name__
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


@contextmanager
def no_remote_code() -> Iterator[None]:
    """Within it transformers, and every library that reads through it, executes no module of a folder or of the hub, and asks nobody.

    Each call passes `trust_remote_code=False` where the library has such an argument; this closes the ways that do not pass it on
    (OpenCLIP's text towers and tokenizers). Such a request ends in an error of the library.
    """
    import transformers.dynamic_module_utils as modules

    before: dict[str, Any] = {name: getattr(modules, name) for name in ("get_class_in_module", "TIME_OUT_REMOTE_CODE")}
    modules.get_class_in_module = _refuse
    modules.TIME_OUT_REMOTE_CODE = 0  # seconds for which the library would wait for an answer on the terminal
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(modules, name, value)


def _refuse(class_name: str, *_: object, force_reload: bool = False) -> NoReturn:
    """In the place, and with the arguments, of the library's `get_class_in_module`."""
    del class_name, force_reload
    raise ValueError(NO_CODE)


def wants_code(config: Any) -> list[str]:
    """Keys of a model's configuration, dotted, that ask for a stranger's code or kernels or for a reader of quantised weights."""
    keys: list[str] = []
    _search(config, "", keys, 0)
    return keys


def _search(config: Any, start: str, keys: list[str], depth: int) -> None:
    if depth > 20:  # no configuration is deeper
        return
    if isinstance(config, list):
        for number, item in enumerate(config[:1000]):
            _search(item, f"{start}{number}.", keys, depth + 1)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        kernel = str(key).endswith(("attn_implementation", "experts_implementation")) and _names_a_repository(value)
        if kernel or (key == "trust_remote_code" and value) or (key in ("quantization_config", "compression_config") and value):
            keys.append(f"{start}{key}")
        else:
            _search(value, f"{start}{key}.", keys, depth + 1)


def _names_a_repository(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else [value]
    return any(isinstance(text, str) and ("/" in text or ":" in text) for text in values)


def refuse_code(config: Any, where: str) -> None:
    """Raises UserError, a sentence for each key of `wants_code`, after `where` (the file)."""
    reasons = {"quantization_config": "its weights are quantised, which are not read here; give the original weights"}
    wrong = [f"{where}: {key}: {reasons.get(key.rpartition('.')[2], NO_CODE)}" for key in wants_code(config)]
    if wrong:
        raise UserError(*wrong)


__all__ = ["EXTRA_OF", "NO_CODE", "NO_PICKLE", "PACKAGE_OF", "first_line", "need", "no_remote_code", "refuse_code", "wants_code"]
