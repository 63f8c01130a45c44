"""Results of a benchmark that was stopped are kept, and runs with other settings never join them."""

import json
import sys
from pathlib import Path

import pytest

from amradio.errors import UserError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from stored_runs import StoredRuns


def test_the_same_command_goes_over_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    first = StoredRuns(file, {"steps": 3})
    first.add({"row": "frozen", "seed": 0, "score": 1.5}, best="frozen")
    again = StoredRuns(file, {"steps": 3})
    assert again.has(row="frozen", seed=0)
    assert not again.has(row="frozen", seed=1)
    again.add({"row": "trained", "seed": 0, "score": 2.5}, best="trained")
    content = json.loads(file.read_text())
    assert [run["score"] for run in content["runs"]] == [1.5, 2.5]
    assert content["best"] == "trained"
    assert all(set(run["made_with"]) == {"time", "cpu", "commit"} for run in content["runs"])


def test_runs_with_other_settings_are_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    StoredRuns(file, {"steps": 3}).add({"row": "frozen"})
    before = file.read_bytes()
    with pytest.raises(UserError, match="give another file"):
        StoredRuns(file, {"steps": 4})
    assert file.read_bytes() == before
