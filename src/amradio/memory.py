"""How much memory this machine has, to refuse what cannot fit before it is built or read."""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@functools.cache
def machine_memory() -> int:
    """Bytes of memory that this machine, or the container around this process, has at all; 2^62 where the system does not say."""
    sizes = [1 << 62]
    try:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not every system knows these names
        sizes.append(1 << 62)
    for path in _LIMITS:
        try:
            sizes.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such control group, or `max`
            continue
    return min(size for size in sizes if size > 0)


def gib(size: float) -> str:
    """`1.5 GiB`."""
    return f"{size / (1 << 30):,.1f} GiB"


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns what Python, NumPy and torch raise where memory does not suffice, on a CPU or a GPU, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not re.search(r"out of memory|can't allocate memory|not enough memory", text):
            raise
        asked = re.search(r"allocate ([\d.,]+ ?(?:[KMGTPE]iB|bytes))", text)
        amount = gib(float(asked[1].split()[0].replace(",", ""))) if asked and asked[1].endswith("bytes") else asked[1] if asked else ""
        where = "the GPU has" if "CUDA" in text else "this machine has"
        fix = "take smaller images, fewer images at once or a smaller model, or see what else uses it"
        raise UserError(f"{where} not enough memory left{f': {amount} were asked for' if amount else ''}; {fix}") from error
