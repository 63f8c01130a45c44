"""Builders of tiny random models with processors, saved in the original formats; every builder returns the folder."""

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import safetensors.torch
import timm
import torch
import transformers
from torch import Tensor

from amradio.teachers.loading import quiet


def photo(height: int = 100, width: int = 75, batch: int = 2, seed: int = 0) -> Tensor:
    """uint8 [batch, 3, height, width]: smooth colour fields with edges and some grain, as a photograph has."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 5, 4, generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    edges = torch.nn.functional.interpolate(torch.rand(batch, 1, 7, 6, generator=draws).round(), (height, width)) - 0.5
    grain = 0.05 * torch.randn(batch, 3, height, width, generator=draws)
    return ((smooth + 0.3 * edges + grain).clamp(0, 1) * 255).round().to(torch.uint8)


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that make every layer and every position matter: libraries initialise some tables at zero or at 1e-10."""
    draws = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draws)
        is_scale = parameter.dim() == 1 and name.endswith(("weight", "lambda1", "gamma"))
        fan_in = parameter[0].numel() if parameter.dim() > 1 and "embed" not in name and "token" not in name else 4
        parameter.data = 1 + 0.1 * noise if is_scale else noise / fan_in**0.5
    return model.eval()


def _save(model: transformers.PreTrainedModel, processor: transformers.BaseImageProcessor | None, folder: Path | str) -> Path:
    with quiet():
        randomise(model).save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
    return Path(folder)


def tiny_clip(folder: Path | str, image_size: int = 32, patch_size: int = 8) -> Path:
    """A CLIPModel: hidden 32, projection 24."""
    tokens = {"bos_token_id": 97, "eos_token_id": 98}
    return _two_towers(transformers.CLIPConfig, transformers.CLIPModel, tokens, folder, image_size, patch_size)


def _two_towers(config, model, tokens: dict[str, int], folder: Path | str, image_size: int, patch_size: int) -> Path:
    """A model with an image tower and a text tower of the classes `config` and `model`: hidden 32, projection 24."""
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 24}
    towers = config(
        text_config={**common, "vocab_size": 99, "max_position_embeddings": 16, **tokens},
        vision_config={**common, "image_size": image_size, "patch_size": patch_size},
        projection_dim=24,
    )
    square = {"height": image_size, "width": image_size}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=square)
    return _save(model(towers), processor, folder)


def tiny_dinov2(folder: Path | str, registers: int = 4, image_size: int = 56, patch_size: int = 14) -> Path:
    """A Dinov2WithRegistersModel (a Dinov2Model with `registers=0`): hidden 32; published crop 28 of 32 px."""
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": image_size, "patch_size": patch_size}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=registers)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**common))
    crop = 2 * patch_size
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": crop + 4},
        crop_size={"height": crop, "width": crop},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return _save(model, processor, folder)


def tiny_sam(folder: Path | str, image_size: int = 64, patch_size: int = 8) -> Path:
    """A SamModel: hidden 32 before the neck, 16 after; one windowed and one global layer."""
    vision = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 64,
    }
    prompt = {"hidden_size": 16, "image_size": image_size, "patch_size": patch_size, "mask_input_channels": 8}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    processor = transformers.SamImageProcessor(size={"longest_edge": image_size}, pad_size={"height": image_size, "width": image_size})
    return _save(transformers.SamModel(config), processor, folder)


def tiny_siglip(folder: Path | str, image_size: int = 32, patch_size: int = 8) -> Path:
    """A SiglipModel: hidden 32."""
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.SiglipConfig(
        text_config={**common, "vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98},
        vision_config={**common, "image_size": image_size, "patch_size": patch_size},
    )
    processor = transformers.SiglipImageProcessor(size={"height": image_size, "width": image_size})
    return _save(transformers.SiglipModel(config), processor, folder)


def tiny_naflex(folder: Path | str, patch_size: int = 8, max_num_patches: int = 20) -> Path:
    """A Siglip2Model (NaFlex): hidden 32, position table of 4 x 4."""
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Siglip2Config(
        text_config={**common, "vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98},
        vision_config={**common, "num_patches": 16, "patch_size": patch_size},
    )
    processor = transformers.Siglip2ImageProcessor(patch_size=patch_size, max_num_patches=max_num_patches)
    return _save(transformers.Siglip2Model(config), processor, folder)


def tiny_dinov3(folder: Path | str, patch_size: int = 8) -> Path:
    """A DINOv3ViTModel: hidden 32, 4 registers; published size 32 px."""
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_register_tokens=4, patch_size=patch_size
    )
    processor = transformers.DINOv3ViTImageProcessor(size={"height": 32, "width": 32})
    return _save(transformers.DINOv3ViTModel(config), processor, folder)


def tiny_dinov3_convnext(folder: Path | str) -> Path:
    """A DINOv3ConvNextModel: last stage 32 channels; published size 64 px."""
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    processor = transformers.DINOv3ViTImageProcessor(size={"height": 64, "width": 64})
    return _save(transformers.DINOv3ConvNextModel(config), processor, folder)


def tiny_radio(folder: Path | str, patch_size: int = 8) -> Path:
    """A RadioModel: hidden 32, 3 class tokens of which 2 make the summary, 5 registers; the processor only rescales."""
    config = transformers.RadioConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=patch_size,
        max_img_size=64,
        num_cls_tokens=3,
        num_registers=5,
        summary_idxs=[0, 2],
    )
    processor = transformers.CLIPImageProcessor(size={"height": 48, "width": 64}, do_center_crop=False, do_normalize=False)
    return _save(transformers.RadioModel(config), processor, folder)


def tiny_metaclip_2(folder: Path | str, image_size: int = 32, patch_size: int = 8) -> Path:
    """A MetaClip2Model: hidden 32, projection 24."""
    tokens = {"bos_token_id": 0, "eos_token_id": 2}
    return _two_towers(transformers.MetaClip2Config, transformers.MetaClip2Model, tokens, folder, image_size, patch_size)


def tiny_aimv2(folder: Path | str, text: bool = True, **vision: object) -> Path:
    """An Aimv2Model: hidden 32, projection 24; without `text` an Aimv2VisionModel; `vision` overrides its configuration."""
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = {**common, "image_size": 32, "patch_size": 8, **vision}
    if text:
        words = {**common, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98}
        config = transformers.Aimv2Config(text_config=words, vision_config=tower, projection_dim=24)
        model = transformers.Aimv2Model(config)
    else:
        model = transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**tower))
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(model, processor, folder)


def tiny_internvl(folder: Path | str, whole: bool = False, use_mean_pooling: bool = True) -> Path:
    """An InternVLVisionModel: hidden 32; as a part of an InternVLForConditionalGeneration where `whole`."""
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = transformers.InternVLVisionConfig(
        **common, image_size=[32, 32], patch_size=[8, 8], use_mean_pooling=use_mean_pooling, attention_bias=True
    )
    processor = transformers.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=whole)
    if not whole:
        return _save(transformers.InternVLVisionModel(vision), processor, folder)
    words = transformers.Qwen2Config(**common, num_key_value_heads=4, vocab_size=99)
    config = transformers.InternVLConfig(vision_config=vision, text_config=words, image_token_id=5)
    return _save(transformers.InternVLForConditionalGeneration(config), processor, folder)


def tiny_depth_anything(folder: Path | str, patch_size: int = 14) -> Path:
    """A DepthAnythingForDepthEstimation with a Dinov2Backbone: hidden 32; published size 56 px with the aspect kept."""
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=patch_size,
        out_indices=[1, 2],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=patch_size,
        reassemble_hidden_size=32,
        reassemble_factors=[1, 0.5],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    size = {"height": 56, "width": 56}
    processor = transformers.DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=patch_size)
    return _save(transformers.DepthAnythingForDepthEstimation(config), processor, folder)


def _prompt_configs(image_size: int, patch_size: int) -> tuple[dict[str, int], dict[str, int]]:
    prompt = {"hidden_size": 16, "image_size": image_size, "patch_size": patch_size, "mask_input_channels": 8}
    return prompt, {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def tiny_sam2(folder: Path | str, image_size: int = 64) -> Path:
    """A Sam2Model: stages of 8, 16, 24 and 32 channels at 4, 8, 16 and 32 px; 16 channels after the neck."""
    widths, cells = [8, 16, 24, 32], [[image_size // stride] * 2 for stride in (4, 8, 16)]
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[image_size, image_size],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[1, 2, 2, 2],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[3, 3],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=trunk, backbone_channel_list=widths[::-1], backbone_feature_sizes=cells, fpn_hidden_size=16
    )
    prompt, decoder = _prompt_configs(image_size, 16)
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    processor = transformers.Sam2ImageProcessor(size={"height": image_size, "width": image_size})
    return _save(transformers.Sam2Model(config), processor, folder)


def _sam3_vision(image_size: int, patch_size: int, scales: list[float]) -> dict[str, object]:
    trunk = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
        "window_size": 3,
        "global_attn_indexes": [1],
        "pretrain_image_size": 2 * patch_size,
    }
    side = image_size // patch_size
    return {
        "model_type": "sam3_vision_model",
        "backbone_config": trunk,
        "fpn_hidden_size": 16,
        "scale_factors": scales,
        "backbone_feature_sizes": [[4 * side] * 2, [2 * side] * 2, [side] * 2],
    }


def tiny_sam3(folder: Path | str, image_size: int = 64, patch_size: int = 8, part: str = "tracker") -> Path:
    """A Sam3TrackerModel: hidden 32, windows of 3, neck 16. part: `whole` is a Sam3VideoModel, `detector` a Sam3Model."""
    prompt, decoder = _prompt_configs(image_size, patch_size)
    prompts = {"prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    small = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    concepts = {
        "vision_config": _sam3_vision(image_size, patch_size, [4.0, 2.0, 1.0, 0.5]),
        "text_config": {"model_type": "clip_text_model", "vocab_size": 99, "max_position_embeddings": 8, **words},
        "geometry_encoder_config": small,
        "detr_encoder_config": small,
        "detr_decoder_config": {**small, "num_queries": 2},
        "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2},
    }
    processor = transformers.Sam3ImageProcessor(size={"height": image_size, "width": image_size})
    vision = _sam3_vision(image_size, patch_size, [4.0, 2.0, 1.0])
    if part == "tracker":
        model = transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig(vision_config=vision, **prompts))
    elif part == "detector":
        model = transformers.Sam3Model(transformers.Sam3Config(**concepts))
    else:
        tracker = transformers.Sam3TrackerVideoConfig(vision_config=vision, **prompts, memory_attention_num_layers=1)
        model = transformers.Sam3VideoModel(transformers.Sam3VideoConfig(detector_config=concepts, tracker_config=tracker.to_dict()))
    return _save(model, processor, folder)


def tiny_timm(folder: Path | str, architecture: str = "vit_tiny_patch16_224", **options: object) -> Path:
    """A model of timm in its hub format, made small by `options`; a ViT of 32 px by default."""
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4} if architecture.startswith("vit_") else {}
    with quiet():
        model = randomise(timm.create_model(architecture, pretrained=False, **{**small, **options}))
    if small:
        model.pretrained_cfg["input_size"] = (3, 32, 32)
    with quiet():
        timm.models.save_for_hf(model, folder, model_args={**small, **options}, safe_serialization=True)
    return Path(folder)


def tiny_open_clip(folder: Path | str, **vision: object) -> Path:
    """A CLIP of OpenCLIP in its hub format: width 32, embedding 24; `vision` overrides its vision_cfg."""
    text = {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
    config = {"embed_dim": 24, "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8, **vision}}
    config["text_cfg"] = text
    custom = "timm_model_name" in vision
    with quiet():
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    randomise(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": {**config, "custom_text": custom}, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


BUILDERS: dict[str, list[Callable[[Path], Path]]] = {
    "clip": [tiny_clip],
    "open_clip": [tiny_open_clip, lambda folder: tiny_open_clip(folder, timm_model_name="test_vit", image_size=160)],
    "siglip": [tiny_siglip, tiny_naflex],
    "metaclip_2": [tiny_metaclip_2],
    "pe": [lambda folder: tiny_timm(folder, "vit_pe_core_tiny_patch16_384")],
    "aimv2": [tiny_aimv2, lambda folder: tiny_aimv2(folder, text=False, is_native=True, use_head=False)],
    "internvl": [lambda folder: tiny_internvl(folder, whole=True)],
    "depth_anything": [tiny_depth_anything],
    "dinov2": [tiny_dinov2, lambda folder: tiny_dinov2(folder, registers=0)],
    "dinov3": [tiny_dinov3, tiny_dinov3_convnext],
    "sam": [tiny_sam],
    "sam2": [tiny_sam2],
    "sam3": [tiny_sam3],
    "radio": [tiny_radio],
    "timm": [tiny_timm, *(lambda folder, name=name: tiny_timm(folder, name) for name in ("test_resnet", "test_convnext"))],
}
"""Tiny models of every kind that is read from files."""
