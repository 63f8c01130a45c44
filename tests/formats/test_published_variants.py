"""Published ViTs beyond the plain one: SwiGLU, norms in MLPs, a final norm, heads of version 1; and the table of what is read."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_formats_radio import outputs, rewritten, same, tiny
from torch import Tensor, nn

import amradio
from amradio import UserError, formats
from amradio.features import Features
from amradio.formats import ExportSettings, LoadedModel
from amradio.formats.radio import supported_heads, unsupported_reasons
from amradio.formats.radio.torchhub import TorchHub
from amradio.formats.radio.vit import vit_architecture, vit_extras
from amradio.formats.radio.writing import publish
from amradio.formats.transformers import Transformers
from amradio.heads import MlpV1HeadSettings
from amradio.network import HeadPart
from amradio.students import VitSettings

SUMMARY, SPATIAL = 64, 128
"""Channels of the embedded clip."""
IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def file_of(tmp_path: Path, found: LoadedModel, settings: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None) -> Path:
    """A published file of a model: by default of the arguments with which it is written, changed by `settings`."""
    published = publish(found)
    state = {f"base_model.{key.removeprefix('student.')}": t for key, t in published.weights.items() if key.startswith("student.")}
    conditioner = {f"input_conditioner.{key}": t for key, t in published.conditioner.items()}
    names = {"summary": "_heads", "spatial": "_feature_projections"}
    for name in found.config.heads:
        for kind, start in names.items():
            weights = published.below(f"heads.{name}.{kind}.")
            state |= {f"{start}.{name}.{key}": tensor for key, tensor in weights.items()}
    arguments = {**published.settings, "amradio": None, **(settings or {})}
    path = tmp_path / "published.pth.tar"
    content = {"arch": "a", "epoch": 1, "args": argparse.Namespace(**arguments), "state_dict": state | conditioner | (tensors or {})}
    torch.save(content, path)
    return path


def test_swiglu_of_dinov2_is_read_with_the_bias_of_its_patches(tmp_path: Path) -> None:
    shape = {"mlp": "swiglu", "mlp_dim": 40, "patch_size": 14, "max_image_size": 140, "layer_scale": 0.1}
    plain, bias = tiny(shape), torch.randn(64)
    small = {"embed_dim": 64, "depth": 2, "num_heads": 4}
    arguments = {"model": "dino_v2_g_student", "model_kwargs": small, "cpe_max_size": 140}
    tensors = {"base_model.patch_generator.embedder.bias": bias, "base_model.mask_token": torch.ones(1, 64)}
    found = formats.read(file_of(tmp_path, plain, arguments, tensors))
    assert found.config.student.mlp == "swiglu"
    assert (found.config.student.shape().mlp_dim, found.config.student.patch_size) == (40, 14)
    assert found.ignored_keys[-1] == "base_model.mask_token"
    student = plain.network.student
    handle = student.patch_generator.embedder.register_forward_hook(lambda _, __, patches: patches + bias)
    images = torch.rand(2, 3, 28, 42)
    wanted = outputs(plain, images)
    handle.remove()
    same(outputs(found, images), wanted, 1e-5)


def test_a_giant_with_swiglu_goes_out_as_dinov2s() -> None:
    config = tiny().config
    giant = VitSettings(size="giant", mlp="swiglu", layer_scale=1e-5, patch_size=14, max_image_size=1792)
    written = vit_architecture(config.model_copy(update={"student": giant}), 2)
    assert (written["model"], written["model_kwargs"], written["model_norm"]) == ("dino_v2_g_student", {}, False)
    assert {key: list(tensor.shape) for key, tensor in vit_extras(giant, torch.float32).items()} == {
        "student.patch_generator.embedder.bias": [1536]
    }
    for changes in ({"patch_size": 16}, {"layer_scale": None}, {"mlp_dim": 2048}):
        other = config.model_copy(update={"student": giant.model_copy(update=changes)})
        assert any("SwiGLU" in reason for reason in unsupported_reasons(other)), changes


@pytest.mark.parametrize("layer_scale", [None, 0.2])
@pytest.mark.parametrize("shape", [{"mlp": "gelu_norm"}, {"final_norm": True}])
def test_norms_in_mlps_and_at_the_end_survive_the_published_layout(
    shape: dict[str, Any], layer_scale: float | None, tmp_path: Path
) -> None:
    first = tiny(shape | {"layer_scale": layer_scale})
    content, second = rewritten(first, tmp_path)
    settings = vars(content["args"])
    assert settings["model_norm"] == first.config.student.final_norm
    assert settings["model"].endswith("_mlpnorm") == (first.config.student.mlp == "gelu_norm")
    assert ("base_model.norm.weight" in content["state_dict"]) == first.config.student.final_norm
    assert ("base_model.blocks.1.mlp.norm.bias" in content["state_dict"]) == (first.config.student.mlp == "gelu_norm")
    assert (second.config.student.mlp, second.config.student.final_norm) == (first.config.student.mlp, first.config.student.final_norm)
    same(outputs(first, IMAGES), outputs(second, IMAGES))
    rules = TorchHub().rules(tmp_path / "written.pth.tar", first, ExportSettings(tuple(first.config.heads)))
    assert f"MLP {first.config.student.mlp}" in rules


def test_a_huge_one_with_norms_in_its_mlps_has_the_published_name() -> None:
    huge = tiny().config.model_copy(update={"student": VitSettings(size="huge", mlp="gelu_norm")})
    written = vit_architecture(huge, 2)
    assert (written["model"], written["model_kwargs"]) == ("vit_huge_patch16_224_mlpnorm", {})


@pytest.mark.slow
@pytest.mark.parametrize("layer_scale", [None, 0.2])
def test_swiglu_of_transformers(layer_scale: float | None, tmp_path: Path) -> None:
    """Their own RadioModel computes what ours does, and is read back."""
    first = tiny({"mlp": "swiglu", "layer_scale": layer_scale}, heads={})
    target = tmp_path / "radio"
    target.mkdir()
    settings = ExportSettings(())
    assert Transformers().unsupported_reasons(first.config, first.network) == ()
    Transformers().write(target, first, settings)
    theirs = Transformers().outputs(target, IMAGES, settings)["backbone"]
    same({"backbone": theirs}, {"backbone": outputs(first, IMAGES)["backbone"]}, 1e-4)
    second = formats.read(target)
    assert (second.config.student.mlp, second.config.student.shape()) == ("swiglu", first.config.student.shape())
    same(outputs(second, IMAGES), outputs(first, IMAGES), 1e-4)
    odd = tiny({"mlp": "swiglu", "mlp_dim": 20}, heads={})
    assert any("multiple of 8" in reason for reason in Transformers().unsupported_reasons(odd.config, odd.network))
    normed = tiny({"final_norm": True}, heads={})
    assert any("norm.weight" in reason for reason in Transformers().unsupported_reasons(normed.config, normed.network))


def v1_layers(in_dim: int, hidden: int, out_dim: int, inner: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(in_dim, hidden), nn.LayerNorm(hidden), nn.ReLU()]
    for _ in range(inner):
        layers += [nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, out_dim))


def v1_names(layers: nn.Sequential, inner: int) -> dict[str, Tensor]:
    names = {0: "fc1", 1: "norm", len(layers) - 1: "fc2"} | {3 + place: f"inner.{place}" for place in range(3 * inner)}
    return {f"{names[int(key.split('.')[0])]}.{key.split('.')[1]}": tensor for key, tensor in layers.state_dict().items()}


def file_with_v1_heads(tmp_path: Path, summary: nn.Sequential, spatial: nn.Sequential, inner: int) -> Path:
    path = file_of(tmp_path, tiny(heads={}, num_summaries=1), {"mlp_version": "v1", "teachers": [{"name": "clip", "type": "openai_clip"}]})
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    content["state_dict"] |= {f"_heads.clip.{key}": tensor for key, tensor in v1_names(summary, inner).items()}
    content["state_dict"] |= {f"_feature_projections.clip.{key}": tensor for key, tensor in v1_names(spatial, inner).items()}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("inner", [0, 2])
def test_heads_of_version_1_are_read(inner: int, tmp_path: Path) -> None:
    summary, spatial = v1_layers(64, 12, 8, inner), v1_layers(64, 20, 6, inner)
    model = amradio.load(file_with_v1_heads(tmp_path, summary, spatial, inner))
    head = model.config.heads["clip"]
    assert head.summary == HeadPart(head=MlpV1HeadSettings(hidden_dim=12, num_inner=inner), dim=8)
    assert head.spatial == HeadPart(head=MlpV1HeadSettings(hidden_dim=20, num_inner=inner), dim=6)
    found = model(IMAGES, heads=["clip"])
    with torch.no_grad():
        wanted = Features(summary(found["backbone"].summary), spatial(found["backbone"].spatial))
    same({"clip": found["clip"]}, {"clip": wanted}, 1e-5)
    assert supported_heads(model.config) == (), "the official code of today does not run them"


@pytest.mark.slow
def test_heads_of_version_1_are_trained_on(tmp_path: Path) -> None:
    path = file_with_v1_heads(tmp_path, v1_layers(64, 12, SUMMARY, 1), v1_layers(64, 12, SPATIAL, 1), 1)
    recipe = amradio.Recipe.load(
        f"student={{type: model, path: {path}}}",
        "teachers={clip: {type: embedded, name: clip}}",
        "data.train={type: scenes, length: 16}",
        "data.num_workers=0",
        "stages=[{steps: 1, partitions: [{image_size: 64, batch_size: 2}]}]",
        "normalize.batches=1",
        "evaluate.every=null",
        "engine.device=cpu",
        f"out={tmp_path / 'run'}",
    )
    before, after = amradio.load(path), amradio.load(amradio.distill(recipe))
    assert after.config.heads["clip"].summary == before.config.heads["clip"].summary
    first, second = (model.network.heads.state_dict() for model in (before, after))
    assert first.keys() == second.keys()
    assert not [name for name, tensor in first.items() if torch.equal(tensor, second[name])]


# the table of the documentation


SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4}
PLAIN = {"b": "vit_base_patch16_224", "l": "vit_large_patch16_224", "h": "vit_huge_patch16_224", "g": "vit_giant_patch16_224"}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"radio_v2.5-{size}": (PLAIN[size], {}) for size in "blh"},
    "radio_v2.5-h-norm": (PLAIN["h"], {}),
    "radio_v2.5-g": ("dino_v2_g_student", {"mlp": "swiglu", "mlp_dim": 40, "patch_size": 14, "max_image_size": 140, "layer_scale": 0.1}),
    "radio_v2.1": (PLAIN["h"], {}),
    "radio_v2": (PLAIN["h"], {}),
    "radio_v1": ("vit_huge_patch14_224", {"patch_size": 14, "max_image_size": 140}),
    "c-radio_v2-vlm-h": (PLAIN["h"], {}),
    "c-radio_v2-g": (PLAIN["g"], {}),
    "c-radio_v3-b": ("vit_base_patch16_v2_224", {"layer_scale": 1e-5}),
    "c-radio_v3-l": ("vit_large_patch16_v2_224", {"layer_scale": 1e-5}),
    "c-radio_v3-h": (PLAIN["h"], {}),
    "c-radio_v3-g": (PLAIN["g"], {}),
    "c-radio_v4-so400m": ("vit_so400m_patch16_224", {}),
    "c-radio_v4-h": (PLAIN["h"], {}),
    "nvidia/C-RADIO": ("vit_huge_patch16_224_mlpnorm", {"mlp": "gelu_norm"}),
}
"""Name -> its architecture, and what a small one of it has. E-RADIO and RADIO1D have tests of their own."""


def listed() -> dict[str, str]:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \| (loads[^|]*|refused: [^|]*) \|", text, re.M)
    return {name: verdict.strip() for names, verdict in rows for name in re.findall(r"`([^`]+)`", names)}


def test_every_published_model_is_in_the_table() -> None:
    assert set(listed()) == {*PUBLISHED, "e-radio_v2", "nvidia/C-RADIOv4-1D-H"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_of_published_models_is_true(name: str, tmp_path: Path) -> None:
    architecture, shape = PUBLISHED[name]
    found = tiny(shape)
    size = found.config.student.max_image_size
    changes = SMALL | ({"patch_size": 14} if "patch14" in architecture else {})
    path = file_of(tmp_path, found, {"model": architecture, "model_kwargs": changes, "cpe_max_size": size})
    images = torch.rand(1, 3, 2 * found.config.student.patch_size, 3 * found.config.student.patch_size)
    same(outputs(formats.read(path), images), outputs(found, images))
    assert listed()[name].startswith("loads and continues")


OTHERS = {"hybrid_large": "a ConvNeXt", "vit_large_dyt_patch16_224": "tanh", "vit_large_xpos": "rotary"}


@pytest.mark.parametrize(("name", "reason"), OTHERS.items())
def test_other_published_architectures_are_refused_by_name(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"args.model '{name}' \({reason}.*is not read here"):
        formats.read(file_of(tmp_path, tiny(), {"model": name}))
