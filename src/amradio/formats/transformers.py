"""transformers' own RADIO: a folder that `AutoModel.from_pretrained` loads as `RadioModel`, without code from elsewhere."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..errors import UserError
from ..features import Features
from ..files import read_json
from ..libraries import first_line, need, no_remote_code, refuse_code
from ..network import Network, NetworkConfig
from ..students.vit import Vit, VitShape
from ..students.vit_pretrained import TABLE
from ..students.vit_settings import VitSettings, swiglu_dim
from ..tensors import read_tensors, write_tensors
from .base import ExportSettings, Format, LoadedModel, peek
from .building import filled
from .model_folder import ANCESTRY, CONFIG_FILE, ancestors_in, ancestry, plain_ancestors, read_sharded
from .radio.heads import OWN_KEY, own_part
from .vit_weights import VitLayout, fold_normalisation, fold_scales, mlp_ratio, without_idle_scales

PROCESSOR_FILE = "preprocessor_config.json"
NAMES = (
    ("embeddings.patch_projection.", "patch_generator.embedder."),
    ("embeddings.position_embedding", "patch_generator.pos_embed"),
    ("embeddings.cls_register_token", "patch_generator.cls_token.token"),
    ("encoder.layer.", "blocks."),
    (".attention.o_proj.", ".attn.proj."),
    (".mlp.down_proj.", ".mlp.w3."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
)
"""`RadioModel`'s names and the published ones, which are ours."""
NATIVE = (
    r"embeddings\.(patch_projection\.weight|position_embedding|cls_register_token)"
    r"|encoder\.layer\.\d+\.((norm[12]|attention\.o_proj|mlp\.(fc[12]|(gate|up|down)_proj))\.(weight|bias)|layer_scale[12]\.lambda1)"
)
DEAD = ("reg_token", "patch_generator.video_embedder.weight", "embeddings.video_patch_projection.weight")
"""Names that do nothing to an image: timm's unused registers, and the patches of video models."""
FUSED = {"attn.qkv": ("attention", ("q_proj", "k_proj", "v_proj")), "mlp.w12": ("mlp", ("gate_proj", "up_proj"))}
"""Layer of ours -> where its parts are in a `RadioModel`, and their names in order."""
MOST_PIXELS = 65_536
"""As of `config.Pixels`."""
DEFAULT_SIZE = 224
"""px that the image processor is set to where the model has no size of its own (RadioConfig's default)."""
HALF_TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
"""Folding LayerScale rounds half weights once more: two units in the last place of the dtype, over the depth of a ViT."""


class Transformers(Format):
    """`transformers`: the backbone as a `RadioModel` folder with the image processor that the published models come with."""

    name = "transformers"
    reader = "transformers"

    def recognises(self, path: Path) -> bool:
        """A folder whose config.json says `model_type: radio`, and not the published `args` of the remote-code layout."""
        config = peek(path / CONFIG_FILE) or {}
        return config.get("model_type") == "radio" and "args" not in config

    def read(self, path: Path, align_corners: bool | None = None) -> LoadedModel:
        """Reads a `RadioModel` folder. Scales that are all 1, as `save_pretrained` always writes, are left out."""
        stated, radio = read_json(path / CONFIG_FILE), _read_config(path)
        weights = _published_names(read_sharded(path), str(path))
        ignored_keys = tuple(name for name in DEAD if weights.pop(name, None) is not None)
        defaults = {"norm_mean": radio.norm_mean, "norm_std": radio.norm_std}
        mean, std = (weights.pop(f"input_conditioner.{key}", torch.tensor(value)).flatten().tolist() for key, value in defaults.items())
        slots = weights.pop("summary_idxs", torch.tensor(radio.summary_idxs)).tolist()
        num_summaries = radio.num_cls_tokens
        if not slots or not all(0 <= slot < num_summaries for slot in slots):
            raise UserError(f"{path}: summary_idxs {slots} are not among its {num_summaries} class tokens; the file is damaged")
        weights = without_idle_scales(weights)
        layout = _layout(radio, any(name.endswith(".gamma") for name in weights), bool(align_corners))
        config = NetworkConfig(
            student=layout.settings(f"{path / CONFIG_FILE}: "),
            num_summaries=num_summaries,
            summary_slots=None if slots == list(range(num_summaries)) else slots,
            image_size=_preferred_size(path),
            distilled_from=ancestors_in(own_part(stated), f"{path / CONFIG_FILE}: {OWN_KEY}."),
        )
        weights = weights if radio.qkv_bias else _with_zero_bias(weights)
        network = filled(config, {f"student.{key}": tensor for key, tensor in weights.items()}, str(path), _without_start)
        network.student.load_state_dict(fold_normalisation(network.student.state_dict(), mean, std))
        return LoadedModel(config, network, ignored_keys, bool(own_part(stated)))

    def unsupported_reasons(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """Another student than a ViT, or a ViT with parts that `RadioModel` lacks."""
        student = config.student
        if not isinstance(student, VitSettings):
            return (f"transformers' RadioModel is a ViT, and this student is of type '{student.type}'; 'onnx' has a place for it",)
        reasons = []
        if student.align_corners:
            reasons.append(
                "RadioModel stretches positions with align_corners false, and this model was made with true; 'timm' has a place for it"
            )
        if config.rotates:
            reasons.append("RadioModel has no place for the rotation of the map; 'torchhub' and 'hf' have")
        if student.mlp == "swiglu" and student.shape().mlp_dim % 8:
            reasons.append("RadioModel takes SwiGLU with a multiple of 8 hidden channels alone; set student.mlp_dim so")
        unknown = [name for name in network.student.state_dict() if not _native_names(name)]
        if unknown:
            reasons.append(f"RadioModel has no place for {', '.join(unknown[:5])}")
        return tuple(reasons)

    def supported_heads(self, config: NetworkConfig) -> tuple[str, ...]:
        """None: a RadioModel is a backbone."""
        del config
        return ()

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        """Writes a `RadioModel` folder. LayerScale is folded into `o_proj` and `fc2`: other readers of the layout ignore the scales."""
        need("transformers", "format transformers")
        from transformers import CLIPImageProcessor, RadioConfig, RadioModel

        student, chosen = model.network.student, model.config.student
        assert isinstance(student, Vit)
        assert isinstance(chosen, VitSettings)
        shape, side = chosen.shape(), chosen.table_side()
        image_size = _square(model)
        radio = RadioConfig(
            hidden_size=shape.dim,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.num_heads,
            mlp_ratio=1.5 * shape.mlp_dim / shape.dim if chosen.mlp == "swiglu" else mlp_ratio(shape),
            use_swiglu_ffn=chosen.mlp == "swiglu",
            patch_size=chosen.patch_size,
            image_size=image_size,
            max_img_size=side * chosen.patch_size,
            num_cls_tokens=student.num_summaries,
            num_registers=student.num_prefix - student.num_summaries,
            summary_idxs=list(model.network.summary_slots),
            norm_mean=[float(value) for value in student.mean.flatten()],
            norm_std=[float(value) for value in student.std.flatten()],
            dtype=settings.dtype,
        )
        setattr(radio, OWN_KEY, {ANCESTRY: plain_ancestors(model.config)})
        with torch.device("meta"):
            native = RadioModel(radio)
        native.load_state_dict(_native_weights(model.network, native.state_dict()), assign=True)
        edges = {"height": image_size, "width": image_size}
        processor = CLIPImageProcessor(do_resize=False, do_center_crop=False, do_normalize=False, size=edges, crop_size=edges)
        with _quiet():
            native.save_pretrained(target)
            processor.save_pretrained(target)
        for file in target.glob("*.safetensors"):  # written for their owner alone, and without our metadata
            aside = file.with_name(f".{file.name}.part")
            write_tensors(read_tensors(file), aside, ancestry(model.config))
            aside.replace(file)

    def tolerance(self, settings: ExportSettings) -> float:
        """By the dtype of the weights: LayerScale is folded into them, which rounds once more in half precision."""
        return HALF_TOLERANCE[settings.dtype]

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> Mapping[str, Features]:
        """What transformers computes from the folder: backbone alone."""
        from transformers import AutoModel

        del settings
        with _quiet():
            native: Any = AutoModel.from_pretrained(
                target, dtype=torch.float32, local_files_only=True, trust_remote_code=False, attn_implementation="sdpa"
            )
        with torch.inference_mode():
            output = native.eval()(pixel_values=images)
        grid = (images.shape[2] // native.config.patch_size, images.shape[3] // native.config.patch_size)
        return {"backbone": Features(output.summary, output.features.unflatten(1, grid))}

    def stated_ancestors(self, target: Path) -> Any:
        """`distilled_from` as plain values, from config.json."""
        return read_json(target / CONFIG_FILE)[OWN_KEY][ANCESTRY]

    def snippet(self, target: Path, settings: ExportSettings) -> str:
        """Lines that load it with `AutoModel.from_pretrained`."""
        del settings
        size = _read_config(target).image_size
        return "\n".join(
            (
                "from transformers import AutoImageProcessor, AutoModel",
                f'processor = AutoImageProcessor.from_pretrained("{target}")',
                f'model = AutoModel.from_pretrained("{target}").eval()',
                f"# do_resize brings any image to {size} x {size} px; without it images keep their size, which the model must take",
                'pixels = processor(images=image, do_resize=True, return_tensors="pt").pixel_values  # [B, 3, H, W] in [0, 1]',
                "outputs = model(pixel_values=pixels)",
                "outputs.summary, outputs.features  # [B, D], [B, H * W, D], patches row by row",
            )
        )


def _read_config(folder: Path) -> Any:
    """The `RadioConfig`, with the class's defaults for what the file leaves out; UserError for what our ViT cannot be."""
    need("transformers", str(folder))
    from transformers import RadioConfig

    file = folder / CONFIG_FILE
    stated = read_json(file)
    refuse_code(stated, str(file))
    try:
        config = RadioConfig.from_dict(stated)
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        raise UserError(f"{file}: not the config of a RadioModel ({first_line(error)}); copy it again") from None
    refused = {
        "hidden_act": (config.hidden_act != "gelu", f"found {config.hidden_act}, and the ViT here has gelu"),
        "layer_norm_eps": (config.layer_norm_eps != 1e-6, f"found {config.layer_norm_eps}, and the ViT here has 1e-6"),
        "num_channels": (config.num_channels != 3, f"found {config.num_channels}, and the ViT here takes RGB"),
    }
    problems = [f"{file}: {key}: {why}" for key, (wrong, why) in refused.items() if wrong]
    if problems:
        raise UserError(*problems)
    return config


def _without_start(name: str) -> str:
    return name.removeprefix("student.")


def _layout(radio: Any, layer_scale: bool, align_corners: bool) -> VitLayout:
    mlp_dim = int(radio.hidden_size * radio.mlp_ratio)
    mlp = "swiglu" if radio.use_swiglu_ffn else "gelu"
    mlp_dim = swiglu_dim(mlp_dim) if radio.use_swiglu_ffn else mlp_dim
    shape = VitShape(radio.hidden_size, radio.num_hidden_layers, radio.num_attention_heads, mlp_dim)
    return VitLayout(shape, radio.patch_size, radio.max_img_size // radio.patch_size, radio.num_registers, layer_scale, align_corners, mlp)


def _with_zero_bias(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a model whose q, k and v have no bias."""
    qkv = {name: tensor for name, tensor in weights.items() if name.endswith(".attn.qkv.weight")}
    return {**weights, **{name.replace(".weight", ".bias"): tensor.new_zeros(len(tensor)) for name, tensor in qkv.items()}}


def _published_names(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors under the published names; `save_pretrained` writes most of those itself, older and converted folders have others."""
    published: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = re.sub(r"^radio_model\.(model\.)?", "", key).replace(".grandma", ".gamma")
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)
        part = re.fullmatch(r"(blocks\.\d+)\.(attention|mlp)\.([qkv]_proj|gate_proj|up_proj)\.(weight|bias)", name)
        if part:
            parts.setdefault(f"{part[1]}.{'attn.qkv' if part[2] == 'attention' else 'mlp.w12'}.{part[4]}", {})[part[3]] = tensor
        else:
            published[name] = tensor
    for name, those in parts.items():
        _, wanted = FUSED[name.split(".", 2)[2].rpartition(".")[0]]
        if set(those) != set(wanted) or len({tensor.shape for tensor in those.values()}) > 1:
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in sorted(those.items()))
            listed = f"{', '.join(wanted[:-1])} and {wanted[-1]}"
            raise UserError(f"{where}: {name}: expected {listed} of one shape, found {shapes}; the file is damaged")
        published[name] = torch.cat([those[part] for part in wanted])
    return published


def _native_names(name: str) -> tuple[str, ...]:
    """The names in a RadioModel of a weight of our ViT: several for a fused layer; none where it has no place."""
    for theirs, ours in NAMES:
        name = name.replace(ours, theirs)
    for ours, (parent, parts) in FUSED.items():
        if f".{ours}." in name:
            return tuple(name.replace(f".{ours}.", f".{parent}.{part}.") for part in parts)
    return (name,) if re.fullmatch(NATIVE, name) else ()


def _native_weights(network: Network, native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `native` (a RadioModel's state dict on the meta device), from ours; scales, which are folded, are 1."""
    renamed: dict[str, Tensor] = {}
    student = network.student
    for name, tensor in fold_scales(student.state_dict()).items():
        names = _native_names(name)
        renamed.update({key: part.clone() for key, part in zip(names, tensor.chunk(len(names)), strict=True)})
    renamed["input_conditioner.norm_mean"], renamed["input_conditioner.norm_std"] = student.mean, student.std
    renamed["summary_idxs"] = torch.tensor(network.summary_slots)
    dtype = student.get_parameter(TABLE).dtype
    scales = {key: torch.ones(blank.shape, dtype=dtype) for key, blank in native.items() if key.endswith(".lambda1")}
    return {key: tensor.detach() for key, tensor in {**renamed, **scales}.items()}


def _square(model: LoadedModel) -> int:
    size = model.config.image_size or DEFAULT_SIZE
    return model.network.student.nearest_size(size, size)[0]


def _preferred_size(folder: Path) -> int | None:
    """px to which the image processor beside the model is set: one side of a square, or the shorter edge."""
    if not (folder / PROCESSOR_FILE).exists():
        return None
    size = read_json(folder / PROCESSOR_FILE).get("size")
    side = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else None
    return side if isinstance(side, int) and 1 <= side <= MOST_PIXELS else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with no_remote_code():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
