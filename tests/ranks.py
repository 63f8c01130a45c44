"""Several processes of an evaluation as threads of this one, which exchange values at a barrier."""

import threading
from collections.abc import Callable
from typing import Any

from amradio.engine.distributed import Processes
from amradio.evaluation.sharing import Share

PATIENCE = 600
"""s: longer than the slowest part on a machine that has much else to do."""


class Rank(Processes):
    """One of several processes; here each is a thread, and they exchange values at a barrier."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, values: list[Any]):
        self.rank, self.world_size, self.barrier, self.values = rank, world_size, barrier, values

    def gather_patiently(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(PATIENCE)
        gathered = list(self.values)
        self.barrier.wait(PATIENCE)
        return gathered


def on_several(count: int, work: Callable[[Share], Any]) -> list[Any]:
    """What `work` returns, or the exception that it raises, on each of `count` processes."""
    barrier, values, outcomes = threading.Barrier(count), [None] * count, [None] * count

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(Share(Rank(rank, count, barrier, values)))
        except Exception as error:
            outcomes[rank] = error
            if not getattr(error, "on_all_processes", False):
                barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
