"""`amradio compare`: changed keys, last numbers, floors and marks."""

import json

import pytest

from amradio.__main__ import main
from amradio.commands.compare import compare
from amradio.errors import UserError
from amradio.report import read_runs
from amradio.report.document import build_page
from made_runs import make_run, zero_shot


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


def seeded(recipe, path, seed, before, after):
    """A finished run with zero-shot accuracies at step 0 and at its end."""
    run = make_run(recipe(f"seed={seed}"), path, score=after)
    run.write("evaluations/step_000000000/zero-shot.json", json.dumps(zero_shot(before)))
    return run.path


@pytest.mark.parametrize(
    ("scores", "verdict", "words"),
    [
        (
            [(25.0, 60.0), (24.0, 70.0), (26.0, 65.0)],
            "better",
            "Distillation helps here: against the same student at step 0, 1 of 1 numbers are better",
        ),
        ([(25.0, 40.0), (24.0, 23.9), (26.0, 65.0)], "no difference", "Distillation does not help here"),
        ([(25.0, 25.5), (24.0, 24.9), (26.0, 26.5)], "no difference", "Distillation does not help here"),
        ([(25.0, 20.0), (24.0, 19.0), (26.0, 22.0)], "worse", "0 of 1 numbers are better and 1 worse"),
    ],
)
def test_against_scratch_is_decided_by_pairs_of_one_seed(recipe, tmp_path, capsys, scores, verdict, words):
    runs = [seeded(recipe, tmp_path / f"s{seed}", seed, *pair) for seed, pair in enumerate(scores)]
    assert main(["compare", *map(str, runs), "--against", "scratch"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert words in printed
    assert "warning" not in printed
    found = compare(*runs, against="scratch", as_json=True)
    (row,) = found["rows"]
    assert (row["name"], row["verdict"], row["teacher"]) == ("top-1, student/clip", verdict, 90.0)
    assert row["gains"] == pytest.approx([after - before for before, after in scores])


def test_against_other_runs_they_are_paired_by_seed(recipe, tmp_path, capsys):
    runs = [seeded(recipe, tmp_path / f"a{seed}", seed, 25.0, 80.0) for seed in (1, 2)]
    others = [seeded(recipe, tmp_path / f"b{seed}", seed, 25.0, score) for seed, score in ((2, 60.0), (1, 79.0))]
    found = compare(*runs, against=others)
    assert found["rows"][0]["gains"] == pytest.approx([1.0, 20.0])
    assert "warning: fewer than 3 seeds" in capsys.readouterr().out
    with pytest.raises(UserError, match="0 runs have seed 2, that of a2; give exactly one for each seed"):
        compare(*runs, against=others[1:])
    with pytest.raises(UserError, match="no evaluation of step 0 is recorded"):
        compare(make_run(recipe(), tmp_path / "c").path, against="scratch")


def test_the_numbers_of_a_detector_are_compared_as_well(runs, capsys):
    for run, score in zip(runs, (20.0, 30.0), strict=True):
        (run / "evaluations/step_000000012/detection.json").write_text(json.dumps({"box_ap": score, "box_ar1": 5.0}))
    rows = {row["name"]: row["values"] for row in compare(*runs)["rows"] if row["group"] == "detection"}
    assert rows == {"box ap, detector": [20.0, 30.0]}


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


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("zero-shot", {"rows": [1]}, "rows: should be a mapping of keys to values, found [1]"),
        ("zero-shot", {"accuracy": 0.5}, "rows: this key is required and missing"),
        ("zero-shot", {"rows": {}, "metrics": [{"name": "top1"}]}, "metrics.0.title: this key is required and missing"),
        ("zero-shot", {"results": {"knn": {"rows": {"student": {"k20": "high"}}}}}, "results.knn.rows.student.k20: should be a number"),
        ("zero-shot", {"results": {"held_out": {"rows": {}}}}, "results: no evaluation can be named 'held_out'"),
        ("held_out", {"clip/summary": 0.5}, "held_out.clip/summary: should be a mapping"),
    ],
)
def test_a_result_of_another_shape_is_one_message_that_names_the_file(runs, tmp_path, capsys, name, content, problem):
    file = runs[1] / f"evaluations/step_000000012/{name}.json"
    file.write_text(json.dumps(content))
    for words in (["compare", *map(str, runs)], ["report", str(runs[1]), "--out", str(tmp_path / "r.html")]):
        assert main(words) == 2
        errors = capsys.readouterr().err
        assert f"error: {file}: {problem}" in errors
        assert "remove the file, or evaluate again" in errors


@pytest.mark.slow
def test_a_result_in_which_one_value_has_another_type_is_read_or_refused(runs, tmp_path):
    """No damage of a result, an environment or a recipe of another version ends in another exception than UserError."""
    (runs[0] / "config.yaml").write_text("stages: 3\n")  # a whole recipe takes longer to read than everything else
    refused = 0
    for name in (
        "evaluations/step_000000012/zero-shot.json",
        "evaluations/step_000000012/held_out.json",
        "environment.json",
        "data.json",
        CALIBRATION,
    ):
        file = runs[0] / name
        whole = file.read_text()
        for damaged in with_one_value_changed(json.loads(whole)):
            file.write_text(json.dumps(damaged))
            refused += is_refused(runs[0])
        file.write_text(whole)
    for text in (
        "student: vit\nteachers: [clip]\nstages: [3]\n",
        "student: [1]\nteachers: clip\nstages: {steps: 3}\n",
        "stages: [{steps: x}]\n",
    ):
        (runs[0] / "config.yaml").write_text(text)
        assert not is_refused(runs[0])
    assert refused > 30


CALIBRATION = "calibration/stage_0/manifest.json"


def with_one_value_changed(tree):
    """Copies of a JSON tree, in each of which one value is of another type."""
    for other in ("x", [1], None):
        if not isinstance(other, type(tree)):
            yield other
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        for changed in with_one_value_changed(value):
            copy = tree.copy()
            copy[key] = changed
            yield copy


def is_refused(run):
    try:
        build_page(read_runs([run]))
    except UserError:
        return True
    return False
