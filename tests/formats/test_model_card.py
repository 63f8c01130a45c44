"""The model card: what the hub reads of it, and what a reader finds in it."""

from pathlib import Path

import pytest

import amradio
from amradio.formats.model_card import card
from amradio.network import TrainingFacts
from amradio.yaml12 import parse_yaml
from model_folders import AGREEMENT, layer_scale_vit


@pytest.fixture
def model(tmp_path: Path):
    return amradio.load(layer_scale_vit(tmp_path / "model"))


def test_the_header_is_yaml_with_licence_library_and_results(model, tmp_path):
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    header = parse_yaml(text.split("---\n")[1], "README.md")
    assert header["library_name"] == "amradio"
    assert header["license"] == "other"
    assert header["base_model"] == ["apple/DFN5B", "facebook/dinov2-small"]
    (index,) = header["model-index"]
    metrics = [metric for result in index["results"] for metric in result["metrics"]]
    assert metrics == [{"type": "standardized_cosine", "name": "clip/summary against its teacher", "value": 0.5}]


@pytest.mark.parametrize(
    ("train", "names"),
    [
        ("{type: huggingface, path: owner/pictures}", ["owner/pictures"]),
        (
            "{type: mixture, sources: {a: {type: huggingface, path: o/a}, b: {type: folder, path: x}, c: {type: huggingface, path: o/c}}}",
            ["o/a", "o/c"],
        ),
        ("{type: huggingface, path: /data/pictures}", None),
        ("{type: folder, path: photos/train}", None),
        ("[", None),
    ],
)
def test_the_header_names_data_sets_of_the_hub(model, train, names):
    facts = TrainingFacts(step=7, num_steps=9, data="some", recipe=f"data: {{train: {train}}}")
    text = card(model.config.model_copy(update={"training": facts}), model.network, {})
    assert parse_yaml(text.split("---\n")[1], "README.md").get("datasets") == names


def test_the_sections_that_a_reader_looks_for(model, tmp_path):
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Load it",
        "## Input",
        "## Intended use and limits",
        "## Teachers and their terms",
        "## Training",
        "## Citation",
    ]
    assert 'features = model.features("photo.jpg", heads=[' in text


@pytest.mark.parametrize(
    ("evaluated", "expected"),
    [
        (None, "Held-out agreement with the teachers.\n"),
        (7, "Held-out agreement with the teachers at step 7.\n"),
        (0, "Held-out agreement with the teachers at step 0, before the last steps of these weights.\n"),
    ],
)
def test_the_agreement_is_of_the_step_at_which_it_was_measured(model, evaluated, expected):
    facts = TrainingFacts(step=7, num_steps=9, data="scenes", agreement=AGREEMENT, evaluated=evaluated)
    text = card(model.config.model_copy(update={"training": facts}), model.network, {})
    assert expected in text
