"""Checks of a teacher's folder before a library reads it: its files are whole, ask for no code, and promise no more than is there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..files import read_json
from ..libraries import refuse_code
from ..tensors import SLACK, TooManyError, at_most, held_in

if TYPE_CHECKING:
    from .loading import Source

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Of transformers' image processors; the first that is there is read."""
CONFIGS = ("config.json", "open_clip_config.json", *PROCESSORS)
"""Files that describe how a model is built and how its images are prepared."""
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "open_clip*.bin")
LARGEST_NUMBER = 20_000_000
"""Beyond any size of a layer, an image or a vocabulary."""
DEPTHS = ("num_hidden_layers", "num_layers", "depth", "layers", "depths")
"""Keys of numbers of layers, each of which has a tensor at least."""
OF_INTEREST = ("size", "dim", "width", "heads", "patches", "tokens", "registers", "channels", "layers", "depth", "length", "num_")
"""Parts of the keys whose numbers are sizes; others may be seeds or angles."""


def check_folder(source: "Source", folder: Path) -> None:
    """Raises UserError, a sentence each, where a file that will be read is damaged, a git-lfs pointer, or asks for code or absurd sizes.

    Weights are looked at only as far as their headers.
    """
    problems: list[str] = []
    for name in (*CONFIGS, *INDICES):
        if (folder / name).exists() or (folder / name).is_symlink():
            problems += _problems(lambda file=folder / name: refuse_code(read_json(file), str(file)))
    for file in _weights(folder):
        problems += _problems(lambda file=file: held_in([file]))
    if (folder / "adapter_config.json").exists():
        problems.append(f"{folder / 'adapter_config.json'}: an adapter to another model; merge it, and save the merged model")
    if not problems:
        held = held_in(_weights(folder))
        for name in CONFIGS:
            if (folder / name).is_file():
                problems += [f"{folder / name}: {problem}" for problem in _beyond(read_json(folder / name), "", held.tensors)]
    if problems:
        raise UserError(*(f"{source.where}: {problem}" for problem in problems))


def _weights(folder: Path) -> list[Path]:
    return [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]


def check_tokenizer(where: str, folder: Path) -> None:
    """As `check_folder`, of the files of a tokenizer. where: how messages begin."""
    problems: list[str] = []
    for name in TOKENIZERS:
        if (folder / name).exists() or (folder / name).is_symlink():
            problems += _problems(lambda file=folder / name: read_json(file))
    if problems:
        raise UserError(*(f"{where}: {problem}" for problem in problems))


def _problems(check: Callable[[], Any]) -> list[str]:
    try:
        check()
    except UserError as error:
        return list(error.problems)
    return []


def check_size(source: "Source", folder: Path, build: Callable[[], torch.nn.Module]) -> None:
    """Raises UserError where the configuration describes a larger model than the files of weights contain.

    build: makes the model; it is called where nothing is allocated (the meta device). What it raises for another reason is left to the
    library that loads the model.
    """
    held = held_in(_weights(folder))
    if not held.tensors:
        return  # the loader names the missing file
    try:
        with torch.device("meta"), at_most(4 * held.tensors + 64):
            model = build()
    except TooManyError:
        raise UserError(f"{source.where}: its configuration describes more layers than the weights in {folder} have; {_AGAIN}") from None
    except Exception:  # the library raises whatever its builders do; the loader that follows reports it
        return
    promised = sum(parameter.numel() for parameter in model.parameters())
    if promised > 2 * held.elements + SLACK:
        raise UserError(
            f"{source.where}: its configuration describes {promised:,} parameters, and the weights in {folder} have "
            f"{held.elements:,}; {_AGAIN}"
        )


_AGAIN = "copy or download the folder again"


def _beyond(config: Any, start: str, tensors: int) -> Any:
    """A sentence for each number in a configuration that no model of these weights can have."""
    if isinstance(config, dict):
        for key, value in config.items():
            numbers = value if isinstance(value, list) else [value]
            whole = [number for number in numbers if isinstance(number, int) and not isinstance(number, bool)]
            if re.search(r"(size|dim|width|heads|layers|depth)$", str(key)) and any(number < 0 for number in whole):
                yield f"{start}{key}: found {str(min(whole))[:30]}, which is no size; {_AGAIN}"
            elif key in DEPTHS and sum(whole) > 4 * tensors + 64:
                yield f"{start}{key}: found {str(sum(whole))[:30]}, and the weights have {tensors:,} tensors; {_AGAIN}"
            elif any(part in str(key) for part in OF_INTEREST) and any(abs(number) > LARGEST_NUMBER for number in whole):
                yield f"{start}{key}: found {str(max(whole, key=abs))[:30]}, which no model has; {_AGAIN}"
            elif isinstance(value, dict):
                yield from _beyond(value, f"{start}{key}.", tensors)
