"""Classes are known by their folders; readable names are for prompts, and folders of WordNet have those of ImageNet."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from amradio.data.scenes import CLASS_NAMES
from amradio.errors import UserError
from amradio.evaluation import Bench
from amradio.evaluation.classification.knn import KnnSettings
from amradio.evaluation.classification.zero_shot import ZeroShotSettings
from amradio.evaluation.dense.scoring import score
from amradio.evaluation.text_classifier import same_names
from amradio.labelled.classification import ClassFolderSettings, ScenesImagesSettings, labels_in
from amradio.labelled.imagenet import is_synset, synset_names
from amradio.labelled.segmentation import LabelledMaps
from data_folders import jpeg


def classes(path: Path, *folders: str, names: dict[str, str] | None = None):
    for number, folder in enumerate(folders):
        (path / folder).mkdir(parents=True)
        (path / folder / "a.jpg").write_bytes(jpeg(number))
    if names is not None:
        (path / "classnames.json").write_text(json.dumps(names))
    return ClassFolderSettings(path=str(path))


def test_labels_follow_folders_and_not_names(tmp_path: Path) -> None:
    names = {"n1": "crane", "n2": "crane", "n3": "ox"}
    known, asked = (classes(tmp_path / part, *folders, names=names).build() for part, folders in (("a", names), ("b", ("n2", "n3"))))
    assert known.classes == ["crane", "crane", "ox"]
    assert labels_in(known, asked).tolist() == [1, 2]
    other = classes(tmp_path / "c", "n1", "n2", names={"n1": "ox", "n2": "cow"}).build()
    assert labels_in(known, other).tolist() == [0, 1], "names may differ"


def test_equal_names_of_other_folders_are_other_classes(tmp_path: Path) -> None:
    known, asked = classes(tmp_path / "a", "x", names={"x": "cat"}).build(), classes(tmp_path / "b", "y", names={"y": "cat"}).build()
    with pytest.raises(UserError, match=r"the class 'y' is none of the 1 classes .* matched by the names of their folders"):
        labels_in(known, asked)
    with pytest.raises(UserError, match="is none of the"):
        KnnSettings(database=classes(tmp_path / "c", "x"), queries=classes(tmp_path / "d", "y")).build()


def test_scenes_are_matched_too() -> None:
    one, other = (ScenesImagesSettings(length=5, seed=seed).build() for seed in (1, 2))
    assert labels_in(one, other).tolist() == other.labels
    assert list(one.class_ids) == list(CLASS_NAMES)


@pytest.mark.parametrize(
    ("folder", "expected"), [("n02012849", True), ("n2012849", False), ("N02012849", False), ("n020128490", False), ("n0201284٣", False)]
)
def test_what_is_a_synset(folder: str, expected: bool) -> None:
    assert is_synset(folder) is expected


def test_names_of_synsets() -> None:
    """Those of ImageNet-1k tell the bird from the machine; others are WordNet's first lemma; what is none has none."""
    found = synset_names(["n01440764", "n02012849", "n03126707", "n15075141", "n02084071", "n00015388", "n99999999"])
    assert found == {
        "n01440764": "tench",
        "n02012849": "crane bird",
        "n03126707": "construction crane",
        "n15075141": "toilet paper",
        "n02084071": "dog",
        "n00015388": "animal",
    }


def test_a_subset_of_imagenet_and_mixed_folders(tmp_path: Path) -> None:
    found = classes(tmp_path / "a", "n03126707", "my_thing", "n02012849").build()
    assert list(found.class_ids) == ["my_thing", "n02012849", "n03126707"]
    assert list(found.classes) == ["my thing", "crane bird", "construction crane"]
    named = classes(tmp_path / "b", "n03126707", "n02012849", names={"n02012849": "crane"}).build()
    assert list(named.classes) == ["crane", "construction crane"], "classnames.json comes first and need not name synsets"


def test_a_synset_without_a_name_is_refused_where_prompts_are_made_of_it(tmp_path: Path) -> None:
    settings = classes(tmp_path / "a", "n02012849", "n99999999")
    assert KnnSettings(database=settings, queries=settings).build() is not None
    with pytest.raises(UserError, match=r"no readable name for the class n99999999, which is no synset .* put classnames.json"):
        ZeroShotSettings(data=settings).build()
    named = classes(tmp_path / "b", "n99999999", names={"n99999999": "gizmo"})
    assert list(ZeroShotSettings(data=named).build().images.classes) == ["gizmo"]


def test_the_published_prompts_are_the_default(tmp_path: Path) -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    evaluation = ZeroShotSettings(data=classes(tmp_path, "n02012849")).build()
    assert [template.replace("{}", "crane bird") for template in evaluation.templates] == [
        make("crane bird") for make in OPENAI_IMAGENET_TEMPLATES
    ]


def test_names_that_no_prompt_tells_apart_are_noted() -> None:
    assert same_names(["a", "b"]) == ()
    (note,) = same_names(["missile", "a", "missile"])
    assert "1 names belong to several classes each" in note
    assert "'missile'" in note


class TwoOfOneName(LabelledMaps):
    """Three classes, two of one name; ids 1 and 2 are never told apart by their names."""

    names = ("sky", "crane", "crane")

    def __len__(self) -> int:
        return 1

    def describe(self) -> str:
        return "one image"

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((6, 6, 3), np.uint8), np.repeat(np.arange(3, dtype=np.uint8), 12).reshape(6, 6)


def test_classes_of_one_name_keep_their_own_score() -> None:
    def logits(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "x": torch.nn.functional.one_hot(torch.tensor([0, 1, 1])[torch.arange(6) // 2], 3)
            .T[None, :, :, None]
            .expand(1, 3, 6, 6)
            .float()
        }

    result = score(TwoOfOneName(), logits, Bench(None, {}))
    assert result.details["iou_by_class"]["x"] == {"sky": 100, "crane (1)": 50, "crane (2)": 0}
