"""Readers of depth and normals, on small folders in the published layouts."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amradio.config import validate
from amradio.errors import UserError
from amradio.labelled.geometry import (
    ImagesDepthSettings,
    ImagesNormalsSettings,
    NaviDepthSettings,
    NaviNormalsSettings,
    NyuDepthSettings,
)
from amradio.labelled.navi import normals_of
from navi_files import FOCAL_LENGTH, RADIUS, SIZE, ball, camera, small_navi


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- plain folders


@pytest.fixture
def depth_folder(tmp_path) -> Path:
    for name in ("a", "b/c"):
        save(tmp_path / "images" / f"{name}.png", noise(6, 8, 3))
        save(tmp_path / "depth" / f"{name}.png", np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000)
    (tmp_path / "depth.json").write_text('{"scale": 0.0001, "max_depth": 4}')
    return tmp_path


def test_a_folder_of_depth(depth_folder):
    maps = ImagesDepthSettings(path=str(depth_folder)).build()
    assert len(maps) == 2
    assert maps.max_depth == 4
    image, depth = maps.read(1)
    assert np.array_equal(image, noise(6, 8, 3))
    assert depth.dtype == np.float32
    expected = np.arange(48).reshape(6, 8) * 0.1
    assert np.allclose(depth, np.where(expected < 4.05, expected, 0)), "4 m are the farthest that count here"
    assert maps.describe() == f"2 images with depth in {depth_folder}"


def test_all_problems_of_a_folder_of_depth_at_once(depth_folder):
    save(depth_folder / "depth" / "a.png", np.zeros((6, 9), np.uint16))
    (depth_folder / "images" / "b/c.png").unlink()
    with pytest.raises(UserError) as caught:
        ImagesDepthSettings(path=str(depth_folder)).build()
    assert len(caught.value.problems) == 2
    assert f"{depth_folder}/depth/a.png: the label is 9x6 px and its image 8x6 px" in str(caught.value)
    assert "b/c: its image" in str(caught.value)
    save(depth_folder / "depth" / "a.png", noise(6, 8, 3))
    with pytest.raises(UserError, match="depth is a PNG or TIFF of one channel, 16 bits"):
        ImagesDepthSettings(path=str(depth_folder)).build()


def test_depth_below_zero_is_refused(depth_folder):
    (depth_folder / "depth" / "a.png").unlink()
    save(depth_folder / "depth" / "a.tif", np.full((6, 8), -5, np.int32))
    with pytest.raises(UserError, match=r"a\.tif: found a depth of -5"):
        ImagesDepthSettings(path=str(depth_folder)).build()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "depth"), r": depth is missing; give the folder that holds images and depth$"),
        (lambda folder: shutil.rmtree(folder), r": it is missing; give the folder that holds images and depth$"),
        (lambda folder: (shutil.rmtree(folder / "depth"), (folder / "depth").write_text("")), ": depth is a file;"),
        (lambda folder: ((folder / "depth.json").unlink(), (folder / "depth.json").mkdir()), r"depth\.json: this is a folder; give a file"),
        (
            lambda folder: ((folder / "depth/a.png").unlink(), (folder / "depth/a.png").symlink_to("a.png")),
            r"a: its label .*a\.png cannot be reached \(",
        ),
    ],
)
def test_what_is_no_file_or_folder(depth_folder, broken, message):
    broken(depth_folder)
    with pytest.raises(UserError, match=message):
        ImagesDepthSettings(path=str(depth_folder)).build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "lacks 'scale'"),
        ('{"scale": 1e200}', "scale.*expected a number above 0, at most 1,000,000"),
        ('{"scale": 0}', "scale.*expected a number above 0"),
        ('{"scale": 0.001, "max": 4, "max_depth": "4"}', r"'max': there is no such key[\s\S]*max_depth: found '4'"),
        ("[1]", "depth.json"),
    ],
)
def test_depth_json_is_checked(depth_folder, content, message):
    (depth_folder / "depth.json").write_text(content)
    with pytest.raises(UserError, match=message):
        ImagesDepthSettings(path=str(depth_folder)).build()


def test_depth_json_lies_in_the_folder_or_above_it(depth_folder):
    below = depth_folder / "train"
    below.mkdir()
    for name in ("images", "depth"):
        (depth_folder / name).rename(below / name)
    assert len(ImagesDepthSettings(path=str(below)).build()) == 2
    (depth_folder / "depth.json").unlink()
    with pytest.raises(UserError, match=r'no depth\.json here or one folder up; write \{"scale": 0\.001\}'):
        ImagesDepthSettings(path=str(below)).build()


def test_a_folder_of_normals(tmp_path):
    directions = np.array([[[0.6, 0, -0.8], [0, 0, -1.0]], [[0, 0, 0], [0.577, -0.577, -0.577]]])
    stored = ((directions + 1) * 127.5).round().astype(np.uint8)
    stored[1, 0] = 128
    save(tmp_path / "images" / "a.png", noise(2, 2, 3))
    save(tmp_path / "normals" / "a.png", stored)
    maps = ImagesNormalsSettings(path=str(tmp_path)).build()
    _, normals = maps.read(0)
    assert normals[1, 0].tolist() == [0, 0, 0]
    assert np.allclose(normals, directions, atol=0.01)
    assert np.allclose(np.linalg.norm(normals, axis=-1), [[1, 1], [0, 1]], atol=1e-6)
    unknown = np.array([[[0, 0, 0], [127, 127, 127]], [[255, 255, 255], [128, 128, 255]]], np.uint8)
    save(tmp_path / "normals" / "a.png", unknown)
    assert maps.read(0)[1].any(-1).tolist() == [[False, False], [False, True]], "no vector of length 1 is stored there"
    save(tmp_path / "normals" / "a.png", stored)
    save(tmp_path / "normals" / "b.png", stored)
    with pytest.raises(UserError, match="b: its image"):
        ImagesNormalsSettings(path=str(tmp_path)).build()
    (tmp_path / "normals" / "b.png").unlink()
    save(tmp_path / "normals" / "a.png", np.dstack((stored, np.full((2, 2), 9, np.uint8))))
    assert np.array_equal(ImagesNormalsSettings(path=str(tmp_path)).build().read(0)[1], normals), "a fourth channel changes nothing"
    save(tmp_path / "normals" / "a.png", stored[..., 0])
    with pytest.raises(UserError, match=r"a\.png: the label cannot be read \(a picture of mode L; expected RGB"):
        ImagesNormalsSettings(path=str(tmp_path)).build()


# --- NYUv2


@pytest.fixture
def nyu(tmp_path) -> Path:
    """The lists and folders of BTS: paths of the training list begin with a slash."""
    lines = {"train": "/basement_0001a/rgb_00000.jpg /basement_0001a/sync_depth_00000.png 518.8579"}
    lines["test"] = "bathroom/rgb_00045.jpg bathroom/sync_depth_00045.png 518.8579"
    for split, line in lines.items():
        image, depth, _ = line.replace(" /", " ").lstrip("/").split()
        save(tmp_path / "data" / image, np.full((480, 640, 3), 90, np.uint8))
        save(tmp_path / "data" / depth, np.full((480, 640), 2500, np.uint16))
        (tmp_path / f"nyudepthv2_{split}_files_with_gt.txt").write_text(line + "\n")
    return tmp_path


def test_nyu_counts_only_within_eigens_crop(nyu):
    maps = NyuDepthSettings(path=str(nyu / "data")).build()
    image, depth = maps.read(0)
    assert image.shape == (480, 640, 3)
    assert maps.max_depth == 10
    rows, columns = np.nonzero(depth)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert np.unique(depth[45:471, 41:601]).tolist() == [2.5]
    for keys in ({"crop": False}, {"split": "train"}):
        _, depth = validate(NyuDepthSettings, {"path": str(nyu / "data"), **keys}).build().read(0)
        assert np.unique(depth).tolist() == [2.5]


def test_a_list_of_nyu_with_problems(nyu):
    (nyu / "nyudepthv2_test_files_with_gt.txt").write_text("bathroom/rgb_00045.jpg\n../a.jpg b.png 1\n\nx.jpg y.png 5\n")
    with pytest.raises(UserError) as caught:
        NyuDepthSettings(path=str(nyu / "data")).build()
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["line 1", "line 2"]
    (nyu / "nyudepthv2_test_files_with_gt.txt").write_text("x.jpg y.png 5\n")
    with pytest.raises(UserError, match=r"x\.jpg: its image .* is missing"):
        NyuDepthSettings(path=str(nyu / "data")).build()
    (nyu / "nyudepthv2_test_files_with_gt.txt").unlink()
    with pytest.raises(UserError, match=r"neither nyudepthv2_test_files_with_gt\.txt nor nyu_test\.txt"):
        NyuDepthSettings(path=str(nyu / "data")).build()
    other = nyu / "nyu_test.txt"
    other.write_text("bathroom/rgb_00045.jpg bathroom/sync_depth_00045.png 518.8579\n")
    assert len(NyuDepthSettings(path=str(nyu / "data")).build()) == 1


def test_a_list_of_nyu_with_odd_but_right_lines(nyu):
    """Absolute paths, names that are not UTF-8, and an image that is named twice."""
    folder, file = nyu / "data", nyu / "nyudepthv2_test_files_with_gt.txt"
    os.rename(folder / "bathroom/rgb_00045.jpg", os.fsencode(folder) + b"/bathroom/\xe9.jpg")
    line = b"bathroom/\xe9.jpg bathroom/sync_depth_00045.png 518\n"
    file.write_bytes(line + os.fsencode(folder) + b"/bathroom/\xe9.jpg " + os.fsencode(folder) + b"/bathroom/sync_depth_00045.png\n")
    maps = NyuDepthSettings(path=str(folder)).build()
    assert len(maps) == 1
    assert maps.read(0)[0].shape == (480, 640, 3)
    assert "1 x a line that names an image again" in maps.notes()[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [("", "it names no image"), ("a" * 300 + ".jpg b.png 5\n", "a name in it has 304 bytes, and file systems take 255")],
)
def test_a_list_of_nyu_that_names_nothing(nyu, line, message):
    file = nyu / "nyudepthv2_test_files_with_gt.txt"
    file.write_text(line)
    with pytest.raises(UserError, match=rf"nyudepthv2_test_files_with_gt\.txt: .*{message}"):
        NyuDepthSettings(path=str(nyu / "data")).build()


def test_eigens_crop_is_for_one_size_which_is_checked_at_once(nyu):
    save(nyu / "data/bathroom/rgb_00045.jpg", np.zeros((240, 320, 3), np.uint8))
    save(nyu / "data/bathroom/sync_depth_00045.png", np.zeros((240, 320), np.uint16))
    with pytest.raises(UserError, match=r"sync_depth_00045\.png: 320x240 px; Eigen's crop is for 640x480 px; set crop: false"):
        NyuDepthSettings(path=str(nyu / "data")).build()
    assert len(NyuDepthSettings(path=str(nyu / "data"), crop=False).build()) == 1


# --- NAVI


@pytest.fixture(scope="module")
def navi(tmp_path_factory) -> Path:
    return small_navi(tmp_path_factory.mktemp("navi"))


def test_navi_has_the_depth_of_the_ball(navi):
    maps = NaviDepthSettings(path=str(navi), every=1, relative=False).build()
    assert maps.describe() == f"2 photographs of 1 objects with depth in {navi} (test)"
    assert "passed over, as they lack a multi-view scene or a wild set: cup" in maps.notes()[0]
    image, depth = maps.read(0)
    assert image.shape == (512, 512, 3)
    _, expected, _ = ball(camera())
    assert depth[depth > 0].min() == pytest.approx(expected[expected > 0].min() / 1000, abs=1e-4)
    assert depth.max() == pytest.approx(expected.max() / 1000, abs=3e-4)
    known = depth > 0
    assert (known[0].any() and known[-1].any()) or (known[:, 0].any() and known[:, -1].any()), "the square touches the outline"
    assert known.mean() == pytest.approx(np.pi / 4, abs=0.02), "the outline is nearly a circle"
    assert np.abs(image[~known].astype(int) - 128).mean() < 4, "the photograph is cut as its depth is"
    relative = NaviDepthSettings(path=str(navi), every=1).build().read(0)[1]
    nearest, farthest = depth[known].min(), depth[known].max()
    assert np.allclose(relative[known], 0.01 + 0.99 * (depth[known] - nearest) / (farthest - nearest), atol=1e-5)
    assert (relative[~known] == 0).all()


def test_splits_of_navi_and_every_fourth(navi):
    train = NaviDepthSettings(path=str(navi), split="train", every=1).build()
    assert [image.files.key for image in train.navi.images] == [f"ball/multiview-00-pixel_5/00{number}.jpg" for number in (0, 1)]
    assert len(NaviDepthSettings(path=str(navi)).build()) == 1


def test_normals_of_navi_point_away_from_the_middle_of_the_ball(navi):
    _, _, points = ball(camera())
    centre = np.array(camera()["t"])
    exact = normals_of(points / 1000)
    known = (exact != 0).any(-1)
    outward = (points - centre) / RADIUS
    assert (exact * outward).sum(-1)[known].min() > 0.9
    assert (exact * outward).sum(-1)[known].mean() > 0.999
    _, normals = NaviNormalsSettings(path=str(navi), every=1).build().read(0)
    known = (normals != 0).any(-1)
    assert np.allclose(np.linalg.norm(normals[known], axis=-1), 1, atol=1e-5)
    view = NaviNormalsSettings(path=str(navi), every=1).build().navi.view(0)
    outward = (view.points - centre / 1000) / (RADIUS / 1000)
    angles = np.degrees(np.arccos(np.clip((normals * outward).sum(-1)[known], -1, 1)))
    assert np.median(angles) < 10, "depth is stored in steps of 0.02 mm"


def test_points_and_poses_of_navi_agree(navi):
    """A point of one photograph, moved by the poses, lies where the other one shows the same colour."""
    opened = NaviDepthSettings(path=str(navi), split="train", every=1).build().navi
    views = [opened.view(number) for number in (0, 1)]
    move = opened.images[1].pose @ np.linalg.inv(opened.images[0].pose)
    chosen = np.argwhere(views[0].depth > 0)[::15000]
    moved = np.stack([move[:3, :3] @ views[0].points[row, column] + move[:3, 3] for row, column in chosen])
    shown = views[1].points[views[1].depth > 0][::3]
    colours = views[1].image[views[1].depth > 0][::3].astype(float)
    nearest = np.linalg.norm(moved[:, None] - shown[None], axis=-1)
    seen = nearest.min(1) < 5e-4
    assert seen.sum() >= 5
    before = views[0].image[chosen[:, 0], chosen[:, 1]].astype(float)
    assert np.median(np.abs(before - colours[nearest.argmin(1)])[seen].max(1)) < 6


def test_the_focal_length_is_that_of_the_square(navi):
    view = NaviDepthSettings(path=str(navi), every=1).build().navi.view(0)
    row, column = np.argwhere(view.depth > 0)[[1000, -1000]].T
    projected = view.points[row, column][:, :2] / view.points[row, column][:, 2:] * view.focal_length
    assert np.diff(projected[:, 0]) == pytest.approx(np.diff(column), abs=3)
    assert np.diff(projected[:, 1]) == pytest.approx(np.diff(row), abs=3)
    assert view.focal_length > FOCAL_LENGTH * 512 / min(SIZE)


def written(root: Path, change) -> Path:
    """NAVI whose annotations of the wild set are changed."""
    file = root / "ball" / "wild_set" / "annotations.json"
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[1].update(filename="000.jpg"), "entry 1: an entry before it has the same filename '000.jpg'"),
        (lambda entries: entries[0].update(image_size=[1e-9, 5]), "entry 0: image_size: found 1e-09; expected numbers from 1 to 1,000,000"),
        (lambda entries: entries[0]["camera"].update(focal_length=1e200), r"focal_length: found 1e\+200; expected numbers from 1"),
        (lambda entries: entries[0]["camera"].update(t=[0, 0, 1e30]), r"entry 0: t: found 1e\+30; expected numbers from -1,000,000,000"),
        (lambda entries: entries[0].update(filename="a" * 300), "filename: .* a name in it has 300 bytes"),
        (list.clear, "there is no photograph in it"),
    ],
)
def test_annotations_of_navi_are_checked(navi, tmp_path, change, message):
    root = written(shutil.copytree(navi, tmp_path / "navi"), change)
    with pytest.raises(UserError, match=rf"ball/wild_set/annotations\.json: .*{message}"):
        NaviDepthSettings(path=str(root)).build()


def test_odd_folders_beside_the_objects_of_navi(navi, tmp_path, monkeypatch):
    root = shutil.copytree(navi, tmp_path / "navi")
    shutil.copytree(root / "ball", root / ".ball")
    (root / "loop").symlink_to("loop")
    os.rename(root / "ball", os.fsencode(root) + b"/b\xe9ll")
    maps = NaviDepthSettings(path=str(root), every=1).build()
    assert [image.files.key for image in maps.navi.images] == [f"b\\xe9ll/wild_set/00{number}.jpg" for number in (0, 1)]
    original = Path.iterdir

    def closed(path):
        if path.name == "cup":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(UserError, match=r"cup: cannot be read \(Permission denied\); make it readable"):
        NaviDepthSettings(path=str(root)).build()


def test_all_problems_of_annotations_at_once(navi, tmp_path):
    root = shutil.copytree(navi, tmp_path / "navi")
    file = root / "ball" / "wild_set" / "annotations.json"
    entries = json.loads(file.read_text())
    entries[0]["camera"]["q"] = [0, 0, 0, 0]
    entries[1]["image_size"] = [512]
    file.write_text(json.dumps([*entries, "x"]))
    with pytest.raises(UserError) as caught:
        NaviDepthSettings(path=str(root)).build()
    assert len(caught.value.problems) == 3
    assert "a quaternion that is not 0" in str(caught.value)
    (root / "ball" / "multiview-00-pixel_5" / "depth" / "001.png").unlink()
    with pytest.raises(UserError, match=r"ball/multiview-00-pixel_5/001.jpg: its depth .* is missing"):
        NaviDepthSettings(path=str(root), split="train", every=1).build()
    with pytest.raises(UserError, match="no OBJECT/wild_set and OBJECT/multiview"):
        NaviDepthSettings(path=str(root / "custom_splits")).build()
