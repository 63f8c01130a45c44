"""Any model of OpenCLIP: LAION's, DFN, MetaCLIP, EVA, SigLIP and others; ViT, ResNet and timm towers."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import Tensor, nn

from ..errors import UserError, brief, nearest
from ..features import Features
from ..files import read_json
from ..libraries import first_line, need
from ..names import recognise
from ..tensors import held_in
from .adapter import Adapter, Origin
from .base import to_grid
from .catalogue import licence_of
from .folder_checks import check_size, check_tokenizer
from .loading import Source, absent, check_override, fetch, hub_answers, quiet, reading
from .preprocess import Preprocess, Rule, three
from .settings import OpenClipSettings, Precision
from .text_encoder import in_batches, warn_of_cut_texts

CONFIG_FILE = "open_clip_config.json"


def build(settings: OpenClipSettings) -> "OpenClipTeacher":
    """Loads the model of `settings` with OpenCLIP; raises UserError where it is not there, unknown or damaged."""
    source = Source(settings.type, settings.model, settings.revision)
    open_clip = need("open_clip", source.where)
    name, options = _resolve(source, settings.pretrained)
    folder = Path(name.removeprefix("local-dir:"))
    with quiet(), reading(source, folder):
        if folder.is_dir():
            check_size(source, folder, lambda: open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta"))
        model: Any = open_clip.create_model(
            name,
            require_pretrained=True,
            pretrained_text=False,  # the checkpoint has the text tower, too
            force_image_size=settings.input_size,
            weights_only=True,
            **options,
        )
        written = f"{settings.model} {settings.pretrained}" if settings.pretrained else settings.model
        teacher = OpenClipTeacher(model, preprocess_of(model), Origin(written, licence_of(written, folder)), settings.precision)
        teacher.library_name = name
        check_override(source, settings.input_size, teacher.patch_size)
        return teacher


class OpenClipTeacher(Adapter):
    """summary [B, embed_dim], not normalised; spatial [B, H, W, width of the tower]."""

    has_text = True
    library_name = ""
    """By which the library finds the tokenizer."""

    def __init__(self, model: Any, preprocess: Preprocess, origin: Origin, precision: Precision):
        """model: a CLIP or CustomTextCLIP of the library."""
        patch_size, width, self_normed = _tower(model.visual, origin)
        super().__init__(
            model,
            preprocess,
            patch_size=patch_size,
            dims=(_embed_dim(model), width),
            input_size=_square(model.visual.image_size),
            origin=origin,
            precision=precision,
        )
        self.gives_tokens = self_normed

    def encode(self, images: Tensor) -> Features:
        """Features of normalized images [B, 3, H, W] of a legal size, in `compute_dtype`.

        The image embedding and the tokens that the library returns.
        """
        if self.gives_tokens:
            summary, tokens = self.model.visual(images)
            return Features(summary, to_grid(tokens, images, self.patch_size))
        outputs = self.model.visual.forward_intermediates(images, indices=1, normalize_intermediates=True)
        return Features(outputs["image_features"], outputs["image_intermediates"][-1].permute(0, 2, 3, 1))

    def drop_encoder(self) -> None:
        """Frees the layers of the image tower; norms, pooling and projection stay, for maps in text space."""
        visual: Any = self.model.visual
        tower = visual if self.gives_tokens else visual.trunk
        for name in ("transformer", "conv1", "blocks", "patch_embed", "stages", "stem"):
            if name in tower._modules:
                setattr(tower, name, nn.Identity())

    def _project_cells(self, cells: Tensor) -> Tensor:
        """The projection (its tokens have the final norm already, but where it comes after the pooling); of timm towers the pooling over
        one patch alone."""
        visual: Any = self.model.visual
        if self.gives_tokens:
            if visual.final_ln_after_pool:
                cells = visual.ln_post(cells.to(next(visual.ln_post.parameters()).dtype))
            return cells.to(visual.proj.dtype) @ visual.proj if visual.proj is not None else cells
        trunk = visual.trunk
        prefix = getattr(trunk, "num_prefix_tokens", None)
        if prefix is None:
            raise UserError(f"teacher '{self.source}': a tower of {type(trunk).__name__} pools before it projects; take one with a ViT")
        # A class token is pooled, or an average over the patches behind it: with the same token in every place both are that token.
        alone = cells[:, None].expand(-1, prefix + 1, -1).to(next(visual.parameters()).dtype)
        return visual.head(trunk.forward_head(alone))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, float32 [N, summary_dim], not normalized; longer texts are cut, with a warning."""
        warn_of_cut_texts(_token_counts(self.tokenizer, texts), self.model.context_length, self.source)
        return in_batches(texts, lambda batch: self.model.encode_text(self.tokenizer(batch).to(self.mean.device)))

    @cached_property
    def tokenizer(self) -> Any:
        """Of the library."""
        import open_clip

        folder = Path(self.library_name.removeprefix("local-dir:"))
        trust: dict[str, Any] = {}
        if folder.is_dir():
            check_tokenizer(f"teacher '{self.source}'", folder)
            text = read_json(folder / CONFIG_FILE).get("model_cfg", {}).get("text_cfg", {})
            trust = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}  # others have no such argument
        with quiet():
            try:
                return open_clip.get_tokenizer(self.library_name, **trust)
            except Exception as error:  # the library raises whatever its readers do
                raise UserError(f"teacher '{self.source}': its tokenizer cannot be read: {first_line(error)}") from None


def _token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text before the tokenizer cuts them; of tokenizers that are neither of the library's two kinds none."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    if isinstance(tokenizer, SimpleTokenizer):
        return [len(tokenizer.encode(text)) + 2 for text in texts]  # a token before and one behind
    if isinstance(tokenizer, HFTokenizer):
        return [len(ids) for ids in tokenizer.tokenizer([tokenizer.clean_fn(text) for text in texts], verbose=False)["input_ids"]]
    return []


def _tower(visual: Any, origin: Origin) -> tuple[int, int, bool]:
    """(px of a patch, channels of the map, whether the tower itself gives tokens beside the embedding)."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, TimmModel):
        trunk: Any = visual.trunk
        return trunk.feature_info[-1]["reduction"], trunk.feature_info[-1]["num_chs"], False
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type != "none":
        visual.output_tokens = True
        return visual.conv1.kernel_size[0], visual.conv1.out_channels, True
    raise UserError(
        f"teacher '{origin.source}': a tower of {type(visual).__name__} with its pooling gives no patch tokens; "
        "take a model with a plain ViT or a timm tower"
    )


def _embed_dim(model: Any) -> int:
    from open_clip.timm_model import TimmModel

    if isinstance(model.visual, TimmModel):
        linears = [module for module in model.visual.head.modules() if isinstance(module, nn.Linear)]
        trunk: Any = model.visual.trunk
        return linears[-1].out_features if linears else trunk.num_classes or trunk.num_features
    return model.visual.proj.shape[1]


def _square(size: Any) -> int:
    return max(size) if isinstance(size, tuple | list) else size


def preprocess_of(model: Any) -> Preprocess:
    """OpenCLIP's evaluation transform of a model."""
    from open_clip.transform import PreprocessCfg

    config = asdict(PreprocessCfg(**model.visual.preprocess_cfg))
    size = _square(config["size"])
    rules: dict[str, Rule] = {"shortest": "shortest", "squash": "exact"}  # no tag of the library has "longest"
    rule = rules[config["resize_mode"]]
    mode = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    crop = None if rule == "exact" else (size, size)
    return Preprocess(three(config["mean"]), three(config["std"]), rule, (size, size), mode, crop, rounds=True)


def _resolve(source: Source, pretrained: str | None) -> tuple[str, dict[str, Any]]:
    """(name, options) for `create_model`, such that nothing is left to download."""
    import open_clip

    recognised = recognise(source.model)
    name = recognised.text
    if recognised.kind != "word":
        if pretrained is not None and recognised.kind in ("folder", "hub"):
            raise UserError(f"{source.where}: a folder or hub name has its own weights, found pretrained '{pretrained}'; leave it out")
        folder = fetch(source)
        _check_folder(source, folder)
        return f"local-dir:{folder}", {}
    if name not in open_clip.list_models():
        raise UserError(f"{source.where}: OpenCLIP has no such model; {nearest(name, open_clip.list_models())}")
    if pretrained is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise UserError(
            f"{source.where}: 'pretrained' is missing, a tag or the path of a checkpoint; there is: {', '.join(tags) or 'no tag'}"
        )
    checkpoint = recognise(pretrained)
    if checkpoint.kind == "file":
        try:
            held_in([checkpoint.path])
        except UserError as error:
            raise UserError(*(f"{source.where}: {problem}" for problem in error.problems)) from None
        return name, {"pretrained": str(checkpoint.path)}
    return name, _tagged(source, name, pretrained)


def _tagged(source: Source, name: str, tag: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise UserError(f"{source.where}: pretrained '{tag}' is no file, and no tag of this model; {nearest(tag, tags)}")
    return {
        "pretrained": _weights(source, config),
        "force_quick_gelu": config.get("quick_gelu", False),  # a checkpoint by path does not carry what its tag says
        "force_preprocess_cfg": {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config},
    }


def _weights(source: Source, config: dict[str, Any]) -> str:
    """The checkpoint of a tag: from the cache, else downloaded by the library."""
    from open_clip.pretrained import download_pretrained

    repository, _, filename = config.get("hf_hub", "").rpartition("/")
    if repository:
        names = [filename] if filename else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        names = [name.replace(".bin", ".safetensors") for name in names] + names
        cached = [huggingface_hub.try_to_load_from_cache(repository, name) for name in names]
        path_of_weights = next((path for path in cached if isinstance(path, str)), None)
        if path_of_weights:
            return path_of_weights
    if not hub_answers():
        raise UserError(absent(source, repository or source.model, "the hub cannot be reached"))
    with quiet():
        try:
            return download_pretrained(config)
        except Exception as error:  # the library raises whatever its clients do
            raise UserError(absent(source, repository or source.model, first_line(error))) from None


def _check_folder(source: Source, folder: Path) -> None:
    file = folder / CONFIG_FILE
    if not file.is_file():
        other = folder / "config.json"
        kind = read_json(other).get("model_type") if other.exists() else None
        problem = f"it is a '{kind}' by its config.json; use that type" if kind else "it is not a folder of OpenCLIP"
        raise UserError(f"{source.where}: {folder} has no open_clip_config.json; {problem}")
    config = read_json(file)
    parts = {"model_cfg": config.get("model_cfg"), "preprocess_cfg": config.get("preprocess_cfg", {})}
    if isinstance(config.get("model_cfg"), dict):
        parts |= {f"model_cfg.{key}": config["model_cfg"].get(key) for key in ("vision_cfg", "text_cfg")}
    wrong = [
        f"{key}: it is an object in a folder of OpenCLIP; download the folder again" for key in parts if not isinstance(parts[key], dict)
    ]
    vision = parts.get("model_cfg.vision_cfg")
    tower = vision.get("timm_model_name") if isinstance(vision, dict) else None
    if tower is not None and not re.fullmatch(r"\w[\w.-]*", str(tower)):
        wrong.append(f"model_cfg.vision_cfg.timm_model_name: found {brief(tower)}, it is the name of an architecture of timm, and no place")
    if wrong:
        raise UserError(*(f"{source.where}: {file}: {problem}" for problem in wrong))
