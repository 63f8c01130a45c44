"""The official RADIO files: every fixture against its expected outputs, what the loader must get right, and what it must refuse."""

import argparse
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import amradio
from amradio import UserError, formats
from amradio.features import Features
from amradio.formats import ExportSettings, LoadedModel
from amradio.formats.radio import supported_heads, unsupported_reasons
from amradio.formats.radio.hf_remote_code import RemoteCode
from amradio.formats.radio.tokens import Tokens, tokens_of
from amradio.formats.radio.torchhub import TorchHub
from amradio.formats.radio.vit import vit_architecture
from amradio.heads import AttentionHeadSettings, LinearHeadSettings, MlpHead, MlpHeadSettings
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students.eradio_settings import EradioSettings
from amradio.students.vit_settings import VitSettings

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
VITS = ["idx", "name", "layerscale", "spectral", "upsample"]
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the interoperability fixtures are not beside this checkout")


def expected_of(name: str) -> dict[str, Any]:
    return torch.load(FIXTURES / f"{name}.expected.pt", weights_only=True)


def checkpoint(name: str = "name") -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(FIXTURES / f"{name}.pth.tar", weights_only=True)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Saves a changed checkpoint."""

    def save(content: Any) -> Path:
        path = tmp_path / "changed.pth.tar"
        torch.save(content, path)
        return path

    return save


def close(found: Features, expected: dict[str, Tensor], atol: float = 1e-4) -> None:
    torch.testing.assert_close(found.summary, expected["summary"], rtol=0, atol=atol)
    torch.testing.assert_close(found.spatial.flatten(1, 2), expected["features"], rtol=0, atol=atol)


def outputs(found: LoadedModel, images: Tensor) -> dict[str, Features]:
    with torch.no_grad():
        return found.network.eval()(images, None, list(found.config.heads))


def same(first: dict[str, Features], second: dict[str, Features], atol: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name, features in first.items():
        for one, other in zip(features, second[name], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=0, atol=atol)


def tiny(student: dict[str, Any] | None = None, **changes: Any) -> LoadedModel:
    """A random ViT with an MLP head of both kinds, one that shares no summary, and one of the map alone."""
    torch.manual_seed(0)
    part = {dim: HeadPart(head=MlpHeadSettings(hidden_dim=24, num_inner=1), dim=dim) for dim in (8, 9, 10, 11, 12)}
    heads = {
        "clip": HeadConfig(summary=part[8], spatial=part[9], slot=0),
        "dino": HeadConfig(summary=part[10], spatial=part[11], slot=1),
        "sam": HeadConfig(spatial=part[12]),
    }
    shape = {"dim": 64, "depth": 2, "num_heads": 4, "num_registers": 3, "max_image_size": 128} | (student or {})
    config = NetworkConfig(student=VitSettings(**shape), **({"num_summaries": 2, "heads": heads} | changes))
    network = config.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return LoadedModel(config, network.eval())


def rewritten(found: LoadedModel, tmp_path: Path) -> tuple[dict[str, Any], LoadedModel]:
    """What the torch-hub file of a model holds, and the model that is read back from it."""
    path = tmp_path / "written.pth.tar"
    TorchHub().write(path, found, ExportSettings(tuple(found.config.heads)))
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    return content, formats.read(path)


# every official file says what it should


@needs_fixtures
@pytest.mark.parametrize("name", VITS)
def test_official_files_give_the_expected_outputs(name: str):
    expected = expected_of(name)
    model = amradio.load(FIXTURES / f"{name}.pth.tar")
    for images, backbone in (("x", "backbone_NLC"), ("x2", "backbone2_NLC"), ("x3", "backbone3_NLC")):
        close(model(expected[images]), expected[backbone])
    found = model(expected["x"], heads=model.heads)
    assert set(found) == set(expected["all_NLC"]) == {"backbone", "clip", "dino_v2", "sam"}
    for head, features in expected["all_NLC"].items():
        close(found[head], features)
        channels_first = expected["all_NCHW"][head]["features"]
        torch.testing.assert_close(found[head].spatial.permute(0, 3, 1, 2), channels_first, rtol=0, atol=1e-4)
    between = model.intermediates(expected["x"], expected["inter_indices"])
    for features, theirs in zip(between, expected["inter_sparse_nlc"], strict=True):
        close(model.network.choose(features), theirs)


@pytest.mark.slow
@needs_fixtures
@pytest.mark.parametrize("name", VITS)
def test_what_official_files_lack_is_derived(name: str):
    props = expected_of(name)["props"]
    model = amradio.load(FIXTURES / f"{name}.pth.tar")
    assert model.patch_size == props["patch_size"]
    assert model.summary_dim == props["summary_dim"]
    assert model.spatial_dim == props["embed_dim"]
    assert list(model.nearest_size(100, 53)) == props["nearest_100_53"]
    assert model.config.image_size == 64
    assert model.config.num_summaries == props["num_cls_tokens"]
    assert model.config.num_summaries + model.config.student.num_registers == props["num_summary_tokens"]
    assert model.config.summary_slots == props["summary_idxs"]
    assert {head: config.slot for head, config in model.config.heads.items()} == props["head_idx"]
    assert model.config.origin == f"{name}.pth.tar (torchhub)"
    dead = ("base_model.reg_token",) if name == "layerscale" else ()
    assert formats.read(FIXTURES / f"{name}.pth.tar").ignored_keys == dead


@pytest.mark.slow
@needs_fixtures
@pytest.mark.parametrize("name", VITS)
def test_written_again_it_has_the_keys_of_a_canonical_file_and_the_same_outputs(name: str, tmp_path: Path):
    found = formats.read(FIXTURES / f"{name}.pth.tar")
    content, again = rewritten(found, tmp_path)
    canonical = set(checkpoint("layerscale" if name == "layerscale" else "name")["state_dict"]) - {"base_model.reg_token"}
    assert set(content["state_dict"]) == canonical
    images = expected_of(name)["x"]
    same(outputs(found, images), outputs(again, images))
    assert again.config == found.config


@pytest.mark.slow
@needs_fixtures
def test_arguments_of_a_written_file_are_those_of_an_official_one(tmp_path: Path):
    official = checkpoint()
    content, _ = rewritten(formats.read(FIXTURES / "name.pth.tar"), tmp_path)
    assert content["arch"] == official["arch"] == content["args"].model
    theirs, ours = vars(official["args"]), vars(content["args"])
    assert set(ours) - set(theirs) == {"amradio"}
    assert {key for key in theirs if theirs[key] != ours[key]} == {"teachers"}
    for entry, teacher in zip(ours["teachers"], theirs["teachers"], strict=True):
        assert {key: value for key, value in entry.items() if key != "amradio"} == teacher


# what the official loader does in silence, or not at all


@needs_fixtures
def test_averaged_weights_are_preferred_and_module_prefixes_stripped(saved):
    content = checkpoint()
    average = {f"module.{key}": tensor for key, tensor in content["state_dict"].items()}
    content["state_dict"] = {key: torch.zeros_like(tensor) for key, tensor in content["state_dict"].items()}
    content["args"].spectral_reparam, content["args"].damp = True, 0.1
    found = formats.read(saved(content | {"state_dict_ema": average}))
    expected = expected_of("name")
    close(outputs(found, expected["x"])["clip"], expected["all_NLC"]["clip"])


@needs_fixtures
@pytest.mark.parametrize("version", [1, 2])
def test_spectral_reparametrisation_is_realised(version: int, saved):
    """Made from plain weights: with the singular vectors and the largest singular value as its scale, W' = W."""
    content = checkpoint()
    state = dict(content["state_dict"])
    for key in [key for key in state if key.endswith(("attn.qkv.weight", "mlp.fc1.weight"))]:
        weight = state.pop(key)
        start = key.replace(".weight", ".parametrizations.weight.")
        state[f"{start}original"] = weight
        fused = "qkv" in key
        for number, chunk in enumerate(weight.chunk(3) if fused else [weight]):
            u, s, v = torch.linalg.svd(chunk.double())
            scale = s[0] if version == 1 else (s[0] - 0.05).expm1().log()  # the reverse of softplus
            part = f"{start}0.parts.{number}." if fused else f"{start}0."
            state |= {f"{part}scale": scale.float().view(1, 1), f"{part}_u": u[:, 0].float(), f"{part}_v": v[0].float()}
            if version == 2:
                state[f"{part}_sn_version"] = torch.tensor(2)
    damped = "base_model.blocks.0.attn.proj"  # noise in training and nothing else
    state[f"{damped}.parametrizations.weight.original"] = state.pop(f"{damped}.weight")
    found = formats.read(saved(content | {"state_dict": state}))
    expected = expected_of("name")
    close(outputs(found, expected["x"])["backbone"], expected["backbone_NLC"])
    assert not [key for key in found.network.state_dict() if "parametrizations" in key]
    del state["base_model.blocks.1.attn.qkv.parametrizations.weight.0.parts.1._u"]
    with pytest.raises(UserError, match=r"parts\.1\._u is missing"):
        formats.read(saved(content | {"state_dict": state}))


@needs_fixtures
def test_layer_scale_under_its_other_name(saved):
    content = checkpoint("layerscale")
    content["state_dict"] = {key.replace(".gamma", ".grandma"): tensor for key, tensor in content["state_dict"].items()}
    expected = expected_of("layerscale")
    close(outputs(formats.read(saved(content)), expected["x"])["sam"], expected["all_NLC"]["sam"])


@pytest.mark.slow
@needs_fixtures
def test_a_feature_normaliser_is_applied_before_the_heads(saved, tmp_path: Path):
    content, expected = checkpoint(), expected_of("name")
    mean, tx = torch.randn(64), torch.randn(64, 64) / 8
    content["state_dict"] |= {"_feature_normalizer.mean": mean, "_feature_normalizer.tx": tx}
    found = formats.read(saved(content))
    plain = formats.read(FIXTURES / "name.pth.tar")
    turned = (expected["backbone_NLC"]["features"].unflatten(1, (4, 6)) - mean) @ tx.T
    answer = outputs(found, expected["x"])
    torch.testing.assert_close(answer["backbone"].spatial, turned, rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(answer["dino_v2"].spatial, plain.network.heads["dino_v2"].spatial(turned), rtol=0, atol=1e-3)
    written, again = rewritten(found, tmp_path)
    assert {"_feature_normalizer.mean", "_feature_normalizer.tx"} <= set(written["state_dict"])
    same(answer, outputs(again, expected["x"]))


@pytest.mark.slow
@needs_fixtures
def test_half_weights_stay_half(saved):
    content, expected = checkpoint(), expected_of("name")
    content["state_dict"] = {key: tensor.bfloat16() for key, tensor in content["state_dict"].items()}
    found = formats.read(saved(content))
    assert {tensor.dtype for tensor in found.network.state_dict().values()} == {torch.bfloat16}
    rounded = formats.read(FIXTURES / "name.pth.tar")
    rounded.network.load_state_dict({key: tensor.bfloat16().float() for key, tensor in rounded.network.state_dict().items()})
    in_half = outputs(found, expected["x"])["backbone"].spatial
    found.network.float()
    same(outputs(found, expected["x"]), outputs(rounded, expected["x"]))
    assert (in_half.float() - outputs(rounded, expected["x"])["backbone"].spatial).abs().max() < 0.2


@needs_fixtures
def test_other_means_and_deviations_are_folded_exactly(saved):
    content, expected = checkpoint(), expected_of("name")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    own = content["state_dict"]
    seen = (expected["x"] - own["input_conditioner.norm_mean"]) / own["input_conditioner.norm_std"]
    content["state_dict"] |= {"input_conditioner.norm_mean": mean, "input_conditioner.norm_std": std}
    close(outputs(formats.read(saved(content)), seen * std + mean)["backbone"], expected["backbone_NLC"])


# which token belongs to whom


def teachers(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"teachers": list(entries), "cls_token_per_teacher": True}


CLIP, DINO, SAM = {"name": "clip"}, {"name": "dino"}, {"name": "sam", "use_summary": False}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (teachers(CLIP, DINO, SAM), Tokens(3, {"clip": 0, "dino": 1, "sam": 2}, (0, 1))),
        (teachers(SAM, CLIP, DINO), Tokens(3, {"sam": 0, "clip": 1, "dino": 2}, (1, 2))),
        (teachers(CLIP, DINO, SAM, CLIP | {"input_size": 432}), Tokens(3, {"clip": 0, "dino": 1, "sam": 2}, (0, 1))),
        (teachers(CLIP | {"token_slot": 1}, DINO | {"token_slot": 0}), Tokens(2, {"clip": 1, "dino": 0}, (0, 1))),
        # the repeated CLIP pushes DINO to place 2 of 2 tokens, where the official loader reads beyond the end
        (teachers(CLIP, CLIP | {"input_size": 432}, DINO | {"token_slot": 1}), Tokens(2, {"clip": 0, "dino": 1}, (0, 1))),
        (teachers(CLIP, DINO, SAM) | {"cls_token_per_teacher": False}, Tokens(1, {"clip": 0, "dino": 0, "sam": 0}, (0,))),
        ({}, Tokens(1, {}, (0,))),
    ],
)
def test_tokens(settings: dict[str, Any], expected: Tokens):
    assert tokens_of(settings, "file") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (teachers(SAM), "no teacher has use_summary"),
        (teachers({"type": "clip"}), "not a list of teachers with a name each"),
        ({"teachers": "clip"}, "not a list of teachers"),
        (teachers({"name": "clip.v1"}), "'clip.v1' has a dot"),
    ],
)
def test_lists_of_teachers_that_make_no_sense(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        tokens_of(settings, "file")


@needs_fixtures
def test_one_token_for_all_heads(saved):
    content, expected = checkpoint(), expected_of("name")
    content["args"].cls_token_per_teacher = False
    found = formats.read(saved(content))
    assert (found.config.num_summaries, found.config.student.num_registers) == (1, 7)
    answer = outputs(found, expected["x"])
    first = expected["backbone_NLC"]["summary"][:, :64]
    torch.testing.assert_close(answer["backbone"].summary, first, rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(answer["sam"].summary, found.network.heads["sam"].summary(first), rtol=0, atol=1e-4)


@needs_fixtures
def test_heads_of_a_second_entry_of_a_teacher_are_dead(saved):
    content = checkpoint("idx")
    content["args"].teachers.append(dict(content["args"].teachers[0], input_size=432))
    content["state_dict"]["_heads.3.fc1.weight"] = torch.zeros(48, 64)
    found = formats.read(saved(content))
    assert found.ignored_keys == ("_heads.3.fc1.weight",)
    assert found.config.num_summaries == 3


# what we write, the official loader can rebuild


def official_registers(settings: argparse.Namespace) -> tuple[int, int]:
    """Class tokens and registers by the published rule."""
    names = len({teacher["name"] for teacher in settings.teachers}) if settings.cls_token_per_teacher else 1
    if settings.cpe_num_registers:
        return names, settings.cpe_num_registers
    multiple = settings.register_multiple
    return names, multiple - names % multiple if multiple else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny(),
        lambda: tiny({"num_registers": 1}),
        lambda: tiny({"layer_scale": 0.1, "patch_size": 8, "mlp_dim": 100}),
        lambda: tiny(summary_slots=[1]),
        lambda: tiny(num_summaries=4, summary_slots=[0, 3]),
        lambda: tiny(num_summaries=1, heads={name: head.model_copy(update={"slot": 0}) for name, head in tiny().config.heads.items()}),
        lambda: tiny(heads={}),
    ],
)
def test_any_vit_survives_both_official_layouts(model: Callable[[], LoadedModel], tmp_path: Path):
    found = model()
    assert unsupported_reasons(found.config) == ()
    content, again = rewritten(found, tmp_path)
    assert sum(official_registers(content["args"])) == found.network.student.num_prefix
    images = torch.rand(1, 3, 64, 96)
    same(outputs(found, images), outputs(again, images))
    folder = tmp_path / "hf"
    folder.mkdir()
    RemoteCode().write(folder, found, ExportSettings(tuple(found.config.heads)))
    same(outputs(found, images), outputs(formats.read(folder), images))
    # the remote-code class counts use_summary, and its buffer must be as long as it counts
    stated = load_file(folder / "model.safetensors")["radio_model.summary_idxs"]
    assert len(stated) == sum(teacher["use_summary"] for teacher in json.loads((folder / "config.json").read_text())["args"]["teachers"])


def test_architectures_are_named_as_the_official_code_knows_them():
    def named(**student: Any) -> tuple[str, dict[str, Any]]:
        found = vit_architecture(NetworkConfig(student=VitSettings(**student), num_summaries=3), 3)
        return found["model"], found["model_kwargs"]

    assert named(size="base") == ("vit_base_patch16_224", {})
    assert named(size="large", layer_scale=1e-5) == ("vit_large_patch16_v2_224", {})
    assert named(size="huge", layer_scale=1e-5) == ("vit_huge_patch16_224", {"init_values": 1e-5})
    assert named(size="so400m", patch_size=14) == ("vit_so400m_patch16_224", {"patch_size": 14})
    model, changes = named(size="tiny", dim=96, num_heads=3, mlp_dim=100)
    assert model == "vit_base_patch16_224"
    assert int(96 * changes.pop("mlp_ratio")) == 100
    assert changes == {"embed_dim": 96, "depth": 12, "num_heads": 3}


def test_a_head_of_one_kind_gets_a_silent_one_of_the_other(tmp_path: Path):
    content, again = rewritten(tiny(), tmp_path)
    start = "_heads.sam."
    weights = {key.removeprefix(start): tensor for key, tensor in content["state_dict"].items() if key.startswith(start)}
    silent = MlpHead(64, 1, 12)
    silent.load_state_dict(weights)
    assert (silent(torch.randn(3, 64)) == 0).all()
    assert again.config.heads["sam"].summary is None
    assert all(key.startswith(start) for key in again.ignored_keys)
    assert len(again.ignored_keys) == 6


def test_attention_heads_have_a_place_in_torch_hub_alone(tmp_path: Path):
    attention = HeadPart(head=AttentionHeadSettings(hidden_dim=24), dim=7)
    found = tiny(heads={"sam": HeadConfig(spatial=attention), "dino": HeadConfig(spatial=HeadPart(head=LinearHeadSettings(), dim=7))})
    upsampling = HeadConfig(spatial=HeadPart(head=AttentionHeadSettings(upsample_factor=2), dim=7))
    assert supported_heads(found.config) == ("sam",)
    assert RemoteCode().supported_heads(found.config) == ()
    assert supported_heads(found.config.model_copy(update={"heads": {"sam": upsampling}})) == ()
    found = tiny(heads={"sam": HeadConfig(spatial=attention)})
    content, again = rewritten(found, tmp_path)
    assert content["args"].teachers[-1]["spatial_mlp_version"] == "attn"
    assert "_feature_projections.sam.blocks.1.attn.qkv.weight" in content["state_dict"]
    images = torch.rand(1, 3, 64, 96)
    same(outputs(found, images), outputs(again, images))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: tiny({"align_corners": True}), "align_corners true"),
        (lambda: tiny({"num_registers": 0}), "a summary token for each of 3 heads, there are 2"),
        (lambda: tiny(summary_slots=[1, 0]), r"summary_slots \[1, 0\] do not ascend"),
    ],
)
def test_what_the_official_code_cannot_rebuild_is_said(model: Callable[[], LoadedModel], message: str):
    (reason,) = unsupported_reasons(model().config)
    assert re.search(message, reason)


# the remote-code layout


@needs_fixtures
def test_remote_code_folder_gives_the_expected_outputs():
    expected = expected_of("hf_name")
    model = amradio.load(FIXTURES / "hf_name")
    close(model(expected["x"]), expected["backbone_NLC"])
    close(model(expected["x2"]), expected["backbone2_NLC"])
    for head, features in model(expected["x"], heads=model.heads).items():
        close(features, expected["all_NLC"][head])
    assert model.config.image_size == 768
    assert model.config.summary_slots == expected["props"]["summary_idxs"]


@needs_fixtures
def test_remote_code_folder_written_again_is_the_official_one(tmp_path: Path):
    found = formats.read(FIXTURES / "hf_name")
    RemoteCode().write(tmp_path, found, ExportSettings(tuple(found.config.heads)))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, FIXTURES / "hf_name"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    own, official = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, FIXTURES / "hf_name"))
    assert {key for key in official if own.get(key) != official[key]} == {"args", "max_resolution", "transformers_version"}
    assert {key for key in official["args"] if own["args"][key] != official["args"][key]} == {"teachers"}
    assert own["max_resolution"] == own["args"]["cpe_max_size"]  # the file goes by a released name, with that one's 2048 px


@needs_fixtures
def test_shards_are_read(tmp_path: Path):
    shutil.copytree(FIXTURES / "hf_name", tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    weights = load_file(FIXTURES / "hf_name" / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    halves = {f"model-0000{n + 1}-of-00002.safetensors": sorted(weights)[n::2] for n in range(2)}
    for file, keys in halves.items():
        save_file({key: weights[key] for key in keys}, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = expected_of("hf_name")
    close(amradio.load(tmp_path)(expected["x"]), expected["backbone_NLC"])


# E-RADIO


@pytest.mark.slow
@needs_fixtures
@pytest.mark.parametrize("name", ["large", "tiny8x"])
@pytest.mark.parametrize("bare", [True, False])
def test_eradio_files(name: str, bare: bool, saved, tmp_path: Path):
    state, expected = (torch.load(FIXTURES / f"eradio_{name}.{part}.pt", weights_only=True) for part in ("state", "expected"))
    path = FIXTURES / f"eradio_{name}.state.pt"
    dim = 48 if name == "large" else 24
    head = MlpHead(dim, 16, 6)
    if not bare:
        official = checkpoint()
        weights = {f"base_model.{key}": tensor for key, tensor in state.items()}
        weights |= {key: tensor for key, tensor in official["state_dict"].items() if key.startswith("input_conditioner")}
        weights |= {f"{kind}.0.{key}": tensor for kind in ("_heads", "_feature_projections") for key, tensor in head.state_dict().items()}
        settings = argparse.Namespace(model="eradio", teachers=[{"name": "clip"}], cls_token_per_teacher=False, cpe_max_size=None)
        path = saved({"arch": "eradio", "epoch": 0, "args": settings, "state_dict": weights})
    found = formats.read(path)
    found.network.student.external_preprocessing()  # the fixtures are of images in [0, 1]
    for case in expected["cases"].values():
        answer = outputs(found, case["image_u8"].float() / 255)
        expected_map = case["features"].permute(0, 2, 3, 1)
        torch.testing.assert_close(answer["backbone"].spatial, expected_map, rtol=0, atol=1e-4)
        torch.testing.assert_close(answer["backbone"].summary, case["summary"], rtol=0, atol=1e-4)
        if not bare:
            torch.testing.assert_close(answer["clip"].summary, head(case["summary"]).detach(), rtol=0, atol=1e-4)
    assert found.config.image_size == 512
    start = "" if bare else "base_model."
    derived = ("relative_bias", "coords_table", "position_index")
    assert all(key.startswith(f"{start}norm.") or (key.startswith(start) and key.endswith(derived)) for key in found.ignored_keys)
    assert "its shape is none of the published E-RADIOs" in unsupported_reasons(found.config)[0]


@pytest.mark.slow
def test_a_published_eradio_goes_out_with_every_key_and_its_windows(tmp_path: Path):
    config = NetworkConfig(student=EradioSettings(size="xxxtiny_8x_ws16"), num_summaries=1)
    assert unsupported_reasons(config) == ()
    found = LoadedModel(config, config.build().eval())
    content, again = rewritten(found, tmp_path)
    assert content["args"].model == "eradio_xxxtiny_8x_ws16"
    assert content["args"].cls_token_per_teacher is False
    assert content["args"].model_kwargs == {"return_full_features": True}
    biases = [key for key in content["state_dict"] if key.endswith("relative_bias")]
    assert len(biases) == 4 * 2 + 5
    assert not [key for key in content["state_dict"] if key.startswith("base_model.norm.")]
    assert again.config == config.model_copy(update={"image_size": 512, "origin": "written.pth.tar (torchhub)"})
    images = torch.rand(1, 3, 64, 96)
    same(outputs(found, images), outputs(again, images))
    assert "set_optimal_window_size" in TorchHub().snippet(tmp_path / "written.pth.tar", ExportSettings(()))


# refused: one clear message, nothing executed


class Creates:
    """A pickle of it makes a folder when it is read freely."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_malicious_file_runs_nothing(saved, tmp_path: Path):
    victim = tmp_path / "victim"
    path = saved({"arch": "x", "args": argparse.Namespace(model=Creates(victim)), "state_dict": {"base_model.x": torch.ones(1)}})
    with pytest.raises(UserError, match=r"it asks for 'posix\.mkdir' on being read.*nothing was run"):
        amradio.load(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()  # the file was what it claims to be


@needs_fixtures
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_cut_file(share: float, tmp_path: Path):
    whole = (FIXTURES / "name.pth.tar").read_bytes()
    path = tmp_path / "cut.pth.tar"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="not a whole checkpoint of torch"):
        amradio.load(path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, {"state_dict": {"a": torch.ones(1)}}, {"args": argparse.Namespace(), "state_dict": {}}]
)
def test_a_file_of_something_else(content: Any, saved):
    with pytest.raises(UserError, match="no RADIO checkpoint: `args` and `state_dict` are missing"):
        amradio.load(saved(content))


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: [content["state_dict"].pop(key) for key in keys]


def arguments(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: vars(content["args"]).update(changes)


def tensors(**changes: Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["state_dict"].update({key.replace("__", "."): tensor for key, tensor in changes.items()})


@needs_fixtures
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("base_model.blocks.2.norm1.bias"), r"missing: base_model\.blocks\.2\.norm1\.bias$"),
        (without("_heads.dino_v2.blocks.1.2.weight"), r"missing: _heads\.dino_v2\.blocks\.1\.2\.weight$"),
        (without("base_model.patch_generator.pos_embed"), "RADIO's plain ViTs with a cropped position table are read"),
        (without("input_conditioner.norm_std"), r"input_conditioner\.norm_std is missing"),
        (without("_heads.sam.final.2.weight"), r"_heads\.sam\.final\.2\.weight is missing"),
        (tensors(base_model__blocks__0__mlp__norm__weight=torch.ones(256)), r"not known: base_model\.blocks\.0\.mlp\.norm\.weight$"),
        (tensors(_heads__florence__fc1__weight=torch.ones(2, 2)), r"not known: _heads\.florence\.fc1\.weight$"),
        (
            tensors(base_model__blocks__1__attn__proj__bias=torch.ones(3)),
            r"wrong shape: base_model\.blocks\.1\.attn\.proj\.bias is \[3\], not \[64\]",
        ),
        (
            tensors(_heads__clip__fc2__weight=torch.ones(2, 2)),
            r"missing: _heads\.clip\.norm\.weight, .*_heads\.clip\.fc2\.bias",
        ),
        (tensors(_intermediate_feature_normalizer__alphas=torch.ones(4)), r"missing: _intermediate_feature_normalizer\.means, _inter"),
        (tensors(input_conditioner__norm_mean=torch.ones(1)), "1 means and 3 deviations"),
        (arguments(model="vit_large_patch16_224", model_kwargs={}), "embed_dim 64, args.model and model_kwargs say 1024"),
        (arguments(model="dino_v2_g_student"), r"missing: base_model\.blocks\.0\.mlp\.w12\.weight"),
        (
            arguments(model_kwargs={"embed_dim": 64, "depth": 4, "num_heads": 4, "scaled_ln": True}),
            r"model_kwargs\.scaled_ln: not known here",
        ),
        (arguments(model_kwargs={"embed_dim": 64, "depth": 4, "num_heads": 7}), "num_heads 7 does not divide dim 64"),
        (arguments(model_norm=True), r"missing: base_model\.norm\.weight, base_model\.norm\.bias$"),
        (arguments(cpe_max_size="large"), r"args\.cpe_max_size: 'large' is no value"),
        (arguments(model_kwargs=[1]), r"args\.model_kwargs: \[1\] is no value"),
        (arguments(model_kwargs={"num_heads": "4"}), r"args\.model_kwargs\.num_heads: '4' is no value"),
        (arguments(teachers=[{"name": "clip", "token_slot": "first"}]), r"args\.teachers\.0\.token_slot: 'first' is no value"),
        (arguments(input_size=["wide"]), r"args\.input_size: \['wide'\] is no value"),
        (tensors(base_model__patch_generator__cls_token__token=torch.ones(3)), r"cls_token\.token has 1 axes, not 2"),
        (
            arguments(teachers=[{"name": f"t{n}"} for n in range(9)]),
            "want 9 summary tokens, base_model.patch_generator.cls_token.token has 8",
        ),
    ],
)
def test_changed_files_are_refused(change: Callable[[dict[str, Any]], None], message: str, saved):
    content = checkpoint()
    change(content)
    with pytest.raises(UserError, match=message):
        amradio.load(saved(content))


@needs_fixtures
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder, weights: weights.update({"radio_model.model.blocks.0.norm1.bias": torch.ones(3)}),
            r"wrong shape: radio_model\.model\.blocks\.0",
        ),
        (
            lambda folder, weights: weights.pop("radio_model.adaptors.clip.feat_mlp.fc1.bias"),
            r"missing: radio_model\.adaptors\.clip\.feat_mlp\.fc1\.bias",
        ),
        (lambda folder, weights: weights.update({"radio_model.extra": torch.ones(3)}), r"not known: radio_model\.extra"),
    ],
)
def test_changed_folders_are_refused(change: Callable[..., Any], message: str, tmp_path: Path):
    shutil.copytree(FIXTURES / "hf_name", tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    weights = load_file(tmp_path / "model.safetensors")
    change(tmp_path, weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        amradio.load(tmp_path)


@needs_fixtures
def test_a_folder_with_another_models_config_is_refused(tmp_path: Path):
    shutil.copyfile(FIXTURES / "hf_name" / "model.safetensors", tmp_path / "model.safetensors")
    config = json.loads((FIXTURES / "hf_name" / "config.json").read_text())
    config["args"] |= {"model": "vit_huge_patch16_224", "model_kwargs": {"depth": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"the weights have embed_dim 64, args\.model and model_kwargs say 1280"):
        amradio.load(tmp_path)
    own = tiny().config.model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match=r"missing: student\.patch_generator\.pos_embed"):
        amradio.load(tmp_path)


def between(shares: bool, depth: int = 2, dim: int = 64) -> dict[str, Tensor]:
    """A normaliser of the maps after each block, as a published file has it."""
    drawn = torch.Generator().manual_seed(5)
    rotation = torch.randn(*(() if shares else (depth,)), dim, dim, generator=drawn)
    return {"alphas": torch.rand(depth, generator=drawn) + 0.5, "rotation": rotation, "means": torch.randn(depth, dim, generator=drawn)}


@pytest.mark.parametrize("layout", [TorchHub, RemoteCode])
@pytest.mark.parametrize("shares", [True, False])
def test_maps_after_blocks_are_normalised_as_published(layout, shares: bool, tmp_path: Path):
    """y = alpha R (x - mean), against the formula in float64; dense: y of the end's rotation averaged, times the mean alpha."""
    plain, images = tiny({"depth": 3}), torch.rand(2, 3, 32, 48)
    normalizer = between(shares, depth=3)
    changed = plain.config.model_copy(update={"normalizes_blocks": "shared" if shares else "each"})
    network = changed.build()
    network.load_state_dict(plain.network.state_dict() | {f"block_normalizer.{key}": value for key, value in normalizer.items()})
    path = tmp_path / "model"
    path.mkdir()
    target = path / "model.pth.tar" if layout is TorchHub else path
    layout().write(target, LoadedModel(changed, network.eval()), ExportSettings(tuple(changed.heads)))
    if layout is RemoteCode:
        told = json.loads((path / "config.json").read_text())["inter_feature_normalizer_config"]
        assert told == {"num_intermediates": 3, "embed_dim": 64, "rot_per_layer": not shares}
        names = set(load_file(path / "model.safetensors"))
        assert {f"radio_model.inter_feature_normalizer.{key}" for key in normalizer} <= names
    model = amradio.load(target)
    assert model.config.normalizes_blocks == changed.normalizes_blocks
    raw = [features.spatial.double() for features in plain.network.student.intermediates(images)]
    alphas, rotation, means = (normalizer[key].double() for key in ("alphas", "rotation", "means"))

    def y(block: int, end: int) -> Tensor:
        return (raw[block] - means[block]) @ (rotation if shares else rotation[end]).T

    sparse = model.intermediates(images, [2, 0])
    for features, block in zip(sparse, [2, 0], strict=True):
        torch.testing.assert_close(features.spatial.double(), alphas[block] * y(block, block), rtol=0, atol=1e-4)
    last, first = model.intermediates(images, [2, 0], aggregation="dense")
    torch.testing.assert_close(first.spatial.double(), alphas[0] * y(0, 0), rtol=0, atol=1e-4)
    torch.testing.assert_close(last.spatial.double(), alphas[1:].mean() * (y(1, 2) + y(2, 2)) / 2, rtol=0, atol=1e-4)
    (pair,) = model.intermediates(images, [2], prefix=True)
    assert torch.equal(pair[0].spatial, sparse[0].spatial)
    assert torch.equal(pair[0].summary, model(images).summary), "summaries are left alone, and so is the last map"
    same(outputs(LoadedModel(model.config, model.network), images), outputs(plain, images), 1e-5)


def test_softplus_is_reversed_as_the_spectral_test_does():
    scale = torch.tensor([0.3, 2.0])
    torch.testing.assert_close(F.softplus((scale - 0.05).expm1().log()) + 0.05, scale)
