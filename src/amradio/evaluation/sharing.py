"""The images of an evaluation, shared out over the processes of `torchrun`: numbered parts that are the same on any number of processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from ..data.loading_processes import read_each
from ..engine.distributed import Processes
from ..errors import UserError
from .inputs import Counts
from .progress import Progress

Part = TypeVar("Part")
Item = TypeVar("Item")


class Share:
    """What this process does of work that is cut into numbered parts; a process that is alone does all of it.

    Parts never depend on how many processes there are, and what they give is put together in the order of their numbers: so every sum,
    every batch and every result is the same on any number of processes.
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
        """What `work` makes of all parts, in the order of their numbers, on every process. All processes must call it.

        Args:
            work: from the numbers of the parts of this process to {number: what is made of it}; what is sent has no tensors on a GPU.
            count: how many parts there are.

        Raises the UserError that `work` raises on any of the processes, on all of them.
        """
        if self.processes is None:
            parts = work(range(count))
            return [parts[number] for number in range(count)]
        made: Mapping[int, Part] = {}
        problems: Sequence[str] = ()
        try:
            made = work(self.numbers(count))
        except UserError as error:
            problems = error.problems
        gathered = self.processes.gather_patiently((made, problems))
        failed = next((sent for _, sent in gathered if sent), None)
        if failed:
            raise UserError(*failed, on_all_processes=True)
        every = {number: part for parts, _ in gathered for number, part in parts.items()}
        return [every[number] for number in range(count)]

    def added(self, inputs: Mapping[str, Counts]) -> dict[str, Counts]:
        """{row: sizes of the images that its model received}, added up over all processes."""
        if self.processes is None:
            return dict(inputs)
        total: dict[str, Counts] = {row: {} for row in inputs}
        for received in self.processes.gather_patiently(dict(inputs)):
            for row, sizes in received.items():
                for size, count in sizes.items():
                    total[row][size] = total[row].get(size, 0) + count
        return total

    def first_does(self, work: Callable[[], Part]) -> Part:
        """The first process does `work` while the others wait; all get its result, or its UserError."""
        return work() if self.processes is None else self.processes.first_does(work)


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
