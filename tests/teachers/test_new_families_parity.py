"""SAM 2 and 3, MetaCLIP 2, Perception Encoder, AIMv2, InternVL and Depth Anything against the original libraries: see `parity.check`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import tiny
from amradio.errors import UserError
from amradio.features import Features
from amradio.network import HeadConfig, HeadPart
from amradio.teachers import (
    Aimv2Settings,
    DepthAnythingSettings,
    InternvlSettings,
    Metaclip2Settings,
    PeSettings,
    Sam2Settings,
    Sam3Settings,
    TimmSettings,
)
from amradio.teachers.from_head import mask_decoder
from amradio.teachers.loading import quiet
from amradio.teachers.precision import cast
from parity import SIZES, PilProcessor, check, relative

# --- SAM 2 and SAM 3


def sam2_levels(model: Any, seen: Tensor) -> list[Tensor]:
    return list(model.vision_encoder.backbone(seen).intermediate_hidden_states)


def test_sam2(tmp_path: Path) -> None:
    """Each cell of 16 px has what the trunk's four stages have there."""
    folder = tiny.tiny_sam2(tmp_path)
    model = transformers.Sam2Model.from_pretrained(folder).eval()

    def reference(seen: Tensor) -> Features:
        levels = sam2_levels(model, seen)
        wanted = torch.zeros(2, 4, 4, 16 * 8 + 4 * 16 + 24 + 32)
        for row in range(4):
            for column in range(4):
                parts = [levels[0][:, 4 * row + y, 4 * column + x] for y in range(4) for x in range(4)]
                parts += [levels[1][:, 2 * row + y, 2 * column + x] for y in range(2) for x in range(2)]
                parts += [levels[2][:, row, column], levels[3][:, row // 2, column // 2]]
                wanted[:, row, column] = torch.cat(parts, dim=1)
        return Features(None, wanted)

    processor = transformers.Sam2ImageProcessor.from_pretrained(folder)
    check(Sam2Settings(model=str(folder)).build(), processor, reference, (100, 75))

    def coarse(seen: Tensor) -> Features:
        return Features(None, reference(seen).spatial[..., -56:])

    teacher = Sam2Settings(model=str(folder), levels="coarse").build()
    assert teacher.mask_decoder is None
    check(teacher, processor, coarse, (50, 90))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "size"), [("tracker", (100, 75)), ("detector", (50, 90))])
def test_sam3(tmp_path: Path, size: tuple[int, int], part: str) -> None:
    folder = tiny.tiny_sam3(tmp_path, part=part)
    cls = transformers.Sam3TrackerModel if part == "tracker" else transformers.Sam3Model
    model = cls.from_pretrained(folder).eval()

    def reference(seen: Tensor) -> Features:
        before_neck: list[Tensor] = []
        handle = model.vision_encoder.neck.register_forward_pre_hook(lambda _, inputs: before_neck.append(inputs[0]))
        model.vision_encoder(seen)
        handle.remove()
        return Features(None, before_neck[0].permute(0, 2, 3, 1))

    teacher = Sam3Settings(model=str(folder)).build()
    assert (teacher.mask_decoder is None) == (part == "detector")
    check(teacher, transformers.Sam3ImageProcessor.from_pretrained(folder), reference, size)


FAMILIES = {
    "sam2": (tiny.tiny_sam2, Sam2Settings, "Sam2Model", transformers.Sam2ImageProcessor, transformers.Sam2Processor),
    "sam3": (tiny.tiny_sam3, Sam3Settings, "Sam3TrackerModel", transformers.Sam3ImageProcessor, transformers.Sam3TrackerProcessor),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["points", "both"])
def test_masks_equal_the_original_model(tmp_path: Path, family: str, prompt: str) -> None:
    build, settings, cls, image_processor, whole_processor = FAMILIES[family]
    folder = build(tmp_path)
    model, teacher = getattr(transformers, cls).from_pretrained(folder).eval(), settings(model=str(folder)).build()
    images, (height, width) = tiny.photo(50, 90), (50, 90)
    points = torch.tensor([[[[10.0, 20.0]], [[80.0, 40.0]]]]).repeat(2, 1, 1, 1)
    labels = torch.tensor([[[1], [0 if prompt == "both" else 1]]]).repeat(2, 1, 1)
    boxes = None if prompt == "points" else torch.tensor([[[5.0, 6.0, 40.0, 30.0], [50.0, 10.0, 88.0, 45.0]]]).repeat(2, 1, 1)
    processor = whole_processor(image_processor.from_pretrained(folder))
    prompts = {"input_points": points, "input_labels": labels, "input_boxes": boxes}
    given = {name: value.tolist() for name, value in prompts.items() if value is not None}
    prepared = processor(images=list(images), return_tensors="pt", **given)
    with torch.no_grad():
        expected = model(**{name: value for name, value in prepared.items() if name != "original_sizes"})
        spatial = teacher.encode(prepared["pixel_values"]).spatial
    decoder = teacher.mask_decoder
    scaled = {
        "points": decoder.scale_prompts(points, height, width),
        "boxes": None if boxes is None else decoder.scale_prompts(boxes, height, width),
        "labels": labels if prompt == "both" else None,
    }
    logits, iou = decoder.masks(spatial, **scaled)
    assert relative(logits, expected.pred_masks) < 1e-5
    assert relative(iou, expected.iou_scores) < 1e-5
    whole = processor.post_process_masks(expected.pred_masks, prepared["original_sizes"], binarize=False)
    assert relative(decoder.to_image(logits, height, width), torch.stack(list(whole))) < 1e-5
    assert decoder.num_masks == logits.shape[2]


@pytest.mark.slow
def test_the_tracker_of_a_whole_sam3_is_read(tmp_path: Path) -> None:
    """From the names that the library writes, and from the published ones."""
    folder = tiny.tiny_sam3(tmp_path, part="whole")
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    published = {name.replace("tracker_model.tracker_model.", "tracker_model."): value for name, value in weights.items()}
    for names in (weights, published):
        safetensors.torch.save_file(names, file, metadata={"format": "pt"})
        teacher = Sam3Settings(model=str(folder)).build()
        parts = {"tracker_neck.": teacher.neck, "detector_model.vision_encoder.backbone.": teacher.model.vision_encoder}
        parts["tracker_model.mask_decoder."] = teacher.model.mask_decoder
        for start, module in parts.items():
            assert module.state_dict()
            assert all(torch.equal(value, published[start + name]) for name, value in module.state_dict().items()), start
        assert teacher.mask_decoder is teacher


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_read_a_heads_map_without_the_encoder(tmp_path: Path, family: str) -> None:
    build, settings = FAMILIES[family][:2]
    teacher = settings(model=str(build(tmp_path))).build()
    part = HeadPart(head="mlp", dim=teacher.spatial_dim)
    card = HeadConfig(spatial=part, teacher={"type": family, "source": str(tmp_path)}).teacher
    maps = torch.randn(1, 5, 7, teacher.spatial_dim)
    decoder = mask_decoder("masks", card, teacher.spatial_dim, None, lambda square, side: maps)
    masks = decoder(torch.rand(3, 30, 40), points=[[10, 20], [30, 5]], best=3)
    assert masks.masks.shape == (2, 3, 30, 40)
    assert not list(decoder.teacher.model.vision_encoder.parameters())


def test_coarse_levels_have_no_mask_decoder(tmp_path: Path) -> None:
    teacher = Sam2Settings(model=str(tiny.tiny_sam2(tmp_path)), levels="coarse").build()
    with pytest.raises(UserError, match="has no mask decoder"):
        mask_decoder("masks", {}, teacher.spatial_dim, teacher)


def test_rotary_coordinates_stay_in_float32(tmp_path: Path) -> None:
    """Fractions of a window: in half precision neighbouring cells of SAM 3 would share a position."""
    teacher = Sam3Settings(model=str(tiny.tiny_sam3(tmp_path)), precision="bfloat16").build()
    positions = [layer.position_ids for layer in teacher.model.vision_encoder.layers]
    assert teacher.model.vision_encoder.layers[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in positions)
    assert torch.equal(positions[1][:8, 0], torch.arange(8) * 3 / 8)
    holder = torch.nn.Module()
    holder.register_buffer("position_ids", torch.rand(3))
    cast(holder, "float16")
    assert holder.position_ids.dtype == torch.float32


# --- towers with text


def words(ids: Tensor) -> Callable[..., transformers.BatchEncoding]:
    return lambda *_, **__: transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@pytest.mark.parametrize("family", ["metaclip_2", "aimv2"])
def test_texts_of_transformers(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, settings, cls, end = {
        "metaclip_2": (tiny.tiny_metaclip_2, Metaclip2Settings, "MetaClip2Model", 2),
        "aimv2": (tiny.tiny_aimv2, Aimv2Settings, "Aimv2Model", 98),
    }[family]
    folder = build(tmp_path)
    teacher = settings(model=str(folder)).build()
    ids = torch.randint(3, 97, (3, 16))
    ids[:, 12:] = end
    monkeypatch.setattr(type(teacher), "tokenizer", words(ids))
    with torch.no_grad():
        model = getattr(transformers, cls).from_pretrained(folder).eval()
        wanted = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
    assert teacher.has_text
    assert relative(teacher.encode_text(["a", "b", "c"]), wanted) < 1e-5


@pytest.mark.parametrize("family", ["metaclip_2", "aimv2"])
def test_maps_in_text_space(tmp_path: Path, family: str) -> None:
    """A cell is projected as a class token (MetaCLIP 2) and pooled as an image of one patch would be (AIMv2)."""
    build, settings = {"metaclip_2": (tiny.tiny_metaclip_2, Metaclip2Settings), "aimv2": (tiny.tiny_aimv2, Aimv2Settings)}[family]
    folder = build(tmp_path)
    teacher = settings(model=str(folder)).build()
    teacher.drop_encoder()
    spatial = torch.randn(1, 2, 3, 32)
    cell, model = spatial[0, 1, 2], transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if family == "metaclip_2":
            norm = model.vision_model.post_layernorm
            pooled = F.layer_norm(cell, cell.shape, norm.weight, norm.bias, norm.eps)
        else:
            head = model.vision_model.head
            pooled = head.output_proj(head.v_proj(cell))
        assert relative(teacher.project_spatial(spatial)[0, 1, 2], model.visual_projection.weight @ pooled) < 1e-5


@pytest.mark.parametrize("case", ["lit", "head", "plain", "native"])
def test_aimv2(tmp_path: Path, case: str) -> None:
    options = {"plain": {"use_head": False}, "native": {"is_native": True}}
    folder = tiny.tiny_aimv2(tmp_path, text=case == "lit", **options.get(case, {}))
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def reference(seen: Tensor) -> Features:
        found = (model.vision_model if case == "lit" else model)(seen)
        tokens = found.last_hidden_state
        summary = model.get_image_features(seen).pooler_output if case == "lit" else found.pooler_output
        return Features(tokens.mean(1) if case == "plain" else summary, tokens.reshape(2, 4, 4, -1))

    teacher = Aimv2Settings(model=str(folder)).build()
    check(teacher, transformers.CLIPImageProcessor.from_pretrained(folder), reference, (50, 90))
    if case == "native":
        images = torch.rand(1, 3, 24, 40)
        with torch.no_grad():
            tokens = model((images - teacher.mean) / teacher.std).last_hidden_state
        assert relative(teacher(images).spatial, tokens.reshape(1, 3, 5, -1)) < 1e-5


# --- Perception Encoder, EUPE


@pytest.mark.parametrize("architecture", ["vit_pe_core_tiny_patch16_384", "vit_pe_lang_large_patch14_448", "vit_tiny_patch16_dinov3_qkvb"])
def test_towers_of_timm(tmp_path: Path, architecture: str) -> None:
    """The last is EUPE's, which type `timm` reads: rotary positions and registers."""
    folder = tiny.tiny_timm(tmp_path, architecture)
    with quiet():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def reference(seen: Tensor) -> Features:
        tokens = model.forward_features(seen)
        spatial = tokens[:, model.num_prefix_tokens :].reshape(2, 4, 4, -1)
        return Features(model.forward_head(tokens, pre_logits=True), spatial)

    settings = PeSettings if "_pe_" in architecture else TimmSettings
    check(settings(model=str(folder), input_size=32).build(), PilProcessor(transform), reference, (100, 75))


@pytest.fixture(scope="module")
def pe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tower = {"timm_model_name": "vit_pe_core_tiny_patch16_384", "image_size": 384, "timm_pool": "map", "timm_proj": None}
    return tiny.tiny_open_clip(tmp_path_factory.mktemp("pe"), **tower)


@pytest.mark.slow
def test_pe_of_open_clip(pe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet():
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{pe_folder}", force_image_size=64)
    model.eval()

    def reference(seen: Tensor) -> Features:
        trunk = model.visual.trunk
        return Features(model.encode_image(seen), trunk.forward_features(seen)[:, trunk.num_prefix_tokens :].reshape(2, 4, 4, -1))

    teacher = PeSettings(model=str(pe_folder), input_size=64).build()
    check(teacher, PilProcessor(transform), reference, (100, 75))
    ids = torch.randint(1, 97, (2, 16))
    ids[:, 12:] = 98
    monkeypatch.setattr(type(teacher), "tokenizer", lambda *_: ids)
    with torch.no_grad():
        assert relative(teacher.encode_text(["a", "b"]), model.encode_text(ids)) < 1e-5


def test_what_is_no_perception_encoder(tmp_path: Path) -> None:
    resnet, clip = tiny.tiny_timm(tmp_path / "resnet", "test_resnet"), tiny.tiny_open_clip(tmp_path / "clip")
    for model, message in (
        (resnet, "its tower is 'test_resnet', no Perception Encoder; use type 'timm'"),
        (clip, "its tower is 'VisionTransformer', no Perception Encoder; use type 'open_clip'"),
        ("PE-Core-L-14", "OpenCLIP has no such model; did you mean 'PE-Core-L-14-336'"),
        ("pe-core-l-14-336", "it is no Perception Encoder; did you mean 'PE-Core-L-14-336'"),
    ):
        with pytest.raises(UserError, match=message):
            PeSettings(model=str(model)).build()


# --- towers without text


@pytest.mark.parametrize("case", ["whole", "tower", "class_token"])
def test_internvl(tmp_path: Path, case: str) -> None:
    folder = tiny.tiny_internvl(tmp_path, case == "whole", case != "class_token")
    with quiet():
        whole = transformers.AutoModel.from_pretrained(folder).eval()
    model = whole.vision_tower if case == "whole" else whole
    processor = transformers.GotOcr2ImageProcessor.from_pretrained(folder, crop_to_patches=False)

    def reference(seen: Tensor) -> Features:
        tokens = model(seen).last_hidden_state
        return Features(tokens[:, 0] if case == "class_token" else tokens[:, 1:].mean(1), tokens[:, 1:].reshape(2, 4, 4, -1))

    teacher = InternvlSettings(model=str(folder)).build()
    check(teacher, processor, reference, (100, 75))
    assert sum(each.numel() for each in teacher.model.parameters()) < sum(each.numel() for each in whole.parameters()) or case != "whole"


@pytest.mark.parametrize("size", SIZES)
def test_depth_anything(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tiny.tiny_depth_anything(tmp_path)
    model = transformers.DepthAnythingForDepthEstimation.from_pretrained(folder).eval()

    def reference(seen: Tensor) -> Features:
        rows, columns = seen.shape[-2] // 14, seen.shape[-1] // 14
        assert rows != columns
        return Features(None, model.backbone(seen).feature_maps[-1][:, 1:].reshape(2, rows, columns, -1))

    check(DepthAnythingSettings(model=str(folder)).build(), transformers.DPTImageProcessor.from_pretrained(folder), reference, size)
