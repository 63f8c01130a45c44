"""Automatic masks: as transformers' own generator makes them of the same SAM, and each filter against a slow computation."""

from pathlib import Path

import pytest
import torch
import transformers
from torchvision.ops import nms
from transformers.models.sam.image_processing_sam import _rle_to_mask

import tiny
from amradio.errors import UserError
from amradio.teachers import SamSettings
from amradio.teachers.automatic_masks import MaskFilters, click_grid, crop_boxes, stability
from amradio.teachers.mask_decoder import MaskDecoder


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With logits that reach beyond 1, as those of a trained SAM do."""
    folder = tiny.tiny_sam(tmp_path_factory.mktemp("sam"))
    model = transformers.SamModel.from_pretrained(folder)
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            for parameter in mlp.proj_out.parameters():
                parameter.mul_(40)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(sam_folder: Path) -> MaskDecoder:
    return MaskDecoder(SamSettings(model=str(sam_folder)).build())


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return (tiny.photo(120, 180, 1)[0] * 255).round().to(torch.uint8)


@pytest.mark.parametrize("layers", [0, 1])
def test_masks_are_those_of_transformers(decoder: MaskDecoder, sam_folder: Path, image: torch.Tensor, layers: int):
    """Crops, clicks, thresholds, boxes that are cut off, suppression: by the methods of its image processor."""
    every = decoder.everything(image, points_per_side=4, crop_layers=layers, filters=MaskFilters(-1e9, 0, 1))
    assert len(every.scores) > 10
    min_iou, min_stability = float(every.scores.quantile(0.2)), max(float(every.stability.quantile(0.2)), 1e-6)
    ours = decoder.everything(image, points_per_side=4, crop_layers=layers, filters=MaskFilters(min_iou, min_stability, 0.7))
    assert 0 < len(ours.scores) < len(every.scores)

    model = transformers.SamModel.from_pretrained(sam_folder).eval()
    processor = transformers.SamImageProcessor.from_pretrained(sam_folder)
    boxes, points, crops, _ = processor.generate_crop_boxes(image.numpy(), 64, crop_n_layers=layers, points_per_crop=4)
    kept: dict[str, list] = {"masks": [], "scores": [], "boxes": [], "areas": []}
    for number, crop in enumerate(crops):
        inputs = processor(images=crop, return_tensors="pt")
        with torch.no_grad():
            output = model(pixel_values=inputs["pixel_values"], input_points=points[:, :, number, None], multimask_output=True)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        (logits,) = processor.post_process_masks(output.pred_masks, *sizes, binarize=False)
        box = [int(edge) for edge in boxes[number]]
        thresholds = {"pred_iou_thresh": min_iou, "stability_score_thresh": min_stability}
        # Scores below 0 pass there where the threshold is below 0, as it is not applied then.
        rles, scores, found = processor.filter_masks(logits, output.iou_scores[0], (120, 180), box, **thresholds)
        for index in nms(found.float(), scores, 0.7).tolist():
            if scores[index] > min_iou:
                kept["masks"].append(torch.as_tensor(_rle_to_mask(rles[index])).bool())
                kept["scores"].append(float(scores[index]))
                kept["boxes"].append(found[index].float())
                kept["areas"].append(float((box[2] - box[0]) * (box[3] - box[1])))
    order = range(len(kept["masks"]))
    if layers:
        order = nms(torch.stack(kept["boxes"]), 1 / torch.tensor(kept["areas"]), 0.7).tolist()
    assert torch.equal(ours.masks, torch.stack([kept["masks"][index] for index in order]))
    assert ours.scores.tolist() == pytest.approx([kept["scores"][index] for index in order], abs=1e-5)
    assert torch.equal(ours.boxes, torch.stack([kept["boxes"][index] for index in order]))


def test_a_click_belongs_to_its_mask(decoder: MaskDecoder, image: torch.Tensor):
    found = decoder.everything(image, points_per_side=3, filters=MaskFilters(-1e9, 0, 1))
    for number in (0, len(found.scores) // 2):
        clicked = decoder(image, points=found.points[number : number + 1], best=decoder.mask_model.num_masks)
        assert any(torch.equal(found.masks[number], mask) for mask in clicked.masks[0])
        assert torch.isclose(clicked.scores[0], found.scores[number], atol=1e-5).any()


def test_grid_and_crops():
    assert click_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert crop_boxes(100, 200, 0) == [(0, 0, 200, 100)]
    crops = crop_boxes(100, 200, 2)
    assert len(crops) == 1 + 4 + 16
    for layer in (crops[1:5], crops[5:]):
        covered = torch.zeros(100, 200, dtype=torch.int64)
        for left, top, right, bottom in layer:
            covered[top:bottom, left:right] += 1
        assert covered.min() == 1
        assert covered.max() > 1


def test_stability_is_an_overlap_of_two_masks():
    logits = torch.randn(5, 9, 7, generator=torch.Generator().manual_seed(0)) * 3
    logits[4] = -9
    for value, one in zip(stability(logits)[:4], logits[:4], strict=True):
        high, low = one > 1, one > -1
        assert float(value) == pytest.approx(float((high & low).sum() / (high | low).sum()))
    assert stability(logits)[4] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"points_per_side": 0}, "points_per_side: expected a whole number from 1 to 512, found 0"),
        ({"crop_layers": 1.5}, "crop_layers: expected a whole number from 0 to 4"),
    ],
)
def test_wrong_numbers(decoder: MaskDecoder, image: torch.Tensor, words: dict, message: str):
    with pytest.raises(UserError, match=message):
        decoder.everything(image, **words)
    with pytest.raises(UserError, match="expected \\[3, H, W\\]"):
        decoder.everything(image[0])
