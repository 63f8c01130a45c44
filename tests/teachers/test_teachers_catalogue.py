"""The table of well-known teachers: its numbers against timm's and OpenCLIP's own architectures, on the meta device."""

from pathlib import Path

import open_clip
import pytest
import timm
import torch
import transformers

from amradio.teachers import Known, catalogue
from amradio.teachers.catalogue import licence_of

ARCHITECTURES = {
    "openai/clip-vit-base-patch16": "vit_base_patch16_clip_224",
    "openai/clip-vit-large-patch14-336": "vit_large_patch14_clip_336",
    "facebook/metaclip-h14-fullcc2.5b": "vit_huge_patch14_clip_224",
    "google/siglip-so400m-patch14-384": "vit_so400m_patch14_siglip_384",
    "google/siglip2-giant-opt-patch16-384": "vit_giantopt_patch16_siglip_384",
    "facebook/dinov2-small": "vit_small_patch14_dinov2",
    "facebook/dinov2-with-registers-large": "vit_large_patch14_reg4_dinov2",
    "facebook/dinov3-vitb16-pretrain-lvd1689m": "vit_base_patch16_dinov3",
    "facebook/dinov3-convnext-base-pretrain-lvd1689m": "convnext_base.dinov3_lvd1689m",
    "facebook/sam-vit-large": "samvit_large_patch16",
    "facebook/metaclip-2-worldwide-huge-quickgelu": "vit_huge_patch14_clip_224",
    "apple/aimv2-large-patch14-224": "aimv2_large_patch14_224",
    "OpenGVLab/InternVL3-1B-hf": "vit_intern300m_patch14_448",
    "depth-anything/Depth-Anything-V2-Large-hf": "vit_large_patch14_dinov2",
}


def rows(kind: str) -> list[Known]:
    return [known for known in catalogue() if known.kind == kind]


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_towers_are_as_timm_builds_them(model: str) -> None:
    known = next(each for each in catalogue() if each.model == model)
    with torch.device("meta"):
        tower = timm.create_model(ARCHITECTURES[model], num_classes=0)
    last = tower.feature_info[-1]
    assert (known.spatial_dim, known.patch_size) == (last["num_chs"], last["reduction"])
    assert known.million_parameters == pytest.approx(sum(each.numel() for each in tower.parameters()) / 1e6, rel=0.01)
    if known.input_size is not None:
        assert known.input_size == tower.pretrained_cfg["input_size"][-1]


@pytest.mark.parametrize("known", rows("timm"), ids=lambda known: known.model)
def test_backbones_of_timm(known: Known) -> None:
    config = timm.get_pretrained_cfg(known.model)
    assert config is not None
    assert config.hf_hub_id == f"timm/{known.model}"
    assert known.licence.lower().replace(" ", "-") == (config.license or "").lower()
    assert known.input_size == (config.input_size[-1] if config.fixed_input_size else None)


@pytest.mark.parametrize("known", rows("open_clip"), ids=lambda known: known.model)
def test_models_of_open_clip(known: Known) -> None:
    name, tag = known.model.split()
    config = open_clip.get_model_config(name)
    assert config is not None
    assert open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rstrip("/") == known.repository
    assert (known.summary_dim, known.input_size) == (config["embed_dim"], config["vision_cfg"]["image_size"])
    if "width" in config["vision_cfg"]:
        assert (known.spatial_dim, known.patch_size) == (config["vision_cfg"]["width"], config["vision_cfg"]["patch_size"])


def test_radio_is_the_librarys_default() -> None:
    config = transformers.RadioConfig()
    (known,) = rows("radio")
    assert known.summary_dim == len(config.summary_idxs) * config.hidden_size
    assert (known.spatial_dim, known.patch_size) == (config.hidden_size, config.patch_size)
    config.video_temporal_patch_size = None
    with torch.device("meta"):
        model = transformers.RadioModel(config)
    assert known.million_parameters == pytest.approx(sum(each.numel() for each in model.parameters()) / 1e6, rel=0.01)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("empty_cache")
def test_only_the_shipped_ones_are_here_by_themselves() -> None:
    assert {known.kind for known in catalogue() if known.is_here} <= {"embedded"}
    assert not [known.model for known in catalogue() if known.licence.startswith("not stated")]


def test_licences(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntags:\n- x\nlicense: bsd-3-clause\n---\n# A model\n")
    assert licence_of("me/mine", tmp_path) == "bsd-3-clause"
    assert licence_of("facebook/metaclip-b32", tmp_path) == "CC BY-NC 4.0"
    (tmp_path / "README.md").write_text("# A model without a header\n")
    assert licence_of("me/mine", tmp_path, "mit") == "mit"
    assert licence_of("me/mine", tmp_path).startswith("not stated")


@pytest.mark.parametrize("known", rows("pe"), ids=lambda known: known.model)
def test_perception_encoders(known: Known) -> None:
    """Names with a text tower are OpenCLIP's, others timm's; both have their weights under timm's name on the hub."""
    with_text = known.model in open_clip.list_models()
    architecture = known.model.split(".")[0]
    if with_text:
        config = open_clip.get_model_config(known.model)
        assert open_clip.get_pretrained_cfg(known.model, "meta")["hf_hub"].rstrip("/") == known.repository
        assert (known.summary_dim, known.input_size) == (config["embed_dim"], config["vision_cfg"]["image_size"])
        architecture = config["vision_cfg"]["timm_model_name"]
    with torch.device("meta"):
        tower = timm.create_model(architecture, **({"num_classes": known.summary_dim} if with_text else {}))
    config, last = tower.pretrained_cfg, tower.feature_info[-1]
    if not with_text:
        assert timm.get_pretrained_cfg(known.model).hf_hub_id == known.repository
        assert known.summary_dim == tower.head_hidden_size
    assert config["license"] == known.licence.lower()
    assert (known.spatial_dim, known.patch_size, known.input_size) == (last["num_chs"], last["reduction"], config["input_size"][-1])
    assert known.million_parameters == pytest.approx(sum(each.numel() for each in tower.parameters()) / 1e6, rel=0.01)


@pytest.mark.parametrize("model", ["facebook/sam2.1-hiera-tiny", "facebook/sam2.1-hiera-base-plus", "facebook/sam2.1-hiera-large"])
def test_stages_of_sam2(model: str) -> None:
    known = next(each for each in catalogue() if each.model == model)
    with torch.device("meta"):
        tower = timm.create_model(f"sam2_hiera_{model.rpartition('hiera-')[2].replace('-', '_')}", num_classes=0)
    widths = [stage["num_chs"] for stage in tower.feature_info]
    assert known.spatial_dim == 16 * widths[0] + 4 * widths[1] + widths[2] + widths[3]
    assert known.patch_size == tower.feature_info[2]["reduction"]
    assert known.million_parameters == pytest.approx(sum(each.numel() for each in tower.parameters()) / 1e6, rel=0.01)


def test_sam3_is_the_librarys_default() -> None:
    config = transformers.Sam3TrackerConfig().vision_config.backbone_config
    (known,) = rows("sam3")
    assert (known.spatial_dim, known.input_size, known.patch_size) == (config.hidden_size, config.image_size, config.patch_size)
    with torch.device("meta"):
        trunk = transformers.AutoModel.from_config(config)
    assert known.million_parameters == pytest.approx(sum(each.numel() for each in trunk.parameters()) / 1e6, rel=0.01)
