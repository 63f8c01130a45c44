"""Correspondence between views and between objects: against slow independent computations, and on small folders in the official layouts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlms
from amradio.__main__ import main
from amradio.config import validate
from amradio.errors import UserError
from amradio.evaluation import Bench
from amradio.evaluation.dense.keypoint_correspondence import KeypointCorrespondence, KeypointCorrespondenceSettings, nearest_places
from amradio.evaluation.dense.multiview_correspondence import MultiviewCorrespondence, errors, matched, shares
from amradio.features import Features
from amradio.labelled.navi import Navi, pose_of
from amradio.labelled.spair import SpairSettings
from amradio.labelled.view_pairs import NaviPairSettings, PosedView, ScenePairSettings, ViewPair, angles
from navi_files import quaternion, small_navi


def colours(images: torch.Tensor) -> Features:
    """A map of the colours of squares of 4 px, around grey, with a constant, so that shades differ in angle."""
    cells = torch.nn.functional.avg_pool2d(images, 4).permute(0, 2, 3, 1) - 0.5
    return Features(None, torch.cat((cells, torch.full_like(cells[..., :1], 0.3)), -1))


def blind(images: torch.Tensor) -> Features:
    """Maps of noise that do not depend on the images."""
    draws = torch.Generator().manual_seed(0)
    return Features(None, torch.randn(len(images), images.shape[2] // 4, images.shape[3] // 4, 6, generator=draws))


# --- views


def random_pair(size: int = 12) -> ViewPair:
    draws = np.random.default_rng(0)
    views = []
    for degrees in (0, 50):
        points = np.concatenate((draws.uniform(-0.05, 0.05, (size, size, 2)), draws.uniform(0.3, 0.4, (size, size, 1))), -1)
        points[draws.random((size, size)) < 0.3] = 0
        pose = pose_of(quaternion((0, 1, 0.3), degrees), [1.0, 2.0, 3.0 + degrees])
        views.append(PosedView(np.zeros((size, size, 3), np.uint8), points.astype(np.float32), 40.0, pose))
    return ViewPair(*views)


def test_matches_and_errors_equal_a_slow_computation():
    pair = random_pair()
    maps = torch.randn(2, 12, 12, 5, generator=torch.Generator().manual_seed(0))
    grids = [torch.from_numpy(view.points) for view in pair]
    found = matched(maps, grids, 20)
    metres, pixels = errors(found, pair)

    known = [np.argwhere(view.points[..., 2] > 0) for view in pair]
    vectors = [maps[number].numpy().astype(float) for number in (0, 1)]
    vectors = [cells / np.linalg.norm(cells, axis=-1, keepdims=True) for cells in vectors]
    rows = []
    for row, column in known[0]:
        distances = [1 - float(vectors[0][row, column] @ vectors[1][r, c]) for r, c in known[1]]
        order = np.argsort(distances)
        rows.append((1 - distances[order[0]] / distances[order[1]], (row, column), tuple(known[1][order[0]])))
    rows.sort(reverse=True)
    expected_metres, expected_pixels = [], []
    for _, first, second in rows[:20]:
        at_object = np.linalg.inv(pair.first.pose) @ np.append(pair.first.points[first], 1)
        there = (pair.second.pose @ at_object)[:3]
        shown = pair.second.points[second]
        expected_metres.append(np.linalg.norm(there - shown))
        expected_pixels.append(40 * np.linalg.norm(there[:2] / there[2] - shown[:2] / shown[2]))
    assert metres.tolist() == pytest.approx(expected_metres, rel=1e-3, abs=1e-5)
    assert pixels.tolist() == pytest.approx(expected_pixels, rel=1e-3, abs=1e-3)
    scores = shares(metres, pixels)
    assert scores["recall_5cm"] == pytest.approx(100 * np.mean(np.array(expected_metres) < 0.05))
    assert scores["recall_25px"] == pytest.approx(100 * np.mean(np.array(expected_pixels) < 25))
    assert scores["recall"] == pytest.approx((scores["recall_1cm"] + scores["recall_2cm"] + scores["recall_5cm"]) / 3)


def test_angles_between_poses():
    poses = np.stack([pose_of(quaternion((1, 2, 3), degrees), [0.0, 0.0, 0.0]) for degrees in (0, 30, 170)])
    assert angles(poses[[0, 1, 0]], poses[[0, 0, 2]]).tolist() == pytest.approx([0, 30, 170], abs=1e-4)


@pytest.fixture(scope="module")
def navi(tmp_path_factory) -> Path:
    return small_navi(tmp_path_factory.mktemp("navi"))


def test_navi_in_pairs(navi):
    """Colours of the ball tell where on it a pixel is; noise does not."""
    pairs = NaviPairSettings(path=str(navi), every=1).build()
    assert len(pairs) == 2
    assert pairs.pairs == [(0, 1), (1, 0)]
    assert pairs.read(0).angle == pytest.approx(40, abs=0.01)
    pairs.pairs = pairs.pairs[:1]
    result = MultiviewCorrespondence(pairs, matches=300, stride=8).run({"student": colours, "teacher/x": blind}, Bench(None, {}))
    assert result.counts == {"pairs": 1}
    assert result.rows["student"]["recall_1cm"] > 90
    assert result.rows["student"]["recall_25px"] > 70
    for metric in ("recall", "recall_1cm", "recall_25px"):
        assert result.rows["student"][metric] > result.floors[metric] + 30
        assert abs(result.rows["teacher/x"][metric] - result.floors[metric]) < 15
    assert list(result.details["recall_2cm_by_angle"]["student"]) == ["up_to_60"]


def test_which_photographs_make_a_pair(navi):
    with pytest.raises(UserError, match="no photograph has another one of its scene that is turned by at most 39 degrees"):
        NaviPairSettings(path=str(navi), every=1, max_angle=39).build()
    train = NaviPairSettings(path=str(navi), split="train", every=2).build()
    assert train.pairs == [(0, 1)]
    assert train.navi.all_images[0].scene == "ball/multiview-00-pixel_5"
    assert isinstance(train.navi, Navi)


def test_scenes_in_pairs_show_the_same_points():
    pairs = ScenePairSettings(length=6, image_size=48).build()
    result = MultiviewCorrespondence(pairs, stride=2).run({"student": colours, "teacher/x": blind}, Bench(None, {}))
    assert result.rows["student"]["recall"] > 3 * result.floors["recall"]
    assert result.rows["teacher/x"]["recall"] < 2.5 * result.floors["recall"]
    pair = pairs.read(0)
    assert pair.angle == 0
    # A point that is moved to the second view has nearly the colour that it had.
    first = pair.first.points[pair.first.points[..., 2] > 0]
    moved = first @ pair.move[:3, :3].T + pair.move[:3, 3]
    at = np.floor(moved[:, :2] * pair.second.focal_length + 24).astype(int)
    inside = ((at >= 0) & (at < 48)).all(1)
    assert inside.sum() > 100
    before = pair.first.image[pair.first.points[..., 2] > 0][inside].astype(int)
    after = pair.second.image[at[inside, 1], at[inside, 0]].astype(int)
    assert np.median(np.abs(before - after).max(1)) < 25


def test_pairs_that_show_nothing_are_left_out():
    pairs = ScenePairSettings(length=2, image_size=16).build()

    class Half(type(pairs)):
        def read(self, number: int) -> ViewPair:
            pair = super().read(number)
            return pair if number else pair._replace(first=pair.first._replace(points=np.zeros_like(pair.first.points)))

    half = Half(pairs.scenes)
    result = MultiviewCorrespondence(half, stride=1).run({"student": colours}, Bench(None, {}))
    assert result.counts == {"pairs": 1}
    assert "1 pairs show the object in one view at most and were left out" in result.notes
    half.kept = half.kept[:1]
    with pytest.raises(UserError, match="nothing can be matched"):
        MultiviewCorrespondence(half, stride=1).run({"student": colours}, Bench(None, {}))


# --- key points


def test_nearest_places_equal_a_slow_computation():
    draws = torch.Generator().manual_seed(0)
    first, second = torch.randn(4, 6, 5, generator=draws), torch.randn(7, 3, 5, generator=draws)
    points = torch.tensor([[0.5 / 6, 0.5 / 4], [2 / 6, 1 / 4], [0.77, 0.41]], dtype=torch.float64)
    for point, place in zip(points, nearest_places(first, second, points), strict=True):
        x, y = float(point[0]) * 6 - 0.5, float(point[1]) * 4 - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        wanted = torch.zeros(5)
        for row, share in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, part in ((left, 1 - (x - left)), (left + 1, x - left)):
                wanted += share * part * first[min(max(row, 0), 3), min(max(column, 0), 5)]
        cosines = [(float(torch.cosine_similarity(wanted, second[row, column], 0)), row, column) for row in range(7) for column in range(3)]
        _, row, column = max(cosines)
        assert place.tolist() == pytest.approx([(column + 0.5) / 3, (row + 0.5) / 7])


SIZES = {"a": (64, 48), "b": (80, 64), "c": (64, 64)}
"""(width, height) px."""
PLACES = {"a": [(10, 10), (50, 10), (30, 40)], "b": [(70, 50), (10, 10), (30, 26)], "c": [(10, 50), (50, 50), (30, 10)]}
"""Of a red, a green and a blue square."""


@pytest.fixture
def spair(tmp_path) -> Path:
    """SPair-71k with three photographs of two categories: `a` to `b` and `b` to `a` are cats, `a` to `c` is a dog."""
    root = tmp_path / "SPair-71k"
    for category, names in {"cat": "ab", "dog": "ac"}.items():
        for name in names:
            image = np.full((*SIZES[name][::-1], 3), 128, np.uint8)
            for colour, (x, y) in enumerate(PLACES[name]):
                image[y - 4 : y + 4, x - 4 : x + 4] = 255 * np.eye(3, dtype=np.uint8)[colour]
            file = root / "JPEGImages" / category / f"{name}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file, quality=95, subsampling=0)
    folder = root / "PairAnnotation" / "test"
    folder.mkdir(parents=True)
    for number, (category, first, second) in enumerate((("cat", "a", "b"), ("cat", "b", "a"), ("dog", "a", "c"))):
        content = {
            "filename": f"{number:06d}-{first}-{second}:{category}.jpg",
            "src_imname": f"{first}.jpg",
            "trg_imname": f"{second}.jpg",
            "src_imsize": [*SIZES[first], 3],
            "trg_imsize": [*SIZES[second], 3],
            "src_bndbox": [0, 0, *SIZES[first]],
            "trg_bndbox": [5, 5, 65, 45],
            "category": category,
            "src_kps": [list(point) for point in PLACES[first]],
            "trg_kps": [list(point) for point in PLACES[second]],
            "viewpoint_variation": 0,
        }
        (folder / f"{number:06d}-{first}-{second}:{category}.json").write_text(json.dumps(content))
    return root


def test_spair(spair):
    pairs = SpairSettings(path=str(spair)).build()
    assert pairs.describe() == f"3 pairs of 2 categories in {spair} (test)"
    evaluation = KeypointCorrespondence(pairs)
    result = evaluation.run({"student": colours, "teacher/x": blind}, Bench(None, {}))
    assert result.rows["student"] == {"pck": 100, "pck_points": 100}
    assert result.details["pck_by_category"]["student"] == {"cat": 100, "dog": 100}
    # The floor takes a point to the same share of width and height; 6 px are a tenth of the box.
    near = {}
    for one, other in (("a", "b"), ("b", "a"), ("a", "c")):
        scale = np.array(SIZES[other]) / SIZES[one]
        near[one + other] = np.linalg.norm(np.array(PLACES[one]) * scale - PLACES[other], axis=1) <= 6
    cat, dog = 100 * np.mean([*near["ab"], *near["ba"]]), 100 * np.mean(near["ac"])
    assert result.floors == pytest.approx({"pck": (cat + dog) / 2, "pck_points": 100 * np.mean(np.concatenate(list(near.values())))})
    assert result.rows["teacher/x"]["pck"] < 50
    assert result.counts == {"pairs": 3, "points": 9, "categories": 2}
    tight = KeypointCorrespondence(pairs, alpha=0.001).run({"student": colours}, Bench(None, {}))
    assert tight.rows["student"]["pck"] < 100
    assert len(SpairSettings(path=str(spair), pairs_per_category=1).build()) == 2


@pytest.mark.slow
def test_the_dense_suite_has_both_with_the_published_numbers_beside(navi, spair, tmp_path, monkeypatch, capsys):
    paths = tmp_path / "benchmarks.yaml"
    paths.write_text(f"navi: {navi}\nspair: {spair}\n")
    monkeypatch.setenv("COLUMNS", "160")
    student = vlms.write_student(tmp_path / "student")
    words = [f"evaluations.{name}=null" for name in ("depth", "normals", "NYUv2")]
    words += ["evaluations.multi-view.stride=16", "image_size=64", "device=cpu"]
    assert main(["evaluate", str(student), "--suite", "dense", "--data", str(paths), *words, "--json", str(tmp_path / "out.json")]) == 0
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert results["multi-view"]["counts"] == {"pairs": 1}
    assert results["SPair-71k"]["counts"]["pairs"] == 3
    printed = capsys.readouterr().out
    table = [" ".join(line.split()) for line in printed[printed.index("Beside published numbers") :].splitlines()]
    pck = results["SPair-71k"]["rows"]["student"]["pck"]
    assert f"SPair-71k student {pck:.1f} 43.9 {pck - 43.92:+.1f} PHI-S ViT-B/16 arXiv 2410.01680, table 13" in table
    assert any(line.startswith("multi-view student") and "C-RADIOv4-H" in line for line in table)


def test_settings_of_key_points(spair):
    settings = validate(KeypointCorrespondenceSettings, {"data": {"type": "spair", "path": str(spair)}, "alpha": 0.2})
    assert settings.protocol_sizes(Bench(None, {})) == 512
    assert settings.build().alpha == 0.2
    assert settings.build().pairs.describe() == SpairSettings(path=str(spair)).build().describe()


def test_all_problems_of_spair_at_once(spair):
    folder = spair / "PairAnnotation" / "test"
    files = sorted(folder.iterdir())
    content = json.loads(files[0].read_text())
    files[0].write_text(json.dumps({**content, "src_kps": content["src_kps"][:2]}))
    files[1].write_text(json.dumps({**content, "trg_bndbox": [5, 5, 5, 9], "trg_kps": [], "src_imname": "../a.jpg"}))
    with pytest.raises(UserError) as caught:
        SpairSettings(path=str(spair)).build()
    text = str(caught.value)
    assert "src_kps has 2 points and trg_kps 3" in text
    assert "trg_bndbox: found [5, 5, 5, 9]" in text
    assert "trg_kps: expected a list of points" in text
    assert "src_imname" in text
    for file in files[:2]:
        file.unlink()
    (folder / "._other.json").write_bytes(b"\0\5\x16\7")
    (spair / "JPEGImages" / "dog" / "c.jpg").unlink()
    with pytest.raises(UserError, match=r"000002-a-c:dog: its photograph .*c\.jpg is missing"):
        SpairSettings(path=str(spair)).build()
    with pytest.raises(UserError, match=r"PairAnnotation/trn.* missing"):
        SpairSettings(path=str(spair), split="train").build()
    (spair / "c.txt").write_text("")
    with pytest.raises(UserError, match=r"c.txt: it is a file; give a folder"):
        SpairSettings(path=str(spair / "c.txt")).build()
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="there is no annotation"):
        SpairSettings(path=str(spair)).build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"src_kps": [[1000, 5], [0, 0], [30, 40]]}, r"the key point 1000, 5 is not on its photograph .*cat/a\.jpg of 64x48 px"),
        ({"trg_kps": [[70, 50], [-50, 3], [30, 26]]}, r"the key point -50, 3 is not on its photograph .*cat/b\.jpg of 80x64 px"),
        ({"trg_imsize": [640, 480, 3]}, r"cat/b\.jpg is 80x64 px and was annotated at 640x480 px"),
        ({"trg_imsize": "x"}, r"trg_imsize: found 'x'; expected the size \[width, height, channels\]"),
        ({"trg_bndbox": [0, 0, 1e9, 1e9]}, r"the box around the second object is 1e\+09 px long and its photograph 80 px"),
        ({"src_imname": "a" * 300}, "a name in it has 300 bytes"),
    ],
)
def test_annotations_that_are_not_of_their_photograph(spair, changes, message):
    file = min((spair / "PairAnnotation" / "test").iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        SpairSettings(path=str(spair)).build()


def test_a_damaged_photograph_of_several_pairs_is_named_once(spair):
    (spair / "JPEGImages" / "cat" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"cat/a\.jpg: the image cannot be read \(an empty file\)") as caught:
        SpairSettings(path=str(spair)).build()
    assert len(caught.value.problems) == 1


def test_key_points_may_be_on_the_edge_and_sizes_unsaid(spair):
    file = min((spair / "PairAnnotation" / "test").iterdir())
    content = {key: value for key, value in json.loads(file.read_text()).items() if "imsize" not in key}
    file.write_text(json.dumps(content | {"src_kps": [[64, 48], [0, 0], [-2, 50]]}))
    assert len(SpairSettings(path=str(spair)).build()) == 3


def test_a_picture_of_one_pixel_is_measured_without_a_warning(spair):
    """NumPy calls its turned pixels contiguous, and a read-only array must not become a tensor."""
    Image.new("RGB", (1, 1)).save(spair / "JPEGImages" / "cat" / "a.jpg")
    for file in (spair / "PairAnnotation" / "test").iterdir():
        content = json.loads(file.read_text())
        small = {"src": content["src_imname"] == "a.jpg", "trg": content["trg_imname"] == "a.jpg"}
        for side in (side for side, is_small in small.items() if is_small and content["category"] == "cat"):
            content |= {f"{side}_kps": [[0, 0]] * 3, f"{side}_imsize": [1, 1, 3], f"{side}_bndbox": [0, 0, 1, 1]}
        file.write_text(json.dumps(content))

    def mean(images: torch.Tensor) -> Features:
        return Features(None, images.mean((2, 3))[:, None, None])

    assert KeypointCorrespondence(SpairSettings(path=str(spair)).build()).run({"student": mean}, Bench(None, {})).counts["pairs"] == 3
