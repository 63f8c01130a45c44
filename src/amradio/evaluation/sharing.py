"""The images of an evaluation, shared out over the processes of `torchrun`: numbered parts that are the same on any number of processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from ..data.loading_processes import read_each
from ..engine.distributed import Processes
from ..errors import UserError
from ..interruption import StopAskedError
from .inputs import Counts
from .progress import Progress

Part = TypeVar("Part")
Item = TypeVar("Item")
PARTS_AT_ONCE = 64
"""Parts of each process that are sent together, so that the memory for sending is bounded."""


class Share:
    """Which of the numbered parts of some work are this process's; a process that is alone does all of them.

    Parts do not depend on how many processes there are, and their results are put together in the order of their numbers: so every batch
    and every result is the same on any number of processes; sums of `add_up` are rounded in another order.
    """

    def __init__(self, processes: Processes | None = None):
        """processes: those of `torchrun`, None for this one alone."""
        self.processes = processes if processes is not None and processes.world_size > 1 else None

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.processes is None

    def numbers(self, count: int) -> range:
        """The numbers, of `count` parts, of those that this process does: every N-th for N processes."""
        return range(count) if self.processes is None else range(self.processes.rank, count, self.processes.world_size)

    def collect(self, work: Callable[[range], Mapping[int, Part]], count: int) -> list[Part]:
        """What `work` returns for all parts, in the order of their numbers, on every process. All processes must call it.

        Args:
            work: from the numbers of the parts of this process to {number: its result}; what is sent has no tensors on a GPU.
            count: how many parts there are.

        Raises the UserError or the StopAskedError that `work` raises on any of the processes, on all of them.
        """
        numbers = self.numbers(count)
        made = self.all_do(lambda: work(numbers))
        if self.processes is None:
            return [made[number] for number in range(count)]
        every: dict[int, Part] = {}
        longest = -(-count // self.processes.world_size)  # so many parts the first process has
        for start in range(0, longest, PARTS_AT_ONCE):
            sent = {number: made[number] for number in numbers[start : start + PARTS_AT_ONCE]}
            for parts in self.processes.gather_patiently(sent):
                every |= parts
        return [every[number] for number in range(count)]

    def all_do(self, work: Callable[[], Part]) -> Part:
        """Every process does `work`, and continues when all have done it; may be nested. All processes must call it.

        Raises the UserError or the StopAskedError that `work` raises on any of the processes, on all of them: where one of them fails
        between two calls within `work`, the others learn of it in their next one.
        """
        if self.processes is None:
            return work()
        results: list[Part] = []
        problems: Sequence[str] = ()
        was_stopped = False
        try:
            results.append(work())
        except (UserError, StopAskedError) as error:
            if error.on_all_processes:
                raise
            was_stopped = isinstance(error, StopAskedError)
            problems = [] if isinstance(error, StopAskedError) else error.problems
        outcomes = self.processes.gather_patiently((list(problems), was_stopped))
        if any(stopped for _, stopped in outcomes):
            raise StopAskedError(on_all_processes=True)
        failed = list(dict.fromkeys(problem for sent, _ in outcomes for problem in sent))
        if failed:
            raise UserError(*failed, on_all_processes=True)
        return results[0]

    def added(self, inputs: Mapping[str, Counts]) -> dict[str, Counts]:
        """{row: sizes of the images that its model received}, added up over all processes."""
        if self.processes is None:
            return dict(inputs)
        total: dict[str, Counts] = {row: {} for row in inputs}
        for received in self.collect(lambda numbers: {number: dict(inputs) for number in numbers}, self.processes.world_size):
            for row, sizes in received.items():
                for size, count in sizes.items():
                    total[row][size] = total[row].get(size, 0) + count
        return total

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, added in their order, so rounded alike on all of them. All processes must call it."""
        if self.processes is None:
            return tensor
        first, *others = self.processes.gather_patiently(tensor.cpu())
        for other in others:
            first = first + other
        return first.to(tensor.device)

    def first_does(self, work: Callable[[], Part]) -> Part:
        """The first process does `work` while the others wait; all get its result, or its UserError or StopAskedError."""
        return self.collect(lambda numbers: {number: work() for number in numbers}, 1)[0]


def read_windows(
    read: Callable[[int], Item], windows: Iterable[range], num_workers: int | None, progress: Progress, title: str
) -> Iterator[list[Item]]:
    """`read(number)` of all numbers of each window.

    Args:
        read: as of `read_each`.
        windows: numbers that are wanted together.
        num_workers: processes that read.
        progress: is shown the numbers, one by one.
        title: what is being done.
    """
    windows = list(windows)
    numbers = [number for window in windows for number in window]
    items = progress(read_each(read, numbers, num_workers), title, len(numbers))
    for window in windows:
        yield [next(items) for _ in window]


def windows_of(count: int, size: int) -> list[range]:
    """The numbers below `count`, `size` at a time."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
