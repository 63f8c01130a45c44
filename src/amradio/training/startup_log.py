"""What is about to be run, in some lines at the start of the log."""

import json
import time
from collections.abc import Iterable

import torch

from ..data import Feed, describe
from ..devices import in_hardware
from ..errors import UserError
from .setup import Context

LOADING_TRIAL = 32
"""Images of which the speed of loading is measured at the start."""


def introduce(context: Context, notes: Iterable[str]) -> None:
    """Student, teachers, data and how fast they are read. notes: where the student's weights come from."""
    network, device, log = context.task.network, context.processes.device, context.log
    precision = _word(context.autocast or torch.float32)
    heads = sum(p.numel() for p in network.heads.parameters()) / 1e6
    threads = torch.get_num_threads()
    log.say(
        f"student {context.config.student.type}: {sum(p.numel() for p in network.student.parameters()) / 1e6:.2f} M parameters, "
        f"heads {heads:.2f} M; {context.processes.world_size} x {device}, {threads} thread{'s' * (threads > 1)}, {precision}"
    )
    for name, teacher in context.task.teachers.items():
        million = sum(p.numel() for p in teacher.parameters()) / 1e6
        log.say(f"teacher {name}: {teacher.source}, {million:.2f} M parameters, {_word(teacher.compute_dtype)}, licence {teacher.licence}")
    _warn_of_emulation(context)
    unread = network.student.num_summaries - len({head.slot for head in network.heads.values() if head.summary is not None})
    if unread:
        log.warn(f"{unread} of the student's {network.student.num_summaries} summaries is read by no head")
    for note in notes:
        log.say(note)
    for stage in context.stages:
        if stage.settings.frozen_steps:
            log.say(f"stage {stage.number + 1}: heads alone are trained in its first {stage.settings.frozen_steps:,} steps")
    if context.processes.is_first:
        with log.phase("opening the data and measuring how fast they are read"):
            description = f"data: {context.feeds.description}, {_loading_speed(context):.0f} images/s a core"
        log.say(description)
        facts = _data(context)
        _warn_of_other_data(context, facts)
        context.folder.write("data.json", json.dumps(facts, indent=1) + "\n")


def _data(context: Context) -> dict[str, dict[str, str]]:
    """{key of the recipe: what its source is, and its fingerprint}."""
    recipe, data = context.recipe, context.feeds.data
    sources = {key: data.source(settings) for key, settings in recipe.sources().items()}
    sources |= {"data.hold_out": data.val()} if recipe.data.hold_out is not None else {}
    return {key: {"source": describe(source), "fingerprint": source.fingerprint()} for key, source in sources.items()}


def _warn_of_other_data(context: Context, facts: dict[str, dict[str, str]]) -> None:
    """Names each source of a resumed run whose images changed since it was stopped."""
    if not context.folder.checkpoints.steps():
        return
    try:
        stored = context.folder.data()
    except UserError:  # damaged; it is written anew
        return
    for key, fact in facts.items():
        before = stored.get(key)
        if before is not None and before["fingerprint"] != fact["fingerprint"]:
            context.log.warn(
                f"{key}: the images changed since the run was stopped ({before['source']}; now {fact['source']}), so the result differs "
                "from that of an uninterrupted run; restore them if that matters"
            )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _warn_of_emulation(context: Context) -> None:
    """Names every precision that the device has no instructions for: such a run is several times slower than in float32."""
    device = context.processes.device
    chosen = {"engine.precision": context.autocast or torch.float32}
    chosen |= {f"teachers.{name}.precision": teacher.compute_dtype for name, teacher in context.task.teachers.items()}
    for key, dtype in chosen.items():
        if not in_hardware(dtype, device):
            context.log.warn(f"{key}: {device} emulates {_word(dtype)}, several times slower than float32; set {key}=auto")


def _loading_speed(context: Context) -> float:
    """Images/s that one core draws or reads and crops for the first partition."""
    group = context.stages[0].groups[0]
    feed = Feed(group.view_size, LOADING_TRIAL, group.seed, sizes=group.drawn_sizes)
    batches = context.feeds.data.train_batches(group.source, feed, num_workers=0)
    next(batches)  # opens files and warms caches
    start = time.perf_counter()
    next(batches)
    return LOADING_TRIAL / (time.perf_counter() - start)
