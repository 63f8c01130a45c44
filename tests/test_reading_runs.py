"""What `RunFolder` reads of a run, whole, torn or of a former version."""

import json
from pathlib import Path

import pytest

from amradio.config import to_yaml
from amradio.errors import UserError
from amradio.recipe import Recipe
from amradio.run_folder import RunFolder, Series


def write_lines(folder: Path, *lines: str) -> RunFolder:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return RunFolder(folder)


def test_metrics_are_columns_and_each_has_its_own_steps(tmp_path: Path) -> None:
    run = write_lines(
        tmp_path / "a", '{"step": 0, "val/clip/cosine": 0.5}', '{"step": 5, "loss": 2.0}', '{"step": 10, "loss": 1, "note": "x"}'
    )
    assert run.metrics() == {"val/clip/cosine": Series([0], [0.5]), "loss": Series([5, 10], [2.0, 1])}
    assert run.metrics()["loss"].last == 1


def test_a_torn_line_and_steps_that_a_resume_wrote_again(tmp_path: Path) -> None:
    lines = ('{"step": 5, "loss": 2.0}', '{"step": 10, "loss": 1.5}', "\x00", '{"step": 5, "loss": 1.9}')
    run = write_lines(tmp_path / "a", *lines)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    assert run.metrics() == {"loss": Series([5, 10], [1.9, 1.5])}
    assert [record["step"] for record in run.records()] == [5, 10, 5]


def test_measures_of_former_versions_have_the_present_name(tmp_path: Path) -> None:
    run = write_lines(
        tmp_path / "a", '{"step": 1, "val/clip/standardised_cosine": 0.5}', '{"step": 2, "val/clip/standardized_cosine": 0.6}'
    )
    assert run.metrics() == {"val/clip/standardized_cosine": Series([1, 2], [0.5, 0.6])}


def test_evaluations_by_step_and_name_whichever_command_wrote_them(tmp_path: Path) -> None:
    contents = {
        "step_000000010/knn": {"rows": {"student": {"k20": 80.0}}},
        "step_000000002/held_out": {"clip/summary": {"cosine": 0.5}},
        "step_000000010/scenes": {"path": "x", "results": {"zero-shot": {"rows": {}}}},
        "other/knn": {},
    }
    for name, content in contents.items():
        file = tmp_path / "evaluations" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    found = RunFolder(tmp_path).evaluations()
    assert list(found) == [2, 10]
    assert found == {
        2: {"held_out": {"clip/summary": {"cosine": 0.5}}},
        10: {"knn": contents["step_000000010/knn"], "zero-shot": {"rows": {}}},
    }
    (tmp_path / "evaluations/step_000000002/held_out.json").write_text('{"clip')
    with pytest.raises(UserError, match=r"held_out\.json: line 1"):
        RunFolder(tmp_path).evaluations()


def test_what_is_not_there_is_empty_and_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert (run.metrics(), run.evaluations(), run.environment(), run.warnings(), run.pictures()) == ({}, {}, {}, [], [])
    with pytest.raises(UserError, match="not a run folder; give a folder that"):
        run.recipe()
    with pytest.raises(UserError, match="not a run folder"):
        run.config()


def test_warnings_of_the_log_once_each(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(
        "step 1\nwarning: few images\nstep 2\nwarning: few images\nwarning: a \xe9 name\n", encoding="utf-8"
    )
    assert RunFolder(tmp_path).warnings() == ["few images", "a \xe9 name"]


def test_the_recipe_and_its_keys(recipe, tmp_path: Path) -> None:
    wanted: Recipe = recipe("seed=3")
    (tmp_path / "config.yaml").write_text(to_yaml(wanted))
    run = RunFolder(tmp_path)
    assert run.recipe() == wanted
    assert run.config() == wanted.model_dump(mode="json")
    (tmp_path / "config.yaml").write_text("optimizer: {gone: 1}\n")
    assert run.config() == {"optimizer": {"gone": 1}}
