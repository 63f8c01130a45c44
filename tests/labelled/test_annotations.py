"""Annotation files: every value is checked before it is used, and what is wrong is named with its file and its annotation."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amradio.data.guard import MAX_PIXELS
from amradio.errors import UserError
from amradio.labelled.annotations import PROBLEMS_SHOWN
from amradio.labelled.classification import ClassFolderSettings, CocoCaptionsSettings
from amradio.labelled.instances import CocoInstancesSettings
from amradio.labelled.masks import decode_mask, read_mask
from amradio.labelled.segmentation import ImagesLabelsSettings

SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 20.0, 5.0, 20.0]
NAN, INF = float("nan"), float("inf")


def annotation(**changes: Any) -> dict[str, Any]:
    found = {"id": 17, "image_id": 1, "category_id": 3, "area": 225, "bbox": [5, 5, 15, 15], "iscrowd": 0, "segmentation": [SQUARE]}
    return {key: value for key, value in (found | changes).items() if value is not ...}


def image(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in ({"id": 1, "file_name": "a.png", "height": 30, "width": 40} | changes).items() if value is not ...}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    return tmp_path


def instances(folder: Path, *annotations: Any, images: Any = None, **more: Any) -> CocoInstancesSettings:
    pytest.importorskip("pycocotools")
    content = {"images": images or [image()], "annotations": list(annotations), "categories": [{"id": 3, "name": "cat"}]} | more
    (folder / "a.json").write_text(json.dumps(content))
    return CocoInstancesSettings(annotations=str(folder / "a.json"), images=str(folder / "images"))


def captions(folder: Path, *annotations: Any, images: Any = None) -> CocoCaptionsSettings:
    (folder / "a.json").write_text(json.dumps({"images": images or [image()], "annotations": list(annotations)}))
    return CocoCaptionsSettings(annotations=str(folder / "a.json"), images=str(folder / "images"))


NUMBERS = [None, NAN, INF, -INF, "5", True, [5], {}, 1e308, 10**400]
"""What is no number of px, each in the place of one."""


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("place", ["corner", "bbox", "area"])
def test_what_is_no_finite_number_is_refused(folder: Path, place: str, value: Any) -> None:
    changes = {
        "corner": {"segmentation": [[*SQUARE[:3], value, *SQUARE[4:]]]},
        "bbox": {"bbox": [5, value, 15, 15]},
        "area": {"area": value if value is not None else -1},
    }
    with pytest.raises(UserError, match=r"a\.json: annotations\[1\] \(id 17\): (segmentation: polygon 0|bbox|area): found "):
        instances(folder, annotation(id=1), annotation(**changes[place])).build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": ...}, "it lacks 'segmentation'"),
        ({"segmentation": None}, "segmentation: found null; expected polygons"),
        ({"segmentation": "abc"}, "expected polygons"),
        ({"segmentation": SQUARE}, r"polygon 0 is 5\.0"),
        ({"segmentation": [[5, 5, 9, 9]]}, "at least three corners"),
        ({"segmentation": [[*SQUARE, 3]]}, "polygon 0 is .*at least three corners"),
        ({"segmentation": [SQUARE, [[1, 2], [3, 4], [5, 6], 1, 2, 3]]}, r"polygon 1: found \[1, 2\]; expected a finite number"),
        ({"segmentation": [[5, 5, 20, 5, 1e7, 20]]}, "over 10 sizes of the image"),
        ({"segmentation": [[5, 5, 20, 5, 20, -301]]}, "over 10 sizes of the image"),
        ({"segmentation": [[-390, -290, 430, 320] * 2000]}, "has an outline of"),
        ({"segmentation": {}}, "a mask of size null"),
        ({"segmentation": {"size": [30, 40]}}, "without counts"),
        ({"segmentation": {"size": [40, 30], "counts": [1200]}}, "both must be of one size"),
        ({"segmentation": {"size": [-30, -40], "counts": [1200]}}, "expected a whole number"),
        ({"segmentation": {"size": ["30", 40], "counts": [1200]}}, "expected a whole number"),
        ({"segmentation": {"size": [30, 40], "counts": [1199]}}, "an RLE of 1199 px, and its image has 1,200"),
        ({"segmentation": {"size": [30, 40], "counts": [10**18, 200]}}, "must add up"),
        ({"segmentation": {"size": [30, 40], "counts": [10**30]}}, "expected a whole number"),
        ({"segmentation": {"size": [30, 40], "counts": [-5, 1205]}}, "expected a whole number"),
        ({"segmentation": {"size": [30, 40], "counts": [NAN]}}, "expected a whole number"),
        ({"segmentation": {"size": [30, 40], "counts": [True, 1199]}}, "expected a whole number"),
        ({"segmentation": {"size": [30, 40], "counts": ""}}, "an RLE of 0 px"),
        ({"segmentation": {"size": [30, 40], "counts": "PPPPPP"}}, "text is damaged"),
        ({"segmentation": {"size": [30, 40], "counts": "oooooooooooooooo0"}}, "text is damaged"),
        ({"segmentation": {"size": [30, 40], "counts": "né\ud800"}}, "text is damaged"),
        ({"segmentation": {"size": [30, 40], "counts": "\0\1"}}, "text is damaged"),
        ({"bbox": [5, 5, -1, 15]}, "bbox: found .*expected"),
        ({"bbox": [5, 5, 15]}, "bbox: found .*expected"),
        ({"bbox": "5 5 15 15"}, "bbox: found .*expected"),
        ({"bbox": [5, 5, 1e6, 15]}, "of an image of 40x30 px"),
        ({"area": -3}, "area: found -3; expected 0 or more"),
        ({"iscrowd": 2}, "iscrowd: found 2; expected 0 or 1"),
        ({"iscrowd": "0"}, "iscrowd: found '0'"),
        ({"iscrowd": NAN}, "iscrowd: found nan"),
        ({"image_id": ...}, "it lacks 'image_id'"),
        ({"image_id": 2}, "its image_id 2 belongs to no image"),
        ({"image_id": "1"}, "its image_id '1' belongs to no image"),
        ({"image_id": [1]}, "image_id: found"),
        ({"image_id": NAN}, "image_id: found nan"),
        ({"category_id": 4}, "category_id 4 is none of the file's"),
        ({"category_id": [3]}, "category_id: found"),
        ({"id": 1}, "has the same id"),
        ({"id": {}}, "id: found"),
    ],
)
def test_annotations_of_instances(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.json: annotations\[1\].*: .*{message}"):
        instances(folder, annotation(id=1), annotation(**changes)).build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": "30"}, "height: found '30'"),
        ({"height": -30}, "height: found -30"),
        ({"height": 0}, "height: found 0"),
        ({"width": NAN}, "width: found nan"),
        ({"width": 40.5}, "width: found 40.5"),
        ({"width": True}, "width: found true"),
        ({"width": MAX_PIXELS}, "more than the limit"),
        ({"width": 10**30}, "width: found 1000"),
        ({"id": None}, "id: found null"),
        ({"id": ...}, "it lacks 'id'"),
        ({"file_name": ...}, "it lacks 'file_name'"),
        ({"file_name": 3}, "file_name: found 3"),
        ({"file_name": ""}, "file_name: found ''"),
        ({"file_name": "a\0.png"}, "file_name: found"),
        ({"file_name": "\ud800.png"}, "lone surrogate"),
        ({"file_name": "../a.png"}, "expected the path of a file below"),
        ({"file_name": "x/../../a.png"}, "expected the path of a file below"),
        ({"file_name": "/etc/passwd"}, "expected the path of a file below"),
        ({"file_name": "."}, "expected the path of a file below"),
        ({"file_name": "b/" + "a" * 300}, "a name in it has 300 bytes, and file systems take 255"),
    ],
)
@pytest.mark.parametrize("make", [instances, captions])
def test_images_of_both(folder: Path, make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.json: images\[0\].*: .*{message}") as found:
        make(folder, annotation(caption="a cat"), images=[image(**changes)]).build()
    assert len(found.value.problems) == 1 + ("id" in changes), "what is wrong with the image is not said of each of its annotations"


@pytest.mark.parametrize("make", [instances, captions])
def test_images_listed_twice_and_entries_that_are_none(folder: Path, make: Any) -> None:
    with pytest.raises(UserError, match=r"images\[1\] \(id 1\): an image before it has the same id"):
        make(folder, annotation(caption="x"), images=[image(), image(file_name="b.png")]).build()
    with pytest.raises(UserError, match=r"images\[1\] \(id 2\): the image 1 has the same file_name"):
        make(folder, annotation(caption="x"), images=[image(), image(id=2, file_name="./a.png")]).build()
    with pytest.raises(UserError) as found:
        make(folder, None, [], "x", images=[image(), 5]).build()
    assert [text.partition("a.json: ")[2].partition(":")[0] for text in found.value.problems] == [
        "images[1]",
        *(f"annotations[{number}]" for number in range(3)),
    ]


@pytest.mark.parametrize("caption", [None, 3, "", "  ", ["a"], {}, "\ud800", ...])
def test_captions(folder: Path, caption: Any) -> None:
    with pytest.raises(UserError, match=r"a\.json: annotations\[1\].*caption"):
        captions(folder, {"image_id": 1, "caption": "a cat"}, annotation(caption=caption)).build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "an object is expected, found a list"),
        (b"null", "an object is expected"),
        (b"", "empty"),
        (b'{"images": [', "line 1: not valid JSON"),
        (b'{"images": [], "x": "\xe9"}', "byte 22 .* is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"images": {}, "annotations": 5}', "images is .*; expected a list"),
        (b"{}", "it lacks 'images'"),
    ],
)
@pytest.mark.parametrize("kind", ["instances", "captions"])
def test_files_that_are_no_annotations(folder: Path, content: bytes, message: str, kind: str) -> None:
    (folder / "a.json").write_bytes(content)
    settings = {"instances": CocoInstancesSettings, "captions": CocoCaptionsSettings}[kind]
    with pytest.raises(UserError, match=rf"a\.json: .*{message}"):
        settings(annotations=str(folder / "a.json"), images=str(folder / "images")).build()


def test_all_problems_come_at_once_and_are_bounded(folder: Path) -> None:
    with pytest.raises(UserError) as found:
        instances(folder, *(annotation(id=number, area="x") for number in range(50))).build()
    assert len(found.value.problems) == PROBLEMS_SHOWN + 1
    assert "annotations[19] (id 19): area" in found.value.problems[19]
    assert found.value.problems[-1].endswith("and 30 more such problems")


def test_what_tools_write_is_read(folder: Path) -> None:
    """Whole floats as ids and sizes, text ids, no categories, no ids, paths within the folder, corners a little outside, odd keys."""
    absolute = str(folder / "images" / "a.png")
    images = [image(id="one", height=30.0, width=40.0, file_name=absolute, license=NAN)]
    outside = [-4.5, -4.5, 60.0, -4.5, 60.0, 15.0, -4.5, 15.0]
    found = instances(
        folder,
        annotation(image_id="one", id=..., segmentation=[outside], area=None, bbox=None, iscrowd=..., score=NAN, category_id=None),
        annotation(image_id="one", id=2.0, iscrowd=True, segmentation={"size": [30.0, 40.0], "counts": [0, 30, 1170]}),
        annotation(image_id="one", id=3, segmentation=[]),
        images=images,
        categories=[],
    ).build()  # fmt: skip
    read = found.read(0)
    assert read.masks.sum((1, 2)).tolist() == [15 * 40, 30]
    assert read.masks[1, :, 0].all(), "run lengths go down the columns"
    assert read.areas.tolist() == [600, 225]
    assert read.boxes.tolist() == [[0, 0, 40, 15], [5, 5, 20, 20]]
    assert found.describe().startswith("3 masks in 1 images")


@pytest.mark.parametrize(("value", "message"), [(..., "it lacks 'height'"), (None, "height: found null")])
def test_sizes_must_be_stated_beside_masks_alone(folder: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"images\[0\].*{message}"):
        instances(folder, annotation(), images=[image(height=value)]).build()
    assert captions(folder, annotation(caption="x"), images=[image(height=value)]).build().captions == [["x"]]


def test_too_many_masks_of_a_large_image_are_refused_before_they_are_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amradio.labelled.instances.MOST_MASK_PIXELS", 40 * 30 * 5)
    assert len(instances(folder, *(annotation(id=number) for number in range(5))).build().read(0).masks) == 5
    with pytest.raises(UserError, match=r"6 masks of 40x30 px are too many to hold"):
        instances(folder, *(annotation(id=number) for number in range(6))).build()


@pytest.mark.parametrize("seed", range(12))
def test_run_lengths_equal_pycocotools(seed: int) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(seed)
    height, width = (int(size) for size in generator.integers(1, 400, 2))
    smooth = np.add.outer(np.sin(np.arange(height) / 17 + seed), np.cos(np.arange(width) / 23))
    mask = smooth + generator.normal(0, (0, 0.01, 0.5)[seed % 3], smooth.shape) > (0.3 if seed % 4 else 9)
    text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(decode_mask(read_mask({"size": [height, width], "counts": text}, height, width), height, width), mask)


@pytest.mark.parametrize("content", ["[]", '{"cat": 3}', '{"cat": null}', '{"cat": " "}', '{"cat": "\\ud800"}', "{", "", "NaN"])
def test_names_of_classes(tmp_path: Path, content: str) -> None:
    (tmp_path / "d" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "d" / "cat" / "a.png")
    (tmp_path / "classnames.json").write_text(content)
    with pytest.raises(UserError, match=r"classnames\.json: "):
        ClassFolderSettings(path=str(tmp_path / "d")).build()


@pytest.mark.parametrize(
    "content",
    [
        "3",
        '{"classes": null}',
        '["a", 3]',
        '["a", ""]',
        '["\\ud800"]',
        '{"classes": ["a"], "ignore_index": 256}',
        '{"classes": ["a"], "ignore_index": true}',
    ],
)
def test_names_of_classes_of_maps(tmp_path: Path, content: str) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match=r"classes\.json: "):
        ImagesLabelsSettings(path=str(tmp_path)).build()


HOSTILE = (
    None,
    NAN,
    INF,
    -1,
    0,
    2**31,
    2**63,
    10**400,
    1e308,
    -1e9,
    0.5,
    "",
    "x",
    "1",
    True,
    False,
    [],
    {},
    [[]],
    [[1, 2]],
    {"size": [30, 40]},
    "\ud800",
    "a\0",
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below a tree of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in ((*path, key), *places(value, (*path, key)))]


@pytest.mark.parametrize("seed", range(8))
def test_any_value_in_any_place_is_refused_or_read(folder: Path, seed: int) -> None:
    """Values of every kind in the place of others, keys left out, lists doubled: one message or masks, never anything else."""
    generator = np.random.default_rng(seed)
    counts = {"size": [30, 40], "counts": [100, 300, 800]}
    problems: list[str] = []
    for _ in range(40):
        content: Any = {
            "images": [image(), image(id=2, file_name="b.png")],
            "annotations": [
                annotation(caption="a"),
                annotation(id=2, segmentation=counts, caption="b"),
                annotation(id=3, image_id=2, caption="c"),
            ],
            "categories": [{"id": 3, "name": "cat"}],
        }
        content = copy.deepcopy(content)  # the polygon is one list in all annotations
        for _ in range(int(generator.integers(1, 3))):
            every = places(content)
            *path, last = every[generator.integers(len(every))]
            at = content
            for key in path:
                at = at[key]
            act = generator.integers(4)
            if act == 0:
                del at[last]
            elif act == 1 and isinstance(at, list):
                at.extend(at[:])
            else:
                at[last] = copy.deepcopy(HOSTILE[generator.integers(len(HOSTILE))])
        (folder / "a.json").write_text(json.dumps(content))
        Image.new("RGB", (40, 30)).save(folder / "images" / "b.png")
        for settings in (CocoInstancesSettings, CocoCaptionsSettings):
            try:
                found = settings(annotations=str(folder / "a.json"), images=str(folder / "images")).build()
                for number in range(len(found)):
                    found.read(number)
            except UserError as error:
                problems += error.problems
    assert len(problems) > 40
    assert [problem for problem in problems if "a.json" not in problem and "png" not in problem] == []
