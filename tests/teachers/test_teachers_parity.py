"""Every adapter equals the original library's own processor and model: see `parity.check`."""

import re
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import timm
import torch
import transformers
from torch import Tensor

from amradio.features import Features
from amradio.teachers.loading import quiet
from amradio.teachers.sam import SamTeacher
from amradio.teachers.sam_settings import SamSettings
from amradio.teachers.settings import (
    ClipSettings,
    Dinov2Settings,
    Dinov3Settings,
    Metaclip2Settings,
    OpenClipSettings,
    RadioSettings,
    SiglipSettings,
    TimmSettings,
)
from parity import SIZES, PilProcessor, check, pixels, relative
from tiny import (
    photo,
    tiny_clip,
    tiny_dinov2,
    tiny_dinov3,
    tiny_dinov3_convnext,
    tiny_metaclip_2,
    tiny_naflex,
    tiny_open_clip,
    tiny_radio,
    tiny_sam,
    tiny_siglip,
    tiny_timm,
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("input_size", [None, 48])
@pytest.mark.parametrize("family", ["clip", "metaclip_2"])
def test_clip(tmp_path: Path, family: str, size: tuple[int, int], input_size: int | None) -> None:
    build, settings, kind = {
        "clip": (tiny_clip, ClipSettings, transformers.CLIPModel),
        "metaclip_2": (tiny_metaclip_2, Metaclip2Settings, transformers.MetaClip2Model),
    }[family]
    folder = build(tmp_path)
    model = kind.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    if input_size:
        processor.size, processor.crop_size = {"shortest_edge": input_size}, {"height": input_size, "width": input_size}

    def reference(seen: Tensor) -> Features:
        summary = model.get_image_features(seen, interpolate_pos_encoding=True).pooler_output
        tokens = model.vision_model(seen, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1]
        side = (input_size or 32) // 8
        return Features(summary, tokens[:, 1:].reshape(2, side, side, -1))

    check(settings(model=str(folder), input_size=input_size).build(), processor, reference, size)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("input_size", [None, 48])
def test_siglip(tmp_path: Path, size: tuple[int, int], input_size: int | None) -> None:
    folder = tiny_siglip(tmp_path)
    model = transformers.SiglipModel.from_pretrained(folder).eval()
    processor = transformers.SiglipImageProcessor.from_pretrained(folder)
    if input_size:
        processor.size = {"height": input_size, "width": input_size}

    def reference(seen: Tensor) -> Features:
        found = model.vision_model(seen, interpolate_pos_encoding=True)
        side = (input_size or 32) // 8
        return Features(found.pooler_output, found.last_hidden_state.reshape(2, side, side, -1))

    check(SiglipSettings(model=str(folder), input_size=input_size).build(), processor, reference, size)


def test_siglip_of_a_size_that_is_no_multiple_of_the_patch(tmp_path: Path) -> None:
    teacher = SiglipSettings(model=str(tiny_siglip(tmp_path, image_size=30, patch_size=8))).build()
    _, spatial = teacher(teacher.prepare(photo() / 255))
    assert spatial is not None
    assert spatial.shape == (2, 3, 3, 32)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_naflex(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tiny_naflex(tmp_path)
    model = transformers.Siglip2Model.from_pretrained(folder).eval()
    processor = transformers.Siglip2ImageProcessor.from_pretrained(folder)
    teacher, images = SiglipSettings(model=str(folder)).build(), photo(*size)
    summary, spatial = teacher(teacher.prepare(images / 255))
    seen = processor(images=list(images), return_tensors="pt")
    height, width = seen["spatial_shapes"][0].tolist()
    with torch.no_grad():
        expected = model.vision_model(**seen)
    assert summary is not None
    assert spatial is not None
    assert relative(spatial, expected.last_hidden_state[:, : height * width].reshape(2, height, width, -1)) < 0.02
    assert relative(summary, expected.pooler_output) < 0.02
    floats = processor(images=list(0.2 + 0.6 * images / 255), return_tensors="pt", do_rescale=False)
    with torch.no_grad():
        expected = model.vision_model(**floats)
    summary, spatial = teacher(teacher.prepare(0.2 + 0.6 * images / 255))
    assert summary is not None
    assert relative(summary, expected.pooler_output) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_dinov3(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tiny_dinov3(tmp_path)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def reference(seen: Tensor) -> Features:
        found = model(seen)
        return Features(found.pooler_output, found.last_hidden_state[:, 5:].reshape(2, 4, 4, -1))

    check(Dinov3Settings(model=str(folder)).build(), transformers.AutoImageProcessor.from_pretrained(folder), reference, size)


def test_dinov3_convnext(tmp_path: Path) -> None:
    folder = tiny_dinov3_convnext(tmp_path)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def reference(seen: Tensor) -> Features:
        found = model(seen)
        return Features(found.pooler_output, found.last_hidden_state[:, 1:].reshape(2, 2, 2, -1))

    check(Dinov3Settings(model=str(folder)).build(), transformers.AutoImageProcessor.from_pretrained(folder), reference, (100, 75))


def test_radio(tmp_path: Path) -> None:
    folder = tiny_radio(tmp_path)
    model, teacher = transformers.RadioModel.from_pretrained(folder).eval(), RadioSettings(model=str(folder)).build()
    processor, images = transformers.CLIPImageProcessor.from_pretrained(folder), photo(50, 90)
    with torch.no_grad():
        expected = model(pixels(processor, images))
    same_pixels, end_to_end = teacher(pixels(processor, images)), teacher(teacher.prepare(images / 255))
    for found, tolerance in ((same_pixels, 1e-5), (end_to_end, 0.02)):
        assert found.summary is not None
        assert found.spatial is not None
        assert relative(found.summary, expected.summary) < tolerance
        assert relative(found.spatial, expected.features.reshape(2, 6, 8, -1)) < tolerance


@pytest.mark.parametrize("name", ["gamma", "grandma"])
def test_radio_reads_layer_scales_under_their_published_names(tmp_path: Path, name: str) -> None:
    folder = tiny_radio(tmp_path)
    whole = RadioSettings(model=str(folder)).build()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    published = {re.sub(r"layer_scale([12])\.lambda1", rf"ls\1.{name}", key): value for key, value in weights.items()}
    assert any("radio_model.model.blocks.0.ls1." in key for key in published)
    safetensors.torch.save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    images = torch.rand(1, 3, 16, 24)
    assert torch.equal(RadioSettings(model=str(folder)).build()(images)[1], whole(images)[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("input_size", [None, 48])
@pytest.mark.parametrize("final_ln_after_pool", [False, True])
def test_open_clip(tmp_path: Path, size: tuple[int, int], input_size: int | None, final_ln_after_pool: bool) -> None:
    folder = tiny_open_clip(tmp_path, final_ln_after_pool=final_ln_after_pool)
    with quiet():
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", force_image_size=input_size)
    model.eval()

    def reference(seen: Tensor) -> Features:
        model.visual.output_tokens = False
        summary = model.encode_image(seen)
        model.visual.output_tokens = True
        side = (input_size or 32) // 8
        return Features(summary, model.visual(seen)[1].reshape(2, side, side, -1))

    check(OpenClipSettings(model=str(folder), input_size=input_size).build(), PilProcessor(transform), reference, size)


@pytest.mark.parametrize("vision", [{"timm_pool": "", "timm_proj": "linear"}, {"timm_pool": "token", "timm_proj": "none"}])
def test_open_clip_with_a_tower_of_timm(tmp_path: Path, vision: dict[str, str]) -> None:
    folder = tiny_open_clip(tmp_path, timm_model_name="test_vit", image_size=160, **vision)
    with quiet():
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()

    def reference(seen: Tensor) -> Features:
        tokens = model.visual.trunk.forward_features(seen)
        return Features(model.encode_image(seen), tokens[:, model.visual.trunk.num_prefix_tokens :].reshape(2, 10, 10, -1))

    check(OpenClipSettings(model=f"local-dir:{folder}").build(), PilProcessor(transform), reference, (100, 75))


@pytest.mark.parametrize("input_size", [None, 48])
def test_timm_vit(tmp_path: Path, input_size: int | None) -> None:
    folder = tiny_timm(tmp_path)
    options = {"img_size": input_size} if input_size else {}
    with quiet():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()
    data = timm.data.resolve_data_config({"input_size": (3, 48, 48)} if input_size else {}, model=model)

    def reference(seen: Tensor) -> Features:
        tokens = model.forward_features(seen)
        side = (input_size or 32) // 8
        return Features(model.forward_head(tokens, pre_logits=True), tokens[:, 1:].reshape(2, side, side, -1))

    teacher = TimmSettings(model=str(folder), input_size=input_size).build()
    check(teacher, PilProcessor(timm.data.create_transform(**data)), reference, (100, 75))


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_timm_cnn(tmp_path: Path, architecture: str) -> None:
    folder = tiny_timm(tmp_path, architecture)
    with quiet():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        maps = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def reference(seen: Tensor) -> Features:
        return Features(model.forward_head(model.forward_features(seen), pre_logits=True), maps(seen)[-1].permute(0, 2, 3, 1))

    check(TimmSettings(model=str(folder)).build(), PilProcessor(transform), reference, (100, 75))
