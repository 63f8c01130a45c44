"""`amradio doctor`: what this machine can do, and what is missing."""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants

from ..devices import computes_bfloat16
from ..environment import LIBRARIES, processor
from ..libraries import EXTRA_OF
from ..teachers import catalogue
from .tables import print_table

LITTLE_SHARED_MEMORY = 2 << 30
"""Bytes: about two batches, of 256 images of 432 px, of each of seven loading processes."""
MISSING = "not installed"
EXTRAS = {
    "datasets": "data",
    "tensorboard": "track",
    "wandb": "wandb",
    "gradio": "demo",
    "trl": "vlm",
    "peft": "vlm",
    **dict(EXTRA_OF.values()),
}


def doctor(as_json: bool = False) -> None:
    """Prints devices, precision, libraries, extras, the hub cache and the teachers that are here. as_json: as JSON in place of tables."""
    if as_json:
        machine = {what: {"found": state, "what follows": advice} for what, state, advice in _machine()}
        libraries = {name: version if version != MISSING else None for name, version, _ in _libraries()}
        here = [{"type": known.kind, "model": known.model} for known in catalogue() if known.is_here]
        print(json.dumps({"machine": machine, "libraries": libraries, "teachers": here}, indent=1))
        return
    print_table("This machine", ("what", "found", "what follows"), list(_machine()))
    print_table("Libraries", ("library", "version", "if missing"), list(_libraries()))
    print_table("Teachers on this machine", ("type", "model"), [(k.kind, k.model) for k in catalogue() if k.is_here])


def _machine() -> Iterator[tuple[str, str, str]]:
    yield "CPU", f"{processor()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}", "engine.threads sets another number"
    cpu = computes_bfloat16(torch.device("cpu"))
    yield (
        "bfloat16 on the CPU",
        "in hardware" if cpu else "emulated, several times slower than float32",
        "precision auto uses it, for student and teachers" if cpu else "precision auto takes float32, for student and teachers",
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            fast = computes_bfloat16(torch.device("cuda", index))
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            yield f"cuda:{index}", f"{properties.name}, {memory}", "bfloat16" if fast else "float32; older than Ampere"
    else:
        yield "GPU", "none that torch can use", "everything runs on the CPU; real teachers will be slow"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield _shared_memory()
    yield "disk", f"{free:.0f} GiB free here", "a checkpoint takes about 12 bytes a parameter of student and heads"
    cache = Path(constants.HF_HUB_CACHE)
    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    yield "hub cache", f"{cache}{'' if cache.is_dir() else ' (empty)'}{offline}", "teachers are kept here; HF_HOME moves it"
    yield "processes", os.environ.get("WORLD_SIZE", "1"), "torchrun --nproc-per-node N -m amradio distill ... uses N"


def _shared_memory() -> tuple[str, str, str]:
    """/dev/shm, through which loading processes hand over their batches."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "shared memory", "no /dev/shm", "batches of loading processes pass through it: data.num_workers=0 does without"
    size = f"/dev/shm: {usage.total / 2**30:.2f} GiB, {usage.free / 2**30:.2f} free"
    if usage.free >= LITTLE_SHARED_MEMORY:
        return "shared memory", size, "batches of loading processes pass through it"
    return "shared memory", size, "little for loading processes: start the container with --shm-size=8g, or take data.num_workers=0"


def _libraries() -> Iterator[tuple[str, str, str]]:
    for name in dict.fromkeys((*LIBRARIES, *EXTRAS)):
        try:
            yield name, importlib.metadata.version(name), ""
        except importlib.metadata.PackageNotFoundError:
            extra = EXTRAS.get(name)
            yield name, MISSING, f"pip install 'amradio[{extra}]'" if extra else "pip install amradio"
