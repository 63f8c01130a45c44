"""Evaluations whose images are shared out: the same numbers, notes and errors on one process and on several."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch

from amradio.engine.distributed import Processes
from amradio.errors import UserError
from amradio.evaluation import Bench
from amradio.evaluation.sharing import PARTS_AT_ONCE, Share
from amradio.evaluation.suite import Suite, plain, run_suite
from amradio.interruption import StopAskedError
from evaluations import SCENES, SMALL, tiny_bench

LONG = {**SCENES, "length": 130}
"""Three windows of 64 images."""
PATIENCE = 600
"""s: longer than the slowest part on a machine that has much else to do."""
CHOSEN: dict[str, dict] = {
    **{kind: {"type": kind, **SMALL[kind]} for kind in SMALL},
    "knn": {"type": "knn", "database": {**LONG, "seed": 2}, "queries": SCENES, "k": [1, 5]},
    "zero_shot": {"type": "zero_shot", "data": SCENES, "templates": ["a {}"]},
    "open_vocabulary_segmentation": {"type": "open_vocabulary_segmentation", "data": {**SCENES, "length": 40}, "templates": ["a {}"]},
}
for name in ("throughput", "agreement", "normals"):  # statistics are not shared either, and normals are measured as depth is
    del CHOSEN[name]
ON_TWO = ("knn", "open_vocabulary_segmentation", "promptable_segmentation")


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


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("parts", [0, 1, 2, 3 * PARTS_AT_ONCE + 5])
def test_parts_are_put_together_in_order(count, parts):
    outcomes = on_several(count, lambda share: share.collect(lambda numbers: {number: number**2 for number in numbers}, parts))
    assert outcomes == [[number**2 for number in range(parts)]] * count


def test_an_error_of_one_process_is_raised_on_all_wherever_it_happens():
    def within(share: Share) -> None:
        def work(numbers: range) -> dict[int, int]:
            if 1 in numbers:
                raise UserError("1: damaged; replace it")
            return dict.fromkeys(numbers, 0)

        share.collect(work, 4)

    def between(share: Share, error: Exception) -> None:
        def several() -> None:
            for number in range(3):
                share.collect(lambda numbers: dict.fromkeys(numbers, 0), 4)
                if number == 1 and 1 in share.numbers(4):
                    raise error

        share.all_do(several)

    def first(share: Share) -> None:
        def work() -> None:
            raise UserError("no disk; free some")

        share.first_does(work)

    for work, message in (
        (within, "1: damaged; replace it"),
        (lambda share: between(share, UserError("2: damaged")), "2: damaged"),
        (first, "no disk"),
    ):
        outcomes = on_several(3, work)
        assert [type(outcome) for outcome in outcomes] == [UserError] * 3
        assert all(outcome.on_all_processes and message in str(outcome) for outcome in outcomes)
    outcomes = on_several(3, lambda share: between(share, StopAskedError()))
    assert [type(outcome) for outcome in outcomes] == [StopAskedError] * 3


def test_different_errors_of_processes_are_told_together():
    def work(share: Share) -> None:
        share.all_do(lambda: (_ for _ in ()).throw(UserError(f"{share.numbers(3)[0]}: missing", "common: missing")))

    outcomes = on_several(3, work)
    assert list(outcomes[0].problems) == ["0: missing", "common: missing", "1: missing", "2: missing"]


def strip(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {key: value for key, value in plain(result).items() if key != "seconds"} for name, result in results.items()}


@pytest.mark.slow
def test_every_evaluation_has_the_same_numbers_on_one_two_and_three_processes(tmp_path):
    one = tiny_bench(tmp_path)
    expected = strip(run_suite(suite_of(CHOSEN), one))
    assert expected.keys() == CHOSEN.keys()
    for count, names in ((2, ON_TWO), (3, tuple(CHOSEN))):

        def work(share: Share, names: Sequence[str] = names) -> dict[str, Any]:
            bench = Bench(one.model, one.teachers)
            bench.share = share
            torch.set_num_threads(1)
            return strip(run_suite(suite_of(names), bench))

        outcomes = on_several(count, work)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for outcome in outcomes:
            assert list(outcome) == list(names)
            for name in names:
                assert outcome[name] == expected[name], (count, name)


def suite_of(names: Iterable[str]) -> Suite:
    return Suite.load(f"evaluations={{{', '.join(f'{name}: {CHOSEN[name]}' for name in names)}}}", "device=cpu")


def test_which_evaluations_are_shared():
    """Of the others one is among those that are compared, so that it is measured by the first process while the others wait."""
    shared = {name for name, settings in suite_of(CHOSEN).evaluations.items() if settings.build().is_shared}
    assert set(CHOSEN) - shared == {"statistics"}
