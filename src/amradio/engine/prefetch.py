"""Work that is done one item ahead, in a thread of its own."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterable[Item], work: Callable[[Item], Result]) -> Generator[tuple[Item, Future[Result]]]:
    """Each item with its `work`, which is done while the caller is busy with the item before.

    Until the iterator is exhausted or closed, the caller's and the worker's thread have half of torch's CPU threads each (at least one).
    What `work` raises is raised by the future's `result`.
    """
    threads = torch.get_num_threads()
    half = max(1, threads // 2)
    torch.set_num_threads(half)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        with ThreadPoolExecutor(1, "ahead", initializer=torch.set_num_threads, initargs=(half,)) as pool:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > 1:
                    yield waiting.popleft()
            yield from waiting
    finally:
        torch.set_num_threads(threads)
