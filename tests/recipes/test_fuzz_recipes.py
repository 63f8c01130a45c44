"""500 damaged recipes through `--dry-run`: a message or a plan, never a traceback, without end or with more than 2 GiB; and 100 that are
accepted run for two steps. Here as many as `AMRADIO_FUZZ_SECONDS` (30) allow; 0 for all of them."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import processes
from data_folders import make_folder
from mutations import Mutated, mutated

pytestmark = pytest.mark.slow

DRY, RUNS = 500, 100
SECONDS = float(os.environ.get("AMRADIO_FUZZ_SECONDS", "30"))
FIRST = int(os.environ.get("AMRADIO_FUZZ_FIRST", "0"))
"""The number of the first mutation."""
LIMIT = float(os.environ.get("AMRADIO_FUZZ_LIMIT", "120"))
"""Seconds of one case; honest work takes a few on an idle machine."""
SHORT = (
    "data.num_workers=0",  # a forked process cannot use the fork server of its parent
    "stages.0.steps=2",
    "normalize.batches=1",
    "evaluate.batches=1",
)
"""Two steps of what was accepted."""


def numbers(count: int, seconds: float) -> Iterator[int]:
    """The numbers of the mutations, until the time is over."""
    end = time.monotonic() + seconds
    for number in range(FIRST, FIRST + count):
        if SECONDS and time.monotonic() > end and number - FIRST >= 5:
            return
        yield number


def run(case: Mutated, folder: Path, *words: str) -> processes.Ended:
    folder.mkdir()
    file = folder / "recipe.yaml"
    file.write_bytes(case.content)
    started = processes.start(
        "distill", file, *case.words, *words, f"out={folder / 'run'}", folder=folder / "printed", prelude=processes.limit_memory
    )
    return started.wait(LIMIT)


def is_small(plan: str) -> bool:
    """Whether two steps of a plan that a dry run printed are a matter of seconds."""
    sizes = [int(side) for sides in re.findall(r"\b(?:image_|view_)?size: \[?(\d+)(?:, (\d+))?", plan) for side in sides if side]
    batches = [int(size) for size in re.findall(r"batch_size: (\d+)", plan)]
    millions = [float(size) for size in re.findall(r"(?:student|head \w+)\D+?(\d+\.\d+)", plan)]
    return max(sizes, default=0) <= 512 and max(batches, default=0) <= 64 and sum(millions) < 60


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    make_folder(path, 12)
    return path


def report(faults: list[str], done: int, codes: dict[int, int]) -> None:
    print(f"{done} cases, by exit code {codes}, {len(faults)} faults")
    assert not faults, "\n\n".join(faults)


def test_damaged_recipes_are_refused_with_a_message_or_planned(pictures, tmp_path):
    faults, codes, done = [], {}, 0
    for number in numbers(DRY, SECONDS / 2):
        case = mutated(number, pictures)
        try:
            ended = run(case, tmp_path / str(number), "--dry-run")
            found = ended.fault()
            codes[ended.code] = codes.get(ended.code, 0) + 1
        except AssertionError as error:
            found = str(error)
        done += 1
        if found:
            faults.append(f"{number} ({case.what}): {found}")
    report(faults, done, codes)
    assert done >= 5


def test_what_a_dry_run_accepts_really_runs(pictures, tmp_path):
    faults, codes, done = [], {}, 0
    for number in numbers(RUNS * 20, SECONDS / 2):
        case = mutated(number, pictures)
        plan = run(case, tmp_path / f"dry{number}", *SHORT, f"out={tmp_path / 'out'}", "--dry-run")
        if plan.code != 0 or not is_small(plan.output):
            continue
        try:
            ended = run(case, tmp_path / f"run{number}", *SHORT, f"out={tmp_path / f'out{number}'}")
            found = ended.fault()
            codes[ended.code] = codes.get(ended.code, 0) + 1
        except AssertionError as error:
            found = str(error)
        if found:
            faults.append(f"{number} ({case.what}): {found}")
        done += 1
        if done == RUNS:
            break
    report(faults, done, codes)
