"""Readers of depth and normals, on small folders in the published layouts."""

import json
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
    assert np.allclose(depth, np.arange(48).reshape(6, 8) * 0.1)
    assert maps.describe() == f"2 images with depth in {depth_folder}"


def test_all_problems_of_a_folder_of_depth_at_once(depth_folder):
    save(depth_folder / "depth" / "a.png", np.zeros((6, 9), np.uint16))
    (depth_folder / "images" / "b/c.png").unlink()
    with pytest.raises(UserError) as caught:
        ImagesDepthSettings(path=str(depth_folder)).build()
    assert len(caught.value.problems) == 2
    assert "a: the label is 9x6 px and the image 8x6 px" in str(caught.value)
    assert "b/c: its image" in str(caught.value)
    save(depth_folder / "depth" / "a.png", noise(6, 8, 3))
    with pytest.raises(UserError, match="depth is a PNG or TIFF of one channel, 16 bits"):
        ImagesDepthSettings(path=str(depth_folder)).build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "lacks 'scale'"),
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
