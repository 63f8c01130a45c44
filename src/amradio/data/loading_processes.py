"""Processes that load images: what comes from them in order, and what is said where one of them dies or cannot send."""

import atexit
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import UserError

GRACE_SECONDS = 120
"""How long a worker outlives a SIGTERM."""
LAST_MOMENTS = 2.0
"""Seconds within which a worker that is dying has ended: what it sent last is lost before it has."""
FEWER = (
    "run the same command again to resume; if it happens again, load with fewer processes (data.num_workers in a recipe, num_workers for "
    "evaluate, --num-workers for embed)"
)
"""What to do where a worker was lost."""


Item = TypeVar("Item")


def read_each(read: Callable[[int], Item], numbers: Iterable[int], num_workers: int | None) -> Generator[Item]:
    """`read(number)` of all `numbers`, in order, by worker processes; closing the iterator ends them.

    Args:
        read: a function, or a method of an object, that can be sent to a worker; it may raise UserError.
        numbers: what is read.
        num_workers: processes; None for the cores that are there, less one; 0 for none.

    Raises the UserError that `read` raises, and a UserError where a worker is lost (see `load_items`).
    """
    return load_items(_Numbered(read), numbers, num_workers)


class _Numbered(Dataset):
    """A function of a number as a map-style data set."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, number: int) -> Any:
        return self.read(number)


def load_items(steps: Dataset, numbers: Iterable[int], num_workers: int | None) -> Generator[Any]:
    """`steps[number]` of all `numbers`, in order, made by workers (None: the cores that are there, less one; 0: none).

    Closing the iterator ends the workers. With a GPU, tensors come in pinned memory, and tuples as lists. Raises the UserError that
    `steps` raises, and a UserError where a worker is killed, crashes, or cannot hand over what it made.
    """
    workers = default_workers() if num_workers is None else num_workers
    loader = DataLoader(
        _Guarded(steps),
        batch_size=None,
        sampler=numbers,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, a loader draws from the global generator, and a resumed run would differ.
        generator=torch.Generator(),
        # A process that runs threads (CUDA, gloo, OpenMP) cannot be forked safely.
        multiprocessing_context="forkserver" if workers else None,
    )
    with _apart_from_main() if workers else nullcontext():
        try:
            batches = iter(loader)
        except (OSError, EOFError) as error:
            raise UserError(
                f"{workers} processes that load images could not be started ({error or 'the first one died'}); {FEWER}"
            ) from None
    # Left to the interpreter's end, workers are sent a SIGTERM and waited for, which they survive for a while.
    stop = batches._shutdown_workers if workers else _nothing  # pyright: ignore[reportAttributeAccessIssue]
    atexit.register(stop)
    forget = atexit.unregister  # an iterator that lives to the interpreter's end finds this module's names gone
    try:
        yield from _received(batches) if workers else _made_here(batches)
    except KeyboardInterrupt:
        for worker in _workers(batches) if workers else ():
            worker.kill()  # they hold nothing, and may be in the middle of a long read
        raise
    finally:
        forget(stop)
        stop()


def _workers(batches: Any) -> list[Any]:
    """The processes of a loader's iterator."""
    return batches._workers


class _Failure(NamedTuple):
    """Problems that a worker met: DataLoader would wrap an exception into a page of tracebacks."""

    problems: tuple[str, ...]


class _Guarded(Dataset):
    """The same items, in shared memory already where a worker makes them: what fails there is an answer, and not lost on its way."""

    def __init__(self, steps: Dataset) -> None:
        self.steps = steps

    def __getitem__(self, number: int) -> Any:
        try:
            item = self.steps[number]
            if get_worker_info() is None:
                return item
        except UserError as error:
            return _Failure(tuple(error.problems))
        except MemoryError:
            return _Failure((f"a process that loads images (pid {os.getpid()}) has no memory left; {FEWER}",))
        try:
            _share(item)
        except (RuntimeError, OSError) as error:
            return _Failure(
                (f"a process that loads images (pid {os.getpid()}) cannot hand over a batch ({_line(error)}); {_shared_memory()}",)
            )
        return item


def _share(item: Any) -> None:
    """Moves the tensors of an item into shared memory, in place."""
    if isinstance(item, torch.Tensor):
        if item.numel():
            item.share_memory_()
    elif isinstance(item, Mapping):
        for part in item.values():
            _share(part)
    elif isinstance(item, list | tuple):
        for part in item:
            _share(part)


def _made_here(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, _Failure):
            raise UserError(*item.problems)
        yield item


def _received(batches: Any) -> Iterator[Any]:
    """Items of workers; raises UserError where one of them ended, or its item did not arrive."""
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if str(error).startswith("Caught "):  # raised in a worker by what makes the items
                raise
            raise UserError(_explained(error, _workers(batches))) from None
        if isinstance(item, _Failure):
            raise UserError(*item.problems)
        yield item


def _explained(error: Exception, workers: Sequence[Any]) -> str:
    """One sentence on workers that ended, or on what else kept an item from coming."""
    connection.wait([worker.sentinel for worker in workers], LAST_MOMENTS)
    ended = [worker for worker in workers if not worker.is_alive()]
    if not ended:
        too_few_files = "ancdata" in str(error) or "open files" in str(error)
        advice = "the limit of open files is low: raise it with `ulimit -n 65536`" if too_few_files else _shared_memory()
        return f"a batch did not arrive from the processes that load images ({_line(error)}); {advice}"
    who = ", ".join(f"pid {worker.pid}" for worker in ended)
    codes = {worker.exitcode for worker in ended}
    if -signal.SIGBUS in codes:
        return f"a process that loads images ({who}) ended with a bus error; {_shared_memory()}"
    if -signal.SIGKILL in codes:
        return f"a process that loads images ({who}) was killed, as the system does where memory runs out; {FEWER}"
    how = ", ".join(f"signal {-code}" if code and code < 0 else f"exit code {code}" for code in codes)
    return f"a process that loads images ({who}) ended by itself ({how}); {FEWER}"


def _shared_memory() -> str:
    """How full the memory is through which batches pass, and what to do."""
    try:
        usage = shutil.disk_usage("/dev/shm")
        state = f"/dev/shm has {usage.total / 2**20:,.0f} MiB, {usage.free / 2**20:,.0f} of them free"
    except OSError:
        state = "batches pass through shared memory"
    return f"{state}: give the container more (docker run --shm-size=8g), or load in the main process (num_workers=0)"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _nothing() -> None:
    """Without workers there is nothing to stop."""


def default_workers() -> int:
    """The cores that each process of this machine may take, less the one that it computes with; at least 1, at most 16.

    0 where processes cannot be forked from a server (Windows): images are loaded in the main process.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


@contextmanager
def _apart_from_main() -> Iterator[None]:
    """Starts workers that take from the main process neither its script nor its signals.

    They need nothing of the user's script, which may lack a `__main__` guard. The server that forks them must outlive a signal to
    the group as they do; it inherits the mask, and a signal that comes meanwhile is delivered afterwards.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # first, since it clears the mask
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.modules["__main__"] = main


def _begin_worker(_: int) -> None:
    # Ctrl-C and a cluster's SIGTERM go to the whole group: the main process decides, saves, and then lets the workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    torch.set_num_threads(1)
    # The server that forked this worker lives as long as its workers, so torch's own watch over the parent sees nothing.
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    main = multiprocessing.parent_process()
    assert main is not None
    main.join()
    os._exit(1)


def _as_it_is(batch: Any) -> Any:
    return batch
