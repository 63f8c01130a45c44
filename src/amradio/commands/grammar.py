"""The grammar of the command line: how its words are read, and an answer with a way to fix it for what does not fit."""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence

from ..errors import near_names, nearest
from .parser import STDOUT, Parser, parser

FAMILIAR = {
    "train": "distill",
    "fit": "distill",
    "run": "distill",
    "resume": "distill",
    "test": "evaluate",
    "eval": "evaluate",
    "validate": "evaluate",
    "convert": "export",
    "predict": "embed",
    "infer": "embed",
    "extract": "embed",
    "features": "embed",
    "list": "recipes",
    "models": "students",
    "diff": "compare",
    "info": "doctor",
    "check": "doctor",
}
"""Verbs of other programs."""
ANYWHERE = ("--debug", "--quiet")
"""Flags that may stand before the verb and behind it."""
NUMBER = re.compile(r"-[\d.]+(e[+-]?\d+)?")
"""A value that begins with a minus."""
NEAR = 0.75
"""Similarity (difflib's ratio) from which an option is suggested in place of a setting."""


def parse(words: Sequence[str], version: str) -> argparse.Namespace:
    """The options of a command line. Prints what is wrong and raises SystemExit(2) where it does not fit.

    `--debug`, `--quiet` and `--json` may stand anywhere, key=value words may stand behind options, and `--out X`, `--out=X` and `out=X`
    mean the same for every verb. `amradio help VERB` is `amradio VERB --help`.
    """
    top, verbs = parser(version, with_embed_options="embed" in words)
    flags = {flag for flag in ANYWHERE if flag in words}
    words = [word for word in words if word not in flags]
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    first = next((number for number, word in enumerate(words) if not word.startswith("-")), None)
    leading = [word for word in words[:first] if word != "--json"]
    unknown = [word for word in leading if word.startswith("--") and not _options_of(top, word)]
    if unknown:
        top.error("; ".join(_stray(word, [], top) for word in unknown))
    if first is not None and words[first] not in verbs:
        _refuse_verb(words[first], top, verbs)
    if first is not None:
        verb = verbs[words[first]]
        behind = _canonical([*words[first + 1 :], *(word for word in words[:first] if word == "--json")], verb)
        _refuse_unknown(behind, verb)
        words = [*leading, words[first], *behind]
    options, rest = top.parse_known_args(words)
    for flag in ANYWHERE:
        setattr(options, flag[2:], flag in flags)
    if rest and hasattr(options, "words") and not any(word.startswith("-") for word in rest):
        options.words = [*options.words, *rest]
    elif rest:
        verb = verbs[options.verb]
        verb.error("; ".join(_stray(word, [], verb) for word in rest))
    return options


def _refuse_verb(name: str, top: Parser, verbs: Mapping[str, Parser]) -> None:
    """Ends with the nearest verb, also by what other programs call it, and the usage of that verb."""
    if name.lower() in FAMILIAR:
        near = [FAMILIAR[name.lower()]]
    else:
        near = list(dict.fromkeys(FAMILIAR.get(other, other) for other in near_names(name, [*verbs, *FAMILIAR])))
    hint = f"did you mean {' or '.join(repr(other) for other in near)}?" if near else nearest(name, verbs)
    (verbs[near[0]] if near else top).error(f"there is no command '{name}'; {hint}")


def _options_of(verb: Parser, word: str) -> list[str]:
    """The options that a word stands for: one of its name, or those that it is the beginning of."""
    known = [option for action in verb._actions for option in action.option_strings]
    name = word.partition("=")[0]
    return [name] if name in known else [option for option in known if name.startswith("--") and option.startswith(name)]


def _refuse_unknown(words: Sequence[str], verb: Parser) -> None:
    """Ends where an option, or a misspelt `option=value` of a verb without words, is none of the verb's, before missing words are named."""
    takes_words = any(action.dest == "words" for action in verb._actions)
    strays = []
    for number, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("-") and word != STDOUT and not NUMBER.fullmatch(word):
            if not _options_of(verb, word) and word[:2] != "-h":
                strays.append(_stray(word, words[number + 1 : number + 2], verb))
        elif not takes_words and re.fullmatch(r"[a-z_]+=.*", word) and _is_misspelt(word, verb):
            strays.append(_stray(f"--{word}", [], verb))
    if strays:
        verb.error("; ".join(strays))


def _is_misspelt(word: str, verb: Parser) -> bool:
    """Whether a `name=value` word is near the name of an option, and none."""
    option = f"--{word.partition('=')[0].replace('_', '-')}"
    return _near_option(option, verb) not in (None, option)


def _near_option(name: str, verb: Parser) -> str | None:
    known = [option for action in verb._actions for option in action.option_strings if option.startswith("--")]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=NEAR)), None)


def _canonical(words: Sequence[str], verb: Parser) -> list[str]:
    """The words with `out=X` as `--out=X` where `--out` is an option, and with `--out X` and `--a.b X` as `out=X` where it is none.

    An option that may stand without its value, `--json`, takes the next word where that is the name of a JSON file or of a device.
    """
    options = {option: action for action in verb._actions for option in action.option_strings}
    takes_words = any(action.dest == "words" for action in verb._actions)
    canonical: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        option = f"--{name.replace('_', '-')}"
        if equals and option in options and options[option].nargs != 0:
            canonical.append(f"{option}={value}")
        elif word in options and options[word].nargs == "?":
            has_value = bool(waiting) and (waiting[0] == STDOUT or waiting[0].startswith("/dev/") or waiting[0].endswith(".json"))
            canonical.append(f"{word}={waiting.pop(0) if has_value else options[word].const}")
        elif takes_words and name not in options and (name == "--out" or re.fullmatch(r"--[a-z]\w*(\.\w+)+", name)):
            if not equals and not waiting:
                verb.error(f"{name}: expected one value; write it as {name[2:]}=VALUE")
            canonical.append(f"{name[2:]}={value if equals else waiting.pop(0)}")
        else:
            canonical.append(word)
    return canonical


def _stray(word: str, following: Sequence[str], verb: Parser) -> str:
    """What to write in place of a word that does not fit."""
    known = [option for action in verb._actions for option in action.option_strings if option.startswith("--")]
    name, equals, value = word.partition("=")
    if word.startswith("-"):
        takes_words = any(action.dest == "words" for action in verb._actions)
        near = _near_option(name, verb)
        hint = f"did you mean '{near}'?" if near else nearest(name, known)
        if takes_words and not near:
            value = value if equals else next((word_after for word_after in following if not word_after.startswith("-")), "...")
            hint = f"settings are written without dashes: {_as_word(name, value, verb)}"
        return f"there is no option '{name}'; {hint}"
    flag = f"--{name.replace('_', '-')}"  # an option with a value was read as one before
    return f"'{word}' does not belong here; {f'write it as {flag}' if equals and flag in known else f'see {verb.prog} --help'}"


def _as_word(flag: str, value: str, verb: Parser) -> str:
    """The `key=value` that a flag of another trainer stands for."""
    name = flag.lstrip("-").replace("-", "_")
    if verb.prog.endswith("evaluate"):
        return f"{name}={value}"
    from ..problems import key_of_flag  # pydantic and the settings of a recipe: only where there is a mistake
    from ..recipe import Recipe

    if "epoch" in name:
        return "stages.0.steps=N, where a step is an update with one batch; runs are not counted in epochs"
    return f"{key_of_flag(Recipe, flag) or name}={value}"
