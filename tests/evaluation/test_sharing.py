"""Evaluations whose images are shared out: the same numbers, notes and errors on one process and on several."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from PIL import Image

from amradio.errors import UserError
from amradio.evaluation import Bench
from amradio.evaluation.sharing import PARTS_AT_ONCE, Share
from amradio.evaluation.suite import Suite, plain, run_suite
from amradio.interruption import StopAskedError
from evaluations import SCENES, SMALL, tiny_bench
from ranks import on_several

LONG = {**SCENES, "length": 130}
"""Three windows of 64 images."""
CHOSEN: dict[str, dict] = {
    **{kind: {"type": kind, **SMALL[kind]} for kind in SMALL},
    "knn": {"type": "knn", "database": {**LONG, "seed": 2}, "queries": SCENES, "k": [1, 5]},
    "zero_shot": {"type": "zero_shot", "data": SCENES, "templates": ["a {}"]},
    "open_vocabulary_segmentation": {"type": "open_vocabulary_segmentation", "data": {**SCENES, "length": 40}, "templates": ["a {}"]},
}
CHOSEN["statistics"]["data"] = LONG
del CHOSEN["normals"]  # measured as depth is
ON_TWO = ("knn", "open_vocabulary_segmentation", "promptable_segmentation", "agreement")
ADDED_UP = "agreement"
"""Whose sums over images are added up, process by process."""
TIMED = "throughput"
"""Whose numbers differ from one time to the next."""


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
            bench = Bench(*deepcopy((one.model, one.teachers)))  # threads play the processes, and a tokenizer is for one thread
            bench.share = share
            torch.set_num_threads(1)
            return strip(run_suite(suite_of(names), bench))

        outcomes = on_several(count, work)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for outcome in outcomes:
            assert list(outcome) == list(names)
            for name in names:
                if name == TIMED:
                    assert outcome[name]["rows"].keys() == expected[name]["rows"].keys()
                elif name == ADDED_UP:
                    assert numbers_of(outcome[name]) == pytest.approx(numbers_of(expected[name]), rel=1e-9, abs=1e-12), count
                    assert outcome[name]["notes"] == expected[name]["notes"]
                    assert outcome[name]["inputs"] == expected[name]["inputs"]
                else:
                    assert outcome[name] == expected[name], (count, name)


def numbers_of(content: Any, start: str = "") -> dict[str, float]:
    """{path: number} of all numbers in a result."""
    if isinstance(content, dict):
        return {path: number for key, value in content.items() for path, number in numbers_of(value, f"{start}/{key}").items()}
    return {start: float(content)} if isinstance(content, int | float) else {}


@pytest.mark.slow
def test_fewer_windows_than_processes_and_images_that_cannot_be_read(tmp_path):
    """Of 70 images there are two windows, and the third process has none; without one readable image all of them learn of it."""
    for number in range(70):
        Image.new("RGB", (32, 32), (3 * number, 255 - number, 7)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "05.png").write_bytes(b"no picture")
    one = tiny_bench(tmp_path / "models")
    parts = (f"{name}: {{type: {name}, data: {{type: folder, path: {tmp_path}}}}}" for name in ("agreement", "statistics"))
    suite = Suite.load(f"evaluations={{{', '.join(parts)}}}", "device=cpu")

    def work(share: Share) -> dict[str, Any]:
        bench = Bench(one.model, one.teachers)
        bench.share = share
        torch.set_num_threads(1)
        return strip(run_suite(suite, bench))

    expected = work(Share())
    assert expected["agreement"]["counts"] == {"images": 70, "sizes": 1, "broken": 1}
    for outcome in on_several(3, work):
        assert outcome["statistics"] == expected["statistics"]
        assert numbers_of(outcome["agreement"]) == pytest.approx(numbers_of(expected["agreement"]), rel=1e-9, abs=1e-12)
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"no picture")
    for outcome in on_several(3, work):
        assert isinstance(outcome, UserError)
        assert "not one can be read; the first: 00.png" in str(outcome)


def suite_of(names: Iterable[str]) -> Suite:
    return Suite.load(f"evaluations={{{', '.join(f'{name}: {CHOSEN[name]}' for name in names)}}}", "device=cpu")


def test_which_evaluations_are_shared():
    """The other one is among those that are compared, so that it is measured by the first process while the others wait."""
    shared = {name for name, settings in suite_of(CHOSEN).evaluations.items() if settings.build().is_shared}
    assert set(CHOSEN) - shared == {TIMED}
