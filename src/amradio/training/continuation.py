"""Continuing from a model: which of its heads and summaries are kept, and how a new network is filled from it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..features import KINDS, Kind
from ..licences import of_teachers, united
from ..network import HeadConfig, HeadPart, Network, NetworkConfig, load_exactly


class Plan(NamedTuple):
    """What becomes of a model's heads and summaries."""

    config: NetworkConfig
    """Of the network that is continued."""
    summaries: tuple[int | None, ...]
    """For each of its summaries that of the model which it was; None for a new one."""
    new_summaries: tuple[int, ...]
    """Those that new heads read and no kept one."""
    kept: tuple[tuple[str, Kind], ...]
    """Parts of heads that are kept; they predict raw teacher features."""
    notes: tuple[str, ...]
    """What was kept, is new and was dropped, a line each."""


def plan(model: NetworkConfig, wanted: Mapping[str, HeadConfig], image_size: int) -> Plan:
    """Fits a model to the teachers of a recipe.

    wanted: for each teacher the head that it would get if it were new; its `slot` does not count. A summary is dropped where only heads
    of teachers that left read it. A new head reads a summary that no head of the model reads, where there is one, else a new one.
    Raises UserError where a teacher has other channels than the model's head of its name.
    """
    problems = [problem for name, head in wanted.items() for problem in _misfits(name, model, head)]
    if problems:
        raise UserError(*problems)
    parts: list[tuple[str, Kind]] = [(name, kind) for name, head in wanted.items() for kind in KINDS if head.part(kind)]
    kept = tuple(pair for pair in parts if _part(model, *pair))
    fresh = [name for name, head in wanted.items() if head.summary and (name, "summary") not in kept]
    summaries, slots = _share_out(model, wanted, fresh)
    heads = {}
    for name, head in wanted.items():
        old = {kind: _part(model, name, kind) for kind in KINDS if (name, kind) in kept}
        heads[name] = head.model_copy(update=old | {"slot": slots.get(name, 0)})
    read_before = {slots[name] for name, kind in kept if kind == "summary"}
    new = tuple(sorted({slots[name] for name in fresh} - read_before))
    chosen = model.summary_slots
    if chosen is not None:
        stayed = [summaries.index(slot) for slot in chosen if slot in summaries]
        chosen = [*stayed, *(slot for slot in new if slot not in stayed)] or None
    update = {"num_summaries": len(summaries), "heads": heads, "image_size": image_size, "summary_slots": chosen, "training": None}
    update |= {"origin": model.origin or _terms(model), "normalizes_blocks": None}  # statistics of blocks that are about to change
    update["distilled_from"] = united(model.distilled_from, of_teachers({name: head.teacher for name, head in wanted.items()}))
    return Plan(model.model_copy(update=update), summaries, new, kept, tuple(_notes(model, wanted, kept, summaries)))


def _terms(model: NetworkConfig) -> str | None:
    """The teachers of a model, with the licences that hold for whatever continues from it, also where their heads are dropped."""
    teachers = ", ".join(f"{name} ({head.teacher.get('licence')})" for name, head in model.heads.items())
    return f"a model of {teachers}" if teachers else None


def _part(model: NetworkConfig, name: str, kind: Kind) -> HeadPart | None:
    return model.heads[name].part(kind) if name in model.heads else None


def _misfits(name: str, model: NetworkConfig, head: HeadConfig) -> Iterable[str]:
    for kind in KINDS:
        old, new = _part(model, name, kind), head.part(kind)
        if old and new and old.dim != new.dim:
            yield (
                f"teachers.{name}: its {kind} has {new.dim} channels, the model's head '{name}' says {old.dim}; "
                "take the teacher that the head was made for, or name yours otherwise to give it a new head"
            )


def _share_out(
    model: NetworkConfig, wanted: Mapping[str, HeadConfig], fresh: Sequence[str]
) -> tuple[tuple[int | None, ...], dict[str, int]]:
    """(where each summary comes from, the summary that each head reads by name). fresh: names of heads with a new summary part."""
    readers = {
        slot: {name for name, head in model.heads.items() if head.summary and head.slot == slot} for slot in range(model.num_summaries)
    }
    if model.student.shares_summary:
        return (0,), dict.fromkeys(wanted, 0)
    stay: list[int | None] = [slot for slot, names in readers.items() if not names or names & wanted.keys()]
    free = [summary for summary, slot in enumerate(stay) if slot is not None and not readers[slot]]
    summaries = (*stay, *[None] * (len(fresh) - len(free))) or (0,)
    places = [*free, *(summary for summary, slot in enumerate(summaries) if slot is None)]
    slots = {name: summaries.index(head.slot) for name, head in model.heads.items() if head.summary and name in wanted}
    return summaries, slots | dict(zip(fresh, places, strict=False))


def _notes(
    model: NetworkConfig, wanted: Mapping[str, HeadConfig], kept: Sequence[tuple[str, Kind]], summaries: Sequence[int | None]
) -> Iterable[str]:
    for name, head in wanted.items():
        there = [kind for kind in KINDS if head.part(kind)]
        old = [kind for kind in there if (name, kind) in kept]
        new = [kind for kind in there if kind not in old]
        parts = [f"{' and '.join(kinds)} {word}" for kinds, word in ((old, "kept"), (new, "new")) if kinds]
        yield f"head {name}: {', '.join(parts)}"
        before, now = (config.teacher.get("source") for config in (model.heads.get(name, head), head))
        if old and before != now:
            yield f"head {name}: it was made for {before} and is now taught by {now}"
    gone = [name for name in model.heads if name not in wanted]
    if gone:
        yield f"dropped, as no teacher has its name: {', '.join(f'head {name}' for name in gone)}"
    if model.heads and not kept:
        yield f"no head in common: the model has {', '.join(model.heads)}, the recipe's teachers are {', '.join(wanted)}"
    taken = sum(slot is not None for slot in summaries)
    yield f"summaries: {taken} of {model.num_summaries} kept, {len(summaries) - taken} new"


@torch.no_grad()
def fill(network: Network, model: Network, plan: Plan) -> None:
    """Gives `network` (of `plan.config`, in place) the model's weights; new heads stay as they are.

    A new summary begins as a copy of the first that stayed: as a summary of the whole image, which a random token would have to become.
    Raises UserError where the student makes its summaries otherwise than by rows of parameters, and their number changes.
    """
    student = network.student
    weights = model.student.state_dict()
    if plan.summaries != tuple(range(model.student.num_summaries)):
        if not student.summary_rows:
            raise UserError("student: its summaries cannot be taken apart; name teachers with a summary as the model does, and no others")
        for name, count in student.summary_rows.items():
            weights[name] = _rows(weights[name], plan.summaries, model.student.num_summaries, count)
    load_exactly(student, weights, "student")
    for name, kind in plan.kept:
        new, old = network.head(name).part(kind), model.head(name).part(kind)
        assert new is not None
        assert old is not None
        load_exactly(new, old.state_dict(), f"head {name} {kind}")
    if network.rotation is not None and model.rotation is not None:
        network.rotation.load_state_dict(model.rotation.state_dict())


def _rows(rows: Tensor, summaries: Sequence[int | None], num_summaries: int, count: int) -> Tensor:
    """The rows in their new order, `count` for each summary; what follows the summaries (registers) stays behind them."""
    pattern = next((slot for slot in summaries if slot is not None), 0)
    order = [pattern if slot is None else slot for slot in summaries]
    split = num_summaries * count
    return torch.cat([rows[:split].unflatten(0, (num_summaries, count))[order].flatten(0, 1), rows[split:]])
