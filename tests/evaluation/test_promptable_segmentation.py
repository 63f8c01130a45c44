"""Promptable segmentation: SAM's masks as the original library makes them, masks of COCO as pycocotools does, prompts, floors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import tiny
from amradio.errors import UserError
from amradio.evaluation.base import Bench
from amradio.evaluation.dense.mask_prompts import discs, filled_boxes, inner_point, ious, squared_distances
from amradio.evaluation.dense.promptable_segmentation import PromptableSegmentationSettings, coordinates, prompted, to_square
from amradio.labelled.instances import CocoInstancesSettings, SceneInstancesSettings, box_of
from amradio.labelled.masks import decode_mask, read_mask
from amradio.teachers import SamSettings
from amradio.teachers.sam import SamTeacher

COCO = Path(__file__).parents[3] / "shared" / "data" / "coco_instances"


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def sam(sam_folder: Path) -> SamTeacher:
    return SamSettings(model=str(sam_folder)).build()


def bench_of(teacher: SamTeacher, **options) -> tuple[dict, Bench]:
    bench = Bench(None, {"sam": teacher}, **options)
    return dict(bench.predict("whole")), bench


def a_mask(height: int, width: int, seed: int) -> np.ndarray:
    """An ellipse with a bite."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx = draws.uniform(0.3, 0.7) * height, draws.uniform(0.3, 0.7) * width
    mask = ((y - cy) / (0.3 * height)) ** 2 + ((x - cx) / (0.25 * width)) ** 2 <= 1
    return mask & ~((y - cy) ** 2 + (x - cx - 0.2 * width) ** 2 <= (0.1 * width) ** 2)


@pytest.mark.parametrize("size", [(100, 75), (61, 90), (40, 40), (64, 64), (150, 60)])
def test_masks_are_those_of_the_original_library(sam: SamTeacher, sam_folder: Path, size: tuple[int, int]):
    """Both prompts, on images that are not square: the same masks, pixel by pixel."""
    height, width = size
    image = tiny.photo(height, width, 1)[0].permute(1, 2, 0).numpy().copy()
    masks = np.stack([a_mask(height, width, seed) for seed in range(3)])
    boxes = torch.tensor([box_of(mask) for mask in masks])
    points = torch.tensor([inner_point(mask) for mask in masks], dtype=torch.float32)
    processor = transformers.SamProcessor(transformers.SamImageProcessor.from_pretrained(sam_folder))
    model = transformers.SamModel.from_pretrained(sam_folder).eval()
    spatial = sam(to_square(sam, image)).spatial
    for prompt, places in (("point", points), ("box", boxes)):
        words = {"input_points": [points[:, None].tolist()]} if prompt == "point" else {"input_boxes": [boxes.tolist()]}
        inputs = processor(images=image, return_tensors="pt", **words)
        with torch.no_grad():
            found = model(**{key: inputs[key] for key in ("pixel_values", *words)}, multimask_output=True)
        (full,) = processor.post_process_masks(found.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
        best = found.iou_scores[0].argmax(-1)
        wanted = full[torch.arange(3), best]
        ours = prompted(sam, spatial, prompt, places, image)
        assert ours.dtype == torch.bool
        assert ours.shape == (3, height, width)
        assert torch.equal(ours, wanted)


def test_many_prompts_are_made_in_parts(sam: SamTeacher, monkeypatch: pytest.MonkeyPatch):
    image = tiny.photo(48, 64, 1)[0].permute(1, 2, 0).numpy().copy()
    boxes = torch.tensor([[4.0 * k, 2.0 * k, 4.0 * k + 20, 2.0 * k + 15] for k in range(7)])
    spatial = sam(to_square(sam, image)).spatial
    at_once = prompted(sam, spatial, "box", boxes, image)
    monkeypatch.setattr("amradio.teachers.mask_decoder.PROMPTS", 3)
    assert torch.equal(prompted(sam, spatial, "box", boxes, image), at_once)


def test_distances_and_inner_point_equal_the_slow_way():
    draws = np.random.default_rng(0)
    for height, width in ((9, 13), (20, 7), (1, 5), (16, 16)):
        mask = draws.random((height, width)) < 0.9
        mask[height // 2, width // 2] = True
        padded = np.pad(mask, 1)
        outside = np.argwhere(~padded)
        slow = np.array([[((outside - (y, x)) ** 2).sum(1).min() for x in range(width + 2)] for y in range(height + 2)])
        assert np.array_equal(squared_distances(padded), slow)
        x, y = inner_point(mask)
        assert mask[y, x]
        assert slow[y + 1, x + 1] == slow.max()


def test_inner_point_of_known_masks():
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:10, 10:25] = True
    assert inner_point(mask) == (12, 7)  # the first of the innermost row
    assert inner_point(np.ones((9, 9), dtype=bool)) == (4, 4)  # the image's edge is an edge of the mask
    ring = np.ones((21, 21), dtype=bool)
    ring[5:16, 5:16] = False
    x, y = inner_point(ring)
    assert ring[y, x]


def test_boxes_discs_and_ious():
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:10, 10:25] = True
    assert box_of(mask) == (10, 5, 25, 10)
    truth = torch.from_numpy(mask)[None]
    assert torch.equal(filled_boxes(torch.tensor([box_of(mask)]), 20, 30), truth)
    assert ious(truth, truth).item() == pytest.approx(1, abs=1e-8)
    assert ious(truth, ~truth).item() == 0
    half = truth.clone()
    half[..., :17] = False
    assert ious(half, truth).item() == pytest.approx(8 / 15)
    assert discs(torch.tensor([[4.0, 4.0]]), 1.0, 9, 9).sum() == 5


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_masks_of_coco_equal_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    mask = a_mask(40, 50, 0)
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    flat = mask.T.flatten()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    for form in (text, {"size": [40, 50], "counts": counts}):
        assert np.array_equal(decode_mask(read_mask(form, 40, 50), 40, 50), mask)
    polygons = [[3.0, 2, 30, 4, 20, 25], [31.5, 30, 45, 30, 45, 38, 31.5, 38]]
    wanted = np.logical_or.reduce([coco.decode(coco.frPyObjects([part], 40, 50))[..., 0] for part in polygons])
    assert np.array_equal(decode_mask(read_mask(polygons, 40, 50), 40, 50), wanted)
    assert not decode_mask(read_mask([], 40, 50), 40, 50).any()


def make_coco(folder: Path, **changes) -> CocoInstancesSettings:
    """Two images; a polygon, both RLE, a crowd and a tiny one."""
    pytest.importorskip("pycocotools")
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number, (height, width) in enumerate(((40, 60), (50, 30))):
        Image.fromarray(tiny.photo(height, width, 1, number)[0].permute(1, 2, 0).numpy()).save(images / f"{number}.png")
    whole = {"size": [50, 30], "counts": [100, 400, 1000]}
    annotations = [
        {"id": 1, "image_id": 0, "segmentation": [[5.0, 5, 45, 5, 45, 30, 5, 30]], "area": 1000, "bbox": [5, 5, 40, 25], "iscrowd": 0},
        {"id": 2, "image_id": 1, "segmentation": whole, "iscrowd": 0},
        {"id": 3, "image_id": 1, "segmentation": whole, "area": 400, "bbox": [2, 0, 8, 50], "iscrowd": 1},
        {"id": 4, "image_id": 0, "segmentation": [[1.0, 1, 1.2, 1, 1.2, 1.2]], "area": 0.02, "bbox": [1, 1, 0.2, 0.2], "iscrowd": 0},
    ]
    listed = [{"id": 0, "file_name": "0.png", "height": 40, "width": 60}, {"id": 1, "file_name": "1.png", "height": 50, "width": 30}]
    data = {"images": listed, "annotations": annotations, "categories": []} | changes
    (folder / "instances.json").write_text(json.dumps(data))
    return CocoInstancesSettings(annotations=str(folder / "instances.json"), images=str(images))


def test_coco_is_read(tmp_path: Path):
    settings = make_coco(tmp_path)
    found = settings.build()
    assert found.describe() == f"4 masks in 2 images in {tmp_path / 'images'}"
    first, second = found.read(0), found.read(1)
    assert first.image.shape == (40, 60, 3)
    assert len(first.masks) == 1  # the other is below 1 px
    assert first.boxes.tolist() == [[5, 5, 45, 30]]
    assert first.masks[0, 6:29, 6:44].all()
    assert second.areas.tolist() == [400, 400]
    assert second.boxes[0].tolist() == list(box_of(second.masks[0]))
    without = settings.model_copy(update={"crowds": False}).build()
    assert len(without.read(1).masks) == 1
    assert len(settings.model_copy(update={"min_area": 500.0}).build().read(1).masks) == 0
    assert len(settings.model_copy(update={"limit": 1}).build()) == 1


def test_bad_coco_is_one_message_each(tmp_path: Path):
    problems = {
        "no such file": lambda s: Path(s.annotations).unlink(),
        "missing": lambda s: (Path(s.images) / "0.png").unlink(),
        "must be of one size": lambda s: Image.new("RGB", (10, 10)).save(Path(s.images) / "1.png"),
        "lacks 'images'": lambda s: Path(s.annotations).write_text("{}"),
        "not valid JSON": lambda s: Path(s.annotations).write_text("{"),
    }
    for number, (message, spoil) in enumerate(problems.items()):
        settings = make_coco(tmp_path / str(number))
        spoil(settings)
        with pytest.raises(UserError, match=message):
            settings.build()
    for number, (message, mask) in enumerate(
        {
            "or RLE": [[1.0, 2.0]],
            "both must be of one size": {"size": [1, 2], "counts": [2]},
            "without counts": {"size": [40, 60]},
        }.items()
    ):
        entry = {"id": 7, "image_id": 0, "segmentation": mask}
        with pytest.raises(UserError, match=message):
            make_coco(tmp_path / f"mask{number}", annotations=[entry]).build()
    with pytest.raises(UserError, match="belongs to no image"):
        make_coco(tmp_path / "stranger", annotations=[{"id": 7, "image_id": 99, "segmentation": []}]).build()
    with pytest.raises(UserError, match="no annotation"):
        make_coco(tmp_path / "empty", annotations=[]).build()
    with pytest.raises(UserError, match="missing"):
        CocoInstancesSettings(annotations="x.json", images=str(tmp_path / "nowhere")).build()


@pytest.mark.slow
def test_scores_on_scenes(sam: SamTeacher):
    """The mean over annotations, by size; floors and counts; the same again and on two workers."""
    settings = PromptableSegmentationSettings(data={"type": "scenes", "length": 6}, bins=(10, 20))
    predict, bench = bench_of(sam)
    result = settings.build().run(predict, bench)
    assert list(result.rows) == ["teacher/sam"]
    row = result.rows["teacher/sam"]
    wanted: dict[str, list[float]] = {"point": [], "box": []}
    sizes: list[float] = []
    scenes = SceneInstancesSettings(length=6).build()
    for number in range(6):
        scene = scenes.read(number)
        sizes += scene.areas.tolist()
        spatial = sam(to_square(sam, scene.image)).spatial
        for prompt, seen in wanted.items():
            for k in range(len(scene.masks)):
                mask = prompted(sam, spatial, prompt, coordinates(scene, prompt)[k : k + 1], scene.image)[0].numpy()
                seen.append((mask & scene.masks[k]).sum() / ((mask | scene.masks[k]).sum() + 1e-7))
    assert result.counts["masks"] == len(sizes)
    large = np.array(sizes) >= 20**2
    for prompt, seen in wanted.items():
        assert row[prompt] == pytest.approx(100 * np.mean(seen), abs=1e-3)
        assert row[f"{prompt}_large"] == pytest.approx(100 * np.mean(np.array(seen)[large]), abs=1e-3)
    assert result.counts["large"] == large.sum()
    assert result.counts["small"] + result.counts["medium"] + result.counts["large"] == len(sizes)
    assert 45 < result.floors["box"] < 80
    assert 20 < result.floors["point"] < result.floors["box"]
    again = settings.build().run(*bench_of(sam, num_workers=2))
    assert again.rows == result.rows
    assert again.fingerprint == result.fingerprint
    other = PromptableSegmentationSettings(data={"type": "scenes", "length": 5}, prompts=["box"]).build().run(predict, bench)
    assert other.fingerprint != result.fingerprint
    assert "point" not in other.rows["teacher/sam"]


def test_settings_and_missing_sams(sam: SamTeacher, teacher_folders: dict[str, Path]):
    with pytest.raises(ValueError, match="the smaller first"):
        PromptableSegmentationSettings(data={"type": "scenes"}, bins=(96, 32))
    evaluation = PromptableSegmentationSettings(data={"type": "scenes", "length": 1}).build()
    with pytest.raises(UserError, match="none of the teachers has one"):
        evaluation.run({}, Bench(None, {}))
    with pytest.raises(UserError, match="none of the rows"):
        evaluation.run({}, Bench(None, {"sam": sam}))
    evaluation = PromptableSegmentationSettings(data={"type": "scenes", "length": 1}, heads=["sma"]).build()
    with pytest.raises(UserError, match="'sma' is no teacher with a mask decoder; did you mean 'sam'"):
        evaluation.run(*bench_of(sam))


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_dir(), reason="the photographs of coco_instances are not on this machine")
def test_photographs(sam: SamTeacher):
    pytest.importorskip("pycocotools")
    data = {"type": "coco_instances", "annotations": str(COCO / "instances.json"), "images": str(COCO / "images"), "limit": 6}
    result = PromptableSegmentationSettings(data=data).build().run(*bench_of(sam))
    assert result.counts["images"] == 6
    assert 35 < result.floors["box"] < 80
    assert 0 < result.rows["teacher/sam"]["box"] < 100
