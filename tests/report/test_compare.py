"""`amradio compare`: changed keys, last numbers, floors and marks."""

import json

import pytest

from amradio.__main__ import main
from amradio.commands.compare import compare
from amradio.errors import UserError
from amradio.report import read_runs
from made_runs import make_run


@pytest.fixture
def runs(recipe, tmp_path):
    """Two finished runs of which the second has another rate, a better cosine, and a student below the floor."""
    first = make_run(recipe(), tmp_path / "a")
    second = make_run(recipe("optimizer.learning_rate=0.5"), tmp_path / "b", score=20.0, cosine=0.9)
    return first.path, second.path


def test_changed_keys_and_numbers_with_marks(runs, capsys):
    assert main(["compare", *map(str, runs)]) == 0
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "optimizer.learning_rate 0.001 0.5" in printed
    assert "standardized cosine, clip/summary 0.800 *0.900 0.000" in printed
    assert "top-1, student/clip (%) *80.0 !20.0 25.0" in printed
    assert "top-1, teacher/clip (%) 90.0 90.0 25.0" in printed, "what is equal has no best"
    assert "* best run of its row; ! not better than the floor" in printed
    assert not any("hidden" in line or line.startswith("out ") for line in printed)


def test_the_same_as_json(runs, capsys):
    assert main(["compare", *map(str, runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert found["changed_keys"] == {"optimizer.learning_rate": [0.001, 0.5]}
    row = next(row for row in found["rows"] if row["name"] == "top-1, student/clip")
    assert (row["values"], row["floors"], row["best"], row["below_floor"]) == ([80.0, 20.0], [25.0, 25.0], [0], [1])
    assert (row["group"], row["unit"], row["better"]) == ("zero-shot", "%", "higher")


def test_what_one_run_lacks_is_a_dash_and_unfinished_runs_are_named(runs, recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # the names of the runs begin with that of the test
    (runs[1] / "evaluations/step_000000012/zero-shot.json").unlink()
    third = make_run(recipe("stages.0.steps=40"), tmp_path / "more" / "b")
    found = compare(*runs, third.path)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [run["name"] for run in found["runs"]] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b", "more/b"]
    assert "top-1, student/clip (%) 80.0 - 80.0 25.0" in printed
    assert "warning: more/b is at step 12 of 40" in printed


def test_runs_of_one_recipe_say_so(recipe, tmp_path, capsys):
    compare(make_run(recipe(), tmp_path / "a").path, make_run(recipe(), tmp_path / "b").path)
    assert "The recipes have the same keys and values." in capsys.readouterr().out


def test_all_problems_at_once(runs, tmp_path, capsys):
    assert main(["compare", str(runs[0]), str(tmp_path / "none"), str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("this is not a run folder") == 2
    with pytest.raises(UserError, match="give each run once"):
        read_runs([runs[0], runs[0]])
    with pytest.raises(UserError, match="two run folders or more"):
        compare(runs[0])
    (runs[1] / "evaluations/step_000000012/held_out.json").write_text("[1]")
    with pytest.raises(UserError, match=r"held_out\.json"):
        compare(*runs)
