"""Errors that a user can cause, and how names and values are shown in messages: where, what was found, how to fix it."""

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

LONGEST_VALUE = 100
"""Characters of a value that a message shows."""
NEAR = 0.6
"""Similarity (difflib's ratio) from which a name is suggested."""


class UserError(ValueError):
    """Something that the user can fix; a command prints the problems and exits with 2, without a traceback."""

    def __init__(self, *problems: str, on_all_processes: bool = False):
        """problems: one sentence or more each, `where: what was found; how to fix it`. on_all_processes: all raise the same."""
        assert problems
        self.on_all_processes = on_all_processes
        self.problems: Sequence[str] = tuple(_printable(problem, keep="\n\t") for problem in problems)
        super().__init__("\n".join(self.problems))


def together(*checks: Callable[[], Any]) -> list[Any]:
    """What each of some checks returns, in order; raises one UserError with the problems of all that raise one."""
    results: list[Any] = []
    problems: list[str] = []
    for check in checks:
        try:
            results.append(check())
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return results


def shown(name: object) -> str:
    r"""A file name (or any text) as it can be printed on every console and written to every log.

    Bytes that are not UTF-8 (`os.fsdecode` reads them as lone surrogates) and control characters are escaped: `caf\xe9.jpg`, `a\nb`.
    """
    return _printable(str(name), keep="")


def _printable(text: str, keep: str) -> str:
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character in keep else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode returns it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii") if code > 0x9F or code < 0x20 or code == 0x7F else f"\\x{code:02x}"


class _Brief(reprlib.Repr):
    """repr of a few items and levels; never builds more text than it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxset = 2, 4, 6, 6, 6
        self.maxstring = self.maxother = self.maxlong = LONGEST_VALUE - 10


_BRIEF = _Brief()


def brief(value: Any) -> str:
    """`repr(value)`, cut to `LONGEST_VALUE` characters whatever it is; null for None, true and false as YAML writes them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of about {int(value.bit_length() * 0.30103) + 1:,} digits"
    text = _BRIEF.repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def changed(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> str:
    """`was 3, is now 4`, a key that is not there being `not set`; empty where both have the same value."""
    if (key in old) == (key in new) and old.get(key) == new.get(key):
        return ""
    was, now = (brief(values[key]) if key in values else "not set" for values in (old, new))
    return f"was {was}, is now {now}"


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean 'weight'?` where a name is near, or one of its parts (`spatial_weight`); else the list of names (at most 30)."""
    names = sorted(names)
    close = near_names(name, names)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    return "there is: " + ", ".join(names[:30]) + (f", and {len(names) - 30} more" if len(names) > 30 else "")


def near_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """At most `count` of the names that resemble `name`, or a part of which (between `_`, `-`, `.`, `/`) does, the most similar first."""
    wanted = _folded(name[:LONGEST_VALUE])
    scored = sorted((-_similarity(wanted, _folded(candidate)), candidate) for candidate in set(names))
    return [candidate for score, candidate in scored[:count] if -score >= NEAR and score <= scored[0][0] + 0.1]


def _folded(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_").replace("/", "_")


def _similarity(name: str, other: str) -> float:
    whole = difflib.SequenceMatcher(None, name, other).ratio()
    parts = [difflib.SequenceMatcher(None, name, part).ratio() for part in other.split("_") if len(part) > 3] if len(name) > 3 else []
    return max([whole, *(0.85 * part for part in parts)])
