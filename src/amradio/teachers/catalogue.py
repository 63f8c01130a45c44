"""Well-known teachers: what they give, what they cost, under which terms."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..licences import NOT_STATED, licence_by_name, licence_in

EMBEDDED = Path(__file__).parent / "embedded"
"""The folder of the small teachers that come with the package."""


@dataclass(frozen=True)
class Known:
    """One line of `amradio teachers`."""

    kind: str
    """`type` in a recipe."""
    model: str
    """`model` in a recipe (open_clip: model and tag; embedded: name)."""
    million_parameters: float
    """Of the vision tower."""
    summary_dim: int | None
    """Channels of the summary, None where there is none."""
    spatial_dim: int
    """Channels of the map."""
    input_size: int | None
    """px of the only legal input; None: any multiple of the patch."""
    patch_size: int
    """px of one cell of the map."""
    licence: str
    """Of the weights."""

    @property
    def is_here(self) -> bool:
        """Whether this machine has the weights (shipped, or complete in the hub cache). No network."""
        if self.kind == "embedded":
            return True
        if not (_hub_cache() / f"models--{self.repository.replace('/', '--')}").is_dir():
            return False
        from .loading import cached_folder

        return cached_folder(self.repository, kind=self.kind) is not None

    @property
    def repository(self) -> str:
        """Name on the hub, as `hf download` takes it; the name itself where it is shipped."""
        in_timm = self.kind == "timm" or (self.kind == "pe" and "/" not in self.model)
        return f"timm/{self.model}" if in_timm else _REPOSITORIES.get(self.model, self.model)


def catalogue() -> list[Known]:
    """All well-known teachers, by kind: first those that are shipped."""
    return [*_shipped(), *(Known(*row, licence_by_name(row[1])) for row in _ROWS)]


def repositories() -> list[str]:
    """Names on the hub of the well-known teachers."""
    return sorted({known.repository for known in (Known(*row, "") for row in _ROWS) if "/" in known.repository})


def _hub_cache() -> Path:
    """The folder of the Hugging Face cache, from the environment as huggingface_hub reads it, which takes longer to import."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def licence_of(model: str, folder: Path, stated: str | None = None) -> str:
    """The licence of a teacher's weights: known by its name, else `stated` by its files, else by its model card, else by nobody."""
    known = licence_by_name(model)
    return known if known != NOT_STATED else stated or licence_in(folder) or NOT_STATED


# kind, model, million parameters, summary dim, spatial dim, input px, patch px; checked against timm's architectures in the tests
_ROWS: tuple[tuple[str, str, float, int | None, int, int | None, int], ...] = (
    ("clip", "openai/clip-vit-base-patch16", 86.2, 512, 768, 224, 16),
    ("clip", "openai/clip-vit-large-patch14", 304.0, 768, 1024, 224, 14),
    ("clip", "openai/clip-vit-large-patch14-336", 304.3, 768, 1024, 336, 14),
    ("clip", "facebook/metaclip-h14-fullcc2.5b", 632.1, 1024, 1280, 224, 14),
    ("metaclip_2", "facebook/metaclip-2-worldwide-huge-quickgelu", 632.1, 1024, 1280, 224, 14),
    ("open_clip", "ViT-L-14 datacomp_xl_s13b_b90k", 304.0, 768, 1024, 224, 14),
    ("open_clip", "ViT-H-14 laion2b_s32b_b79k", 632.1, 1024, 1280, 224, 14),
    ("open_clip", "ViT-H-14-quickgelu metaclip_fullcc", 632.1, 1024, 1280, 224, 14),
    ("open_clip", "ViT-H-14-378-quickgelu dfn5b", 632.7, 1024, 1280, 378, 14),
    ("open_clip", "ViT-SO400M-14-SigLIP-384 webli", 428.2, 1152, 1152, 384, 14),
    ("siglip", "google/siglip-so400m-patch14-384", 428.2, 1152, 1152, 384, 14),
    ("siglip", "google/siglip2-base-patch16-224", 92.9, 768, 768, 224, 16),
    ("siglip", "google/siglip2-large-patch16-384", 316.3, 1024, 1024, 384, 16),
    ("siglip", "google/siglip2-so400m-patch16-384", 428.3, 1152, 1152, 384, 16),
    ("siglip", "google/siglip2-so400m-patch16-naflex", 427.9, 1152, 1152, None, 16),
    ("siglip", "google/siglip2-giant-opt-patch16-384", 1163.7, 1536, 1536, 384, 16),
    ("pe", "PE-Core-B-16", 93.7, 1024, 768, 224, 16),
    ("pe", "PE-Core-L-14-336", 317.2, 1024, 1024, 336, 14),
    ("pe", "PE-Core-bigG-14-448", 1882.0, 1280, 1536, 448, 14),
    ("pe", "vit_pe_lang_large_patch14_448.fb", 291.4, 1024, 1024, 448, 14),
    ("pe", "vit_pe_lang_gigantic_patch14_448.fb", 1740.9, 1536, 1536, 448, 14),
    ("aimv2", "apple/aimv2-large-patch14-224", 309.2, 1024, 1024, 224, 14),
    ("aimv2", "apple/aimv2-large-patch14-native", 308.9, 1024, 1024, None, 14),
    ("internvl", "OpenGVLab/InternVL3-1B-hf", 304.0, 1024, 1024, 448, 14),
    ("dinov2", "facebook/dinov2-small", 22.1, 384, 384, None, 14),
    ("dinov2", "facebook/dinov2-with-registers-base", 86.6, 768, 768, None, 14),
    ("dinov2", "facebook/dinov2-with-registers-large", 304.4, 1024, 1024, None, 14),
    ("dinov2", "facebook/dinov2-with-registers-giant", 1136.5, 1536, 1536, None, 14),
    ("dinov3", "facebook/dinov3-vits16-pretrain-lvd1689m", 21.6, 384, 384, None, 16),
    ("dinov3", "facebook/dinov3-vitb16-pretrain-lvd1689m", 85.6, 768, 768, None, 16),
    ("dinov3", "facebook/dinov3-vitl16-pretrain-lvd1689m", 303.1, 1024, 1024, None, 16),
    ("dinov3", "facebook/dinov3-vith16plus-pretrain-lvd1689m", 840.5, 1280, 1280, None, 16),
    ("dinov3", "facebook/dinov3-vit7b16-pretrain-lvd1689m", 6716.0, 4096, 4096, None, 16),
    ("dinov3", "facebook/dinov3-convnext-base-pretrain-lvd1689m", 87.6, 1024, 1024, None, 32),
    ("depth_anything", "depth-anything/Depth-Anything-V2-Small-hf", 22.1, None, 384, None, 14),
    ("depth_anything", "depth-anything/Depth-Anything-V2-Large-hf", 304.4, None, 1024, None, 14),
    ("sam", "facebook/sam-vit-base", 89.7, None, 768, 1024, 16),
    ("sam", "facebook/sam-vit-large", 308.3, None, 1024, 1024, 16),
    ("sam", "facebook/sam-vit-huge", 637.0, None, 1280, 1024, 16),
    ("sam2", "facebook/sam2.1-hiera-tiny", 26.8, None, 3456, 1024, 16),
    ("sam2", "facebook/sam2.1-hiera-base-plus", 68.7, None, 4032, 1024, 16),
    ("sam2", "facebook/sam2.1-hiera-large", 212.1, None, 5184, 1024, 16),
    ("sam3", "facebook/sam3", 446.2, None, 1024, 1008, 14),
    ("radio", "nvidia/C-RADIOv4-H", 652.0, 2560, 1280, None, 16),
    ("timm", "resnet50.a1_in1k", 23.5, 2048, 2048, None, 32),
    ("timm", "convnext_base.fb_in22k", 87.6, 1024, 1024, None, 32),
    ("timm", "vit_base_patch16_224.augreg_in21k", 85.8, 768, 768, 224, 16),
    ("timm", "vit_base_patch16_224.mae", 85.8, 768, 768, 224, 16),
    ("timm", "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", 85.7, 768, 768, 256, 16),
    ("timm", "convnext_base.eupe_lvd1689m", 87.6, 1024, 1024, None, 32),
    ("timm", "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k", 304.1, 1024, 1024, 448, 14),
)


_REPOSITORIES = {
    "ViT-L-14 datacomp_xl_s13b_b90k": "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
    "ViT-H-14 laion2b_s32b_b79k": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "ViT-H-14-quickgelu metaclip_fullcc": "timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
    "ViT-H-14-378-quickgelu dfn5b": "apple/DFN5B-CLIP-ViT-H-14-378",
    "ViT-SO400M-14-SigLIP-384 webli": "timm/ViT-SO400M-14-SigLIP-384",
}
"""OpenCLIP's tags -> repositories on the hub."""


def _shipped() -> list[Known]:
    towers = {"clip": "vision_model.", "dino": "", "sam": "vision_encoder."}
    known = [_read(name, tower) for name, tower in towers.items() if (EMBEDDED / name).is_dir()]
    return [*known, Known("embedded", "photos", 2.49, 1280, 96, None, 16, "Apache-2.0")]


def _read(name: str, tower: str) -> Known:
    """A shipped teacher as its own files describe it."""
    from safetensors import safe_open

    config = json.loads((EMBEDDED / name / "config.json").read_text(encoding="utf-8"))
    vision = config.get("vision_config", config)
    with safe_open(EMBEDDED / name / "model.safetensors", "np") as weights:
        sizes = [math.prod(weights.get_slice(key).get_shape()) for key in weights.keys() if key.startswith(tower)]  # noqa: SIM118
    summary = {"clip": config.get("projection_dim"), "dino": vision["hidden_size"], "sam": None}[name]
    input_size = None if name == "dino" else vision["image_size"]
    millions = round(sum(sizes) / 1e6, 2)
    return Known("embedded", name, millions, summary, vision["hidden_size"], input_size, vision["patch_size"], "Apache-2.0")
