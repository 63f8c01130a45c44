"""How much memory this machine has, to refuse what cannot fit before it is built or read."""

import functools
import os
from pathlib import Path

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
