"""Every adapter equals the original library's own processor and model, on images that are not square.

Three comparisons each. (1) Preprocessing of float images: the same arithmetic, so equal to float32 rounding, 1e-5 per pixel.
(2) Features of the library's own pixel values: the same modules, 1e-5 relative. (3) From uint8 to features: the library rounds the
resized image to 8 bits (at most half a step of 1/255 per pixel, 2e-3 of the range), we keep floats; the random tiny models amplify that
to at most 2 % of the features' norm (seen: 0.4 %).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tiny import photo, tiny_clip, tiny_dinov2, tiny_sam
from torch import Tensor

from amradio.features import Features
from amradio.teachers import Teacher
from amradio.teachers.clip import ClipSettings
from amradio.teachers.dinov2 import Dinov2Settings
from amradio.teachers.sam import SamSettings, SamTeacher

SIZES = [(100, 75), (50, 90)]


def pixels(processor: transformers.BaseImageProcessor, images: Tensor, **options: object) -> Tensor:
    return processor(images=list(images), return_tensors="pt", **options)["pixel_values"]


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


def check(
    teacher: Teacher,
    processor: transformers.BaseImageProcessor,
    reference: Callable[[Tensor], Features],
    size: tuple[int, int],
) -> None:
    images = photo(*size)
    floats = 0.2 + 0.6 * images / 255  # away from the ends, where we clamp what bicubic overshoots and float processors do not
    ours = (teacher.prepare(floats) - teacher.mean) / teacher.std
    assert (ours - pixels(processor, floats, do_rescale=False)).abs().max() < 1e-5
    seen = pixels(processor, images)
    with torch.no_grad():
        expected = reference(seen)
        same_pixels = teacher.encode(seen)
    end_to_end = teacher(teacher.prepare(images / 255))
    for exact, found, wanted in zip(same_pixels, end_to_end, expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert relative(exact, wanted) < 1e-5
            assert relative(found, wanted) < 0.02


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("input_size", [None, 48])
def test_clip(tmp_path: Path, size: tuple[int, int], input_size: int | None) -> None:
    folder = tiny_clip(tmp_path)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    if input_size:
        processor.size, processor.crop_size = {"shortest_edge": input_size}, {"height": input_size, "width": input_size}

    def reference(seen: Tensor) -> Features:
        summary = model.get_image_features(seen, interpolate_pos_encoding=True).pooler_output
        tokens = model.vision_model(seen, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1]
        side = (input_size or 32) // 8
        return Features(summary, tokens[:, 1:].reshape(2, side, side, -1))

    check(ClipSettings(model=str(folder), input_size=input_size).build(), processor, reference, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2(tmp_path: Path, size: tuple[int, int], registers: int) -> None:
    folder = tiny_dinov2(tmp_path, registers)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(model).__name__ == ("Dinov2WithRegistersModel" if registers else "Dinov2Model")

    def reference(seen: Tensor) -> Features:
        found = model(seen)
        return Features(found.pooler_output, found.last_hidden_state[:, 1 + registers :].reshape(2, 2, 2, -1))

    check(Dinov2Settings(model=str(folder)).build(), transformers.AutoImageProcessor.from_pretrained(folder), reference, size)


def test_dinov2_takes_any_multiple_of_the_patch(tmp_path: Path) -> None:
    folder = tiny_dinov2(tmp_path)
    model, teacher = transformers.AutoModel.from_pretrained(folder).eval(), Dinov2Settings(model=str(folder)).build()
    images = torch.rand(1, 3, 28, 70)
    summary, spatial = teacher(images)
    assert summary is not None
    assert spatial is not None
    with torch.no_grad():
        tokens = model((images - teacher.mean) / teacher.std).last_hidden_state
    assert relative(spatial, tokens[:, 5:].reshape(1, 2, 5, -1)) < 1e-5
    assert relative(summary, tokens[:, 0]) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_sam(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tiny_sam(tmp_path)
    model = transformers.SamModel.from_pretrained(folder).eval()

    def reference(seen: Tensor) -> Features:
        before_neck: list[Tensor] = []
        handle = model.vision_encoder.neck.register_forward_pre_hook(lambda _, inputs: before_neck.append(inputs[0]))
        model.vision_encoder(seen)
        handle.remove()
        return Features(None, before_neck[0])

    check(SamSettings(model=str(folder)).build(), transformers.SamImageProcessor.from_pretrained(folder), reference, size)


@pytest.mark.parametrize("prompt", ["points", "boxes", "both"])
def test_sam_masks_equal_the_original_model(tmp_path: Path, prompt: str) -> None:
    folder = tiny_sam(tmp_path)
    model, teacher = transformers.SamModel.from_pretrained(folder).eval(), SamSettings(model=str(folder)).build()
    assert isinstance(teacher, SamTeacher)
    processor = transformers.SamImageProcessor.from_pretrained(folder)
    images, (height, width) = photo(50, 90), (50, 90)
    points = None if prompt == "boxes" else torch.tensor([[[[10.0, 20.0]], [[80.0, 40.0]]]]).repeat(2, 1, 1, 1)
    boxes = None if prompt == "points" else torch.tensor([[[5.0, 6.0, 40.0, 30.0], [50.0, 10.0, 88.0, 45.0]]]).repeat(2, 1, 1)
    prepared = processor(images=list(images), return_tensors="pt")
    scaled_points = None if points is None else teacher.scale_prompts(points, height, width)
    scaled_boxes = None if boxes is None else teacher.scale_prompts(boxes, height, width)
    with torch.no_grad():
        expected = model(pixel_values=prepared["pixel_values"], input_points=scaled_points, input_boxes=scaled_boxes)
        spatial = teacher.encode(prepared["pixel_values"]).spatial
    assert spatial is not None
    logits, iou = teacher.masks(spatial, points=scaled_points, boxes=scaled_boxes)
    assert logits.shape == (2, 2, 3, 32, 32)
    assert relative(logits, expected.pred_masks) < 1e-5
    assert relative(iou, expected.iou_scores) < 1e-5
    whole = transformers.SamProcessor(processor).post_process_masks(
        expected.pred_masks, prepared["original_sizes"], prepared["reshaped_input_sizes"], binarize=False
    )
    assert relative(teacher.to_image(logits, height, width), torch.stack(list(whole))) < 1e-5


def test_sam_prompts_scale_as_the_processor_does(tmp_path: Path) -> None:
    folder = tiny_sam(tmp_path)
    teacher = SamSettings(model=str(folder)).build()
    assert isinstance(teacher, SamTeacher)
    whole = transformers.SamProcessor(transformers.SamImageProcessor.from_pretrained(folder))
    expected = whole(images=photo(50, 90)[0], input_boxes=[[[5.0, 6.0, 40.0, 30.0]]], return_tensors="pt")["input_boxes"]
    assert torch.allclose(teacher.scale_prompts(torch.tensor([[[5.0, 6.0, 40.0, 30.0]]]), 50, 90), expected.float())


def test_sam_masks_read_a_map_on_another_grid(tmp_path: Path) -> None:
    teacher = SamSettings(model=str(tiny_sam(tmp_path))).build()
    assert isinstance(teacher, SamTeacher)
    logits, iou = teacher.masks(torch.randn(1, 5, 7, 32), points=torch.full((1, 1, 1, 2), 30.0), multimask=False)
    assert logits.shape == (1, 1, 1, 32, 32)
    assert iou.shape == (1, 1, 1)
