"""The words of the command line: YAML files and `key=value`, merged left to right."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .errors import UserError, brief, shown
from .files import read_text
from .recipes import Kind, kind_of, locate, shipped
from .yaml12 import parse_yaml, plain_value

DEEPEST_KEY = 40
"""Parts of a key."""
LARGEST_RECIPE = 4 << 20
"""Bytes of a recipe or evaluation file."""
RECIPE_KEYS = frozenset({"data", "student", "out", "stages", "optimizer", "engine", "loss", "heads", "normalize", "evaluate"})
"""Keys of recipes that no evaluation file has."""
TITLES: Mapping[Kind, str] = {
    "recipe": "a recipe",
    "evaluation": "an evaluation file",
    "detection": "a recipe of a detector",
    "vlm": "a recipe of a vision-language model",
}
COMMANDS: Mapping[Kind, str] = {
    "recipe": "amradio distill",
    "evaluation": "amradio evaluate PATH",
    "detection": "amradio detect train",
    "vlm": "amradio vlm train",
}
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_INDEX = re.compile(r"[0-9]{1,9}")
_QUOTED = re.compile(r"""'([^']|'')*'|"([^"\\]|\\.)*\"""", re.S)


def read_words(words: Sequence[str], start: Mapping[str, Any] | None = None, kind: Kind | None = None) -> dict[str, Any]:
    """Merges YAML files and `key=value` words, left to right, into one mapping, over `start` (see `config.defaults`).

    A VALUE is plain text unless it is a number, a truth value, null, `[..]`, `{..}` or quoted in full: `data.train.path=set #2` needs no
    quotes but the shell's. A mapping whose `type` changes starts afresh; a value of null takes an entry away. kind: what the
    files are expected to be. Raises UserError with all problems at once.
    """
    merged: dict[str, Any] = dict(start or {})
    problems: list[str] = []
    for word in _whole_words(words, problems):
        try:
            merged = merge(merged, _read_word(word, kind))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return merged


def _whole_words(words: Sequence[str], problems: list[str]) -> Iterator[str]:
    """The words, less those that are pieces of one: `student={type: timm, ...}` without quotes is cut by the shell at each space."""
    number = 0
    while number < len(words):
        word = words[number]
        _, equals, value = word.partition("=")
        number += 1
        if equals and value[:1] in ("{", "[") and _closing(value) is None:
            end = next(
                (n for n in range(number + 1, min(number + 60, len(words)) + 1) if _closing(" ".join([value, *words[number:n]]))), None
            )
            if end is not None:
                whole = " ".join(words[number - 1 : end])
                problems.append(f"{_in_short(word)}: the shell cut this word at its spaces; put it into quotes: '{shown(whole[:300])}'")
                number = end
                continue
        yield word


def _closing(text: str) -> int | None:
    """The place of the bracket that closes the one at the start of `text`, brackets in quotes apart; None where none does."""
    depth, quote = 0, ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and text[position - 1] in " ,:[{":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
            if depth == 0:
                return position
    return None


def _in_short(word: str) -> str:
    return f"'{shown(word if len(word) <= 100 else word[:100] + '...')}'"


def names_file(word: str) -> bool:
    """Whether a word is the name of a file and not `key=value`."""
    key, equals, _ = word.partition("=")
    return not equals or "/" in key or key.endswith((".yaml", ".yml"))


def only_keys(words: Sequence[str], where: str) -> None:
    """Raises UserError where one of the words is the name of a file. where: the command that takes changes of its recipe alone."""
    files = [word for word in words if names_file(word)]
    if files:
        raise UserError(
            f"{where}: it has its recipe and takes changes of it, key=value, found {', '.join(map(_in_short, files))}; to run a recipe: "
            f"amradio distill {shown(files[0][:100])}"
        )


def _read_word(word: str, kind: Kind | None) -> dict[str, Any]:
    if names_file(word):
        tree = _read_file(word)
        _check_kind(word, tree, kind)
        return tree
    key, _, value = word.partition("=")
    if not _KEY.fullmatch(key):
        raise UserError(f"{_in_short(word)}: {_in_short(key)} is not a key; write words as key.part=value")
    if key.count(".") >= DEEPEST_KEY:
        raise UserError(f"{_in_short(word)}: a key of {key.count('.') + 1:,} parts; at most {DEEPEST_KEY} are taken")
    tree: Any = word_value(value, _in_short(word))
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def word_value(text: str, where: str) -> Any:
    """The VALUE of a `key=VALUE` word. where: the word, for messages. Raises UserError where it is empty, or brackets hold no YAML."""
    bare = text.strip()
    if not bare:
        raise UserError(f"{where}: the value is empty; give one, null to take the key away, or '\"\"' for an empty text")
    if bare[0] in "[{":
        end = _closing(bare)
        if end == len(bare) - 1:
            return parse_yaml(bare, where)
        if end is None and re.match(r"[\[{]+\s*[\w'\"-]+\s*:\s", bare + " "):
            raise UserError(f"{where}: the bracket is not closed; put the whole word into quotes")
        return text
    if _QUOTED.fullmatch(bare):
        return parse_yaml(bare, where)
    try:
        value = plain_value(bare)
    except UserError as error:
        raise UserError(f"{where}: {error.problems[0]}") from None
    return text if isinstance(value, str) else value


def _read_file(word: str) -> dict[str, Any]:
    path = locate(word)
    tree = parse_yaml(read_text(path, LARGEST_RECIPE), shown(path))
    if not isinstance(tree, dict):
        kind = "an empty file" if tree is None else f"{brief(tree)}"
        raise UserError(f"{shown(path)}: a recipe is a mapping of keys to values, found {kind}")
    return tree


def _check_kind(word: str, tree: Mapping[str, Any], wanted: Kind | None) -> None:
    """Raises UserError where a file is plainly of another kind."""
    kind = kind_of(tree)
    if wanted == "evaluation" and kind in ("recipe", "part"):  # teachers may stand in both
        kind = "recipe" if tree.keys() & RECIPE_KEYS else "part"
    if wanted is None or kind in (wanted, "part"):
        return
    name = shown(word[:100])
    command = f"{COMMANDS[kind]} {name}" if kind == "evaluation" else COMMANDS[kind]
    examples = _shipped(wanted)[:2] if wanted != "recipe" else ["starter"]
    during = f"; evaluate.suite={name} runs it during the training" if (wanted, kind) == ("recipe", "evaluation") else ""
    raise UserError(
        f"{_in_short(word)}: this is {TITLES[kind]}, for `{command}`; give {TITLES[wanted]}, e.g. {' or '.join(examples)} "
        f"(`amradio recipes` lists them){during}"
    )


def _shipped(kind: Kind) -> list[str]:
    return [entry.name for entry in shipped() if entry.kind == kind]


def merge(old: Any, new: Any, key: str = "") -> Any:
    """`new` over `old`: mappings are merged key by key, everything else is replaced. `{0: x}` over a list, or over nothing, sets item 0.

    key: where both stand, for messages. Raises UserError where an item beyond the end of a list is named, or none of a list.
    """
    if isinstance(old, str) and isinstance(new, Mapping) and "type" not in new:
        old = {"type": old}  # `loss.summary=cosine` and then `loss.summary.beta=2`
    if isinstance(new, Mapping) and new and (isinstance(old, list) or old is None):
        if all(_INDEX.fullmatch(str(part)) for part in new):
            return _merge_items(list(old or ()), new, key)
        if old and "type" not in new:
            first = f"{key}.{shown(next(iter(new)))}"
            raise UserError(f"{first}: {_list_at(key, old)}; name an item by its number, as {key}.0, or give a whole list")
    if old is None and isinstance(new, Mapping):
        old = {}
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if "type" in new and new["type"] != old.get("type", new["type"]):
        return dict(new)
    merged = dict(old)
    for part, value in new.items():
        merged[part] = merge(old.get(part), value, f"{key}.{part}" if key else str(part))
        if value is None and part in old and isinstance(old[part], Mapping):
            del merged[part]
    return merged


def _merge_items(items: list[Any], new: Mapping[Any, Any], key: str) -> list[Any]:
    for part, value in new.items():
        index = int(part)
        if index > len(items):
            raise UserError(f"{key}.{part}: {_list_at(key, items)}; the next one would be {key}.{len(items)}")
        items[index : index + 1] = [merge(items[index] if index < len(items) else None, value, f"{key}.{part}")]
    return items


def _list_at(key: str, items: Sequence[Any]) -> str:
    numbers = {0: "no items", 1: f"1 item, {key}.0"}.get(len(items), f"{len(items):,} items, {key}.0 to {key}.{len(items) - 1}")
    return f"{key} is a list of {numbers}"
