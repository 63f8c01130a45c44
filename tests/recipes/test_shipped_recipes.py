"""Shipped recipes have names: `amradio distill starter` works wherever the package is installed."""

from pathlib import Path

import pytest

import amradio
from amradio.downstream.detection.settings import DetectionRecipe
from amradio.downstream.vlm.settings import VlmRecipe
from amradio.errors import UserError
from amradio.evaluation.suite import Suite
from amradio.recipe import Recipe
from amradio.recipes import FOLDER, locate, shipped
from amradio.words import read_words

PACKAGE = Path(amradio.__file__).parent


def test_every_shipped_file_lies_in_the_package_and_is_described():
    found = shipped()
    assert {entry.path for entry in found} == set((PACKAGE / "recipes").glob("*.yaml"))
    assert all(entry.about and entry.command and entry.cost for entry in found)
    assert {entry.name for entry in found if entry.kind == "evaluation"} == {"real_evaluation", "scenes"}
    assert {entry.name for entry in found if entry.kind == "part"} == {"smoke"}
    for entry in found:
        assert all(line.startswith(("amradio ", "torchrun ")) for line in entry.command.splitlines()), entry.command


@pytest.mark.parametrize("entry", shipped(), ids=lambda entry: entry.name)
def test_a_name_stands_for_its_file_anywhere(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(entry.name) == entry.path
    kind = {"evaluation": Suite, "detection": DetectionRecipe, "vlm": VlmRecipe}.get(entry.kind, Recipe)
    before = {"part": ["quickstart"], "detection": ["model=runs/student"], "vlm": ["model=runs/student"]}.get(entry.kind, [])
    assert kind.load(*before, entry.name) == kind.load(*before, str(entry.path))


def test_the_users_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scenes").write_text("seed: 5\n")
    assert read_words(["scenes"]) == {"seed": 5}


def test_a_folder_named_like_a_recipe_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert locate("quickstart") == FOLDER / "quickstart.yaml"


def test_a_run_folder_stands_for_its_config(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    assert read_words([str(tmp_path), "out=runs/b"]) == {"seed": 7, "out": "runs/b"}


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("quikstart", "did you mean 'quickstart'?"),
        ("recipes/quickstart.yaml", "written without a path: quickstart"),
        ("real_image.yaml", "did you mean 'real_images'"),
        ("nothing-like-it", "amradio recipes"),
    ],
)
def test_what_is_not_there_is_answered_with_the_nearest_name(word, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_words([word])
    assert word in str(caught.value)
    assert hint in str(caught.value)
