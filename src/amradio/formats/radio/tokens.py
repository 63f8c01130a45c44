"""Which summary token belongs to which teacher in a published model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import UserError


class Tokens(NamedTuple):
    """The summary tokens of a model."""

    num_summaries: int
    slots: dict[str, int]
    """Teacher's name -> the token that its head reads."""
    summary_slots: tuple[int, ...]
    """The tokens of the backbone's summary, in order."""


def tokens_of(settings: Mapping[str, Any], where: str) -> Tokens:
    """The tokens that a training's settings describe.

    Without one token per teacher (`cls_token_per_teacher`) all heads share the first. Else a teacher reads token `token_slot`, by default
    its place in the list; a name that occurs again (the same teacher at another resolution) counts once, where it stands first.
    The backbone's summary is made of the places of the teachers with `use_summary`. Raises UserError where there is none.
    """
    first = first_of(teachers_in(settings, where))
    if not settings.get("cls_token_per_teacher", True) or not first:
        return Tokens(1, dict.fromkeys(first, 0), (0,))
    slots = {name: number if (slot := teacher.get("token_slot")) is None else slot for name, (number, teacher) in first.items()}
    num_summaries = max(len(first), max(slots.values()) + 1)
    chosen = first_of([teacher if teacher.get("use_summary", True) else {} for teacher in teachers_in(settings, where)])
    places = sorted(number for number, _ in chosen.values())
    if not places:
        raise UserError(f"{where}: no teacher has use_summary, so the model has no summary; set it for one of args.teachers")
    if places[-1] >= num_summaries:  # a repeated teacher pushes the places behind it beyond the tokens; the official loader fails here
        places = sorted({slots[name] for name in chosen})
    return Tokens(num_summaries, slots, tuple(places))


def teachers_in(settings: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """`teachers` of the settings; raises UserError where it is no list of named teachers."""
    teachers = settings.get("teachers") or []
    whole = isinstance(teachers, Sequence) and all(isinstance(t, Mapping) and isinstance(t.get("name"), str) for t in teachers)
    if not whole:
        raise UserError(f"{where}: args.teachers is not a list of teachers with a name each; the file is not a RADIO model")
    dotted = [teacher["name"] for teacher in teachers if "." in teacher["name"]]
    if dotted:
        raise UserError(*(f"{where}: args.teachers: '{name}' has a dot; rename the teacher" for name in dotted))
    return list(teachers)


def first_of(teachers: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """Name -> (place, teacher), where the name stands first; entries without a name are passed over."""
    first: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for number, teacher in enumerate(teachers):
        if "name" in teacher:
            first.setdefault(teacher["name"], (number, teacher))
    return first
