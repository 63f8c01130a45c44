"""The formats of transformers, timm and ONNX: each file is loaded by its library alone, and by us again."""

import importlib.util
import json
import re
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import amradio
from amradio.errors import UserError
from amradio.features import Features
from amradio.formats import FORMATS, ExportSettings, Format, LoadedModel, read
from amradio.formats.model_folder import write_folder
from amradio.formats.onnx import named
from amradio.formats.timm.radio_vit import ENTRIES, call_for
from amradio.network import NetworkConfig, cast_weights
from amradio.students.vit_settings import SIZES, VitSettings
from tiny import randomise, tiny_radio

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
TINY = {"type": "vit", "dim": 48, "depth": 2, "num_heads": 4, "patch_size": 16, "num_registers": 5, "max_image_size": 256}
SIZES_PX = [(64, 96), (160, 32), (256, 256), (32, 288)]
FORM: dict[str, Format] = {form.name: form for form in FORMATS}
LIBRARIES = [FORM["transformers"], FORM["timm"]]
VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "layer_scale": {"layer_scale": 1e-5},
    "patch 14, no registers, uneven MLP": {"patch_size": 14, "max_image_size": 224, "num_registers": 0, "mlp_dim": 100},
}


def make(heads: bool = False, **changes: object) -> LoadedModel:
    """A tiny ViT all of whose weights matter, of 3 summaries of which two make the backbone's; heads of two teachers."""
    torch.manual_seed(0)
    parts = {name: {"head": "mlp", "dim": dim} for name, dim in (("summary", 20), ("spatial", 24))}
    teachers = {"clip": {**parts, "slot": 0}, "sam": {"spatial": {"head": "linear", "dim": 12}, "slot": 2}}
    config = NetworkConfig.model_validate(
        {"student": {**TINY, **changes}, "num_summaries": 3, "summary_slots": [0, 2], "heads": teachers if heads else {}}
    )
    network = config.build().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + float(name.endswith(("weight", "gamma"))))
    return LoadedModel(config, network)


def made(student: dict[str, object], image_size: int | None = None, num_summaries: int = 1) -> LoadedModel:
    """A student of any kind with a head."""
    torch.manual_seed(0)
    head = {"summary": {"head": "linear", "dim": 5}, "spatial": {"head": "mlp", "dim": 6}}
    config = NetworkConfig.model_validate(
        {"student": student, "num_summaries": num_summaries, "image_size": image_size, "heads": {"clip": head}}
    )
    network = config.build().eval()
    with torch.no_grad():
        for name, statistic in network.named_buffers():
            if name.endswith("running_mean"):
                statistic.copy_(0.1 * torch.randn_like(statistic))
    return LoadedModel(config, network)


def written(form: Format, model: LoadedModel, folder: Path, **settings: object) -> Path:
    """The model in a format."""
    target = folder / f"model{form.suffix}"
    if not form.suffix:
        target.mkdir()
    chosen = ExportSettings(tuple(model.config.heads), **settings)
    cast_weights(model.network, getattr(torch, chosen.dtype))
    assert form.unsupported_reasons(model.config, model.network) == ()
    form.write(target, model, chosen)
    model.network.float()
    return target


def images_of(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(size[0] + batch))


def said(model: LoadedModel, images: Tensor) -> dict[str, Features]:
    with torch.inference_mode():
        return model.network(images, None, model.config.heads)


def apart(program: str, folder: Path) -> Callable[[str], np.ndarray]:
    """Runs a program in a process in which this package cannot be imported; answers with the reader of `NAME.npy` in `folder`."""
    paths = [path for path in (*site.getsitepackages(), site.getusersitepackages()) if Path(path).is_dir()]
    lines = (
        "import sys, importlib.util",
        f"sys.path.extend({paths!r})",
        "assert importlib.util.find_spec('amradio') is None",
        program,
    )
    command = [sys.executable, "-I", "-S", "-c", "\n".join(lines)]
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"OMP_NUM_THREADS": "1", "HOME": str(folder)}
    )
    assert ended.returncode == 0, ended.stderr
    return lambda name: np.load(folder / f"{name}.npy")


@pytest.mark.slow
def test_transformers_alone_says_the_same_of_a_picture(tmp_path: Path) -> None:
    """The lines that the user is given, without the resize that they mention, and with it."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    models = {variant: make(**VARIANTS[variant]) for variant in ("plain", "layer_scale")}
    program = ['import numpy, torch; from PIL import Image; image = Image.open("picture.png"); torch.set_grad_enabled(False)']
    for variant, model in models.items():
        (tmp_path / variant).mkdir()
        snippet = FORM["transformers"].snippet(written(FORM["transformers"], model, tmp_path / variant), ExportSettings(()))
        program += [snippet, f"numpy.save('resized_{variant}', outputs.features)", snippet.replace("do_resize=True, ", "")]
        program += [f"numpy.save('summary_{variant}', outputs.summary), numpy.save('spatial_{variant}', outputs.features)"]
    found = apart("\n".join(program), tmp_path)
    for variant, model in models.items():
        expected = said(model, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)["backbone"]
        assert np.abs(found(f"summary_{variant}") - expected.summary.numpy()).max() < 1e-5
        assert np.abs(found(f"spatial_{variant}") - expected.spatial.flatten(1, 2).numpy()).max() < 1e-5
        assert found(f"resized_{variant}").shape == (1, 14 * 14, 48)


@pytest.mark.slow
def test_timm_alone_says_the_same(tmp_path: Path) -> None:
    """The lines that the user is given, each variant at two sizes."""
    program = ["import numpy, torch; torch.set_grad_enabled(False)"]
    expected = {}
    models = [*(make(**changes) for changes in VARIANTS.values()), made({"type": "timm", "model": "test_convnext"})]
    for number, model in enumerate(models):
        (tmp_path / str(number)).mkdir()
        snippet = FORM["timm"].snippet(written(FORM["timm"], model, tmp_path / str(number)), ExportSettings(()))
        for rows in (3, 7):
            images = images_of(model.network.student.nearest_size(rows * 14, 5 * 14))
            case = f"{number}_{rows}"
            np.save(tmp_path / f"images_{case}.npy", images.numpy())
            expected[case] = said(model, images)["backbone"]
            program += [f"images = torch.from_numpy(numpy.load('images_{case}.npy'))", snippet]
            program += [f"numpy.save('summary_{case}', summary), numpy.save('spatial_{case}', spatial)"]
    found = apart("\n".join(program), tmp_path)
    for case, wanted in expected.items():
        assert np.abs(found(f"summary_{case}") - wanted.summary.numpy()).max() < 1e-5
        spatial = wanted.spatial.flatten(1, 2) if found(f"spatial_{case}").ndim == 3 else wanted.spatial.permute(0, 3, 1, 2)
        assert np.abs(found(f"spatial_{case}") - spatial.numpy()).max() < 1e-5


@pytest.mark.parametrize("form", LIBRARIES, ids=lambda form: form.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_and_what_the_library_says(form: Format, variant: str, tmp_path: Path) -> None:
    model = make(**VARIANTS[variant])
    target = written(form, model, tmp_path)
    assert [other.name for other in FORMATS if other.recognises(target)] == [form.name]
    back = amradio.load(target)
    assert back.config.student.layer_scale == (model.config.student.layer_scale if form.name == "timm" else None)
    for size in form.sizes(model, ExportSettings(())):
        given = images_of(size)
        expected, theirs = said(model, given)["backbone"], form.outputs(target, given, ExportSettings(()))["backbone"]
        for ours, again, other in zip(expected, back(given), theirs, strict=True):
            assert torch.allclose(ours, again, atol=1e-5, rtol=0)
            assert torch.allclose(ours, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", LIBRARIES, ids=lambda form: form.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_weights_stay_half(form: Format, dtype: str, tmp_path: Path) -> None:
    model = make(layer_scale=1e-5)
    settings = ExportSettings((), dtype)
    target = written(form, model, tmp_path, dtype=dtype)
    back = read(target)
    assert {tensor.dtype for tensor in back.network.state_dict().values()} == {getattr(torch, dtype)}
    given = images_of((64, 96))
    expected, theirs = said(model, given)["backbone"], form.outputs(target, given, settings)["backbone"]
    for ours, other in zip(expected, theirs, strict=True):
        assert (ours - other).abs().max() < form.tolerance(settings) * max(1, float(ours.std()))


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURES.is_dir(), reason="needs the reference checkpoints")
@pytest.mark.parametrize("form", LIBRARIES, ids=lambda form: form.name)
@pytest.mark.parametrize("name", ["idx", "layerscale"])
def test_official_checkpoints_go_through(form: Format, name: str, tmp_path: Path) -> None:
    expected = torch.load(FIXTURES / f"{name}.expected.pt", weights_only=True)
    source = read(FIXTURES / f"{name}.pth.tar", align_corners=False)
    source.network.eval()
    bare = source._replace(config=source.config.model_copy(update={"heads": {}}))
    target = written(form, bare, tmp_path)
    back = amradio.load(target)
    for images, outputs in (("x", "backbone_NLC"), ("x2", "backbone2_NLC"), ("x3", "backbone3_NLC")):
        given, wanted = expected[images], expected[outputs]
        for found in (back(given), form.outputs(target, given, ExportSettings(()))["backbone"]):
            assert (found.summary - wanted["summary"]).abs().max() < 1e-4
            assert (found.spatial.flatten(1, 2) - wanted["features"]).abs().max() < 1e-4


# transformers


def radio_folder(folder: Path, **config: object) -> Path:
    """A RadioModel in the names of its class, as `save_pretrained` does not write them by default, all of whose weights matter."""
    native = randomise(
        transformers.RadioModel(
            transformers.RadioConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                patch_size=8,
                max_img_size=64,
                num_cls_tokens=3,
                num_registers=5,
                summary_idxs=[0, 2],
                **config,
            )
        )
    )
    folder.mkdir()
    native.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in native.state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "config",
    [{}, {"qkv_bias": False}, {"norm_mean": [0.5, 0.4, 0.3], "norm_std": [0.2, 0.25, 0.3]}, {"mlp_ratio": 3.1}],
    ids=["LayerScale", "no bias of q, k and v", "another normalisation", "uneven MLP"],
)
def test_reads_what_transformers_loads(config: dict, tmp_path: Path) -> None:
    folder = radio_folder(tmp_path / "radio", **config)
    native = transformers.AutoModel.from_pretrained(folder).eval()
    model = amradio.load(folder)
    assert model.config.student.layer_scale is not None
    for size in ((32, 48), (64, 64)):
        given = images_of(size)
        with torch.inference_mode():
            wanted = native(given)
        found = model(given)
        assert torch.allclose(found.summary, wanted.summary, atol=1e-4)
        assert torch.allclose(found.spatial.flatten(1, 2), wanted.features, atol=1e-4)


def test_reads_the_names_that_transformers_writes_and_shards(tmp_path: Path) -> None:
    folder = tiny_radio(tmp_path / "one")
    native = transformers.AutoModel.from_pretrained(folder)
    native.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = amradio.load(folder), amradio.load(tmp_path / "many")
    given = images_of((32, 48))
    assert torch.equal(one(given).spatial, many(given).spatial)
    assert one.config.image_size == 48
    assert many.config.image_size is None


def test_layer_scale_of_published_names_counts_though_transformers_passes_it_over(tmp_path: Path) -> None:
    """`blocks.N.ls1.grandma` and a dead `reg_token`, as in C-RADIOv3-B and -L."""
    folder = radio_folder(tmp_path / "radio")
    scaled = amradio.load(folder)
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "layer_scale" not in name}
    for block in range(2):
        for scale in (1, 2):
            gamma = load_file(folder / "model.safetensors")[f"encoder.layer.{block}.layer_scale{scale}.lambda1"]
            tensors[f"radio_model.model.blocks.{block}.ls{scale}.grandma"] = gamma
    save_file({**tensors, "radio_model.model.reg_token": torch.zeros(1, 4, 32)}, folder / "model.safetensors")
    again = read(folder)
    given = images_of((32, 48))
    assert again.ignored_keys == ("reg_token",)
    assert torch.equal(amradio.load(folder)(given).spatial, scaled(given).spatial)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act: found gelu_new"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps: found 1e-05"),
        ({"num_channels": 4}, "num_channels: found 4"),
        ({"hidden_size": "wide"}, "not the config of a RadioModel"),
        ({"num_attention_heads": 5}, "num_heads 5 does not divide dim 32"),
        ({"num_hidden_layers": 3}, "missing: blocks.2.norm1.weight"),
        ({"num_registers": 6}, r"patch_generator.cls_token.token is \[8, 32\], not \[9, 32\]"),
    ],
)
def test_a_config_that_our_vit_cannot_be_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    folder = radio_folder(tmp_path / "radio")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        amradio.load(folder)


def _without_q(tensors: dict[str, Tensor]) -> None:
    del tensors["encoder.layer.1.attention.q_proj.weight"]


def _left_over(tensors: dict[str, Tensor]) -> None:
    tensors["adaptors.clip.fc1.weight"] = torch.zeros(3)


def _slots(tensors: dict[str, Tensor]) -> None:
    tensors["summary_idxs"] = torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_without_q, r"expected q_proj, k_proj and v_proj of one shape, found k_proj \[32, 32\], v_proj \[32, 32\]"),
        (_left_over, "not known: adaptors.clip.fc1.weight"),
        (_slots, r"summary_idxs \[0, 3\] are not among its 3 class tokens"),
    ],
)
def test_damaged_weights_of_a_radio_model_are_refused(harm: Callable, message: str, tmp_path: Path) -> None:
    folder = radio_folder(tmp_path / "radio")
    tensors = load_file(folder / "model.safetensors")
    harm(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        amradio.load(folder)


def test_cut_files_of_a_radio_model_are_refused(tmp_path: Path) -> None:
    folder = radio_folder(tmp_path / "radio")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        amradio.load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[1]")
    with pytest.raises(UserError, match=r"index\.json: an object is expected, found a list"):
        amradio.load(folder)


def test_what_transformers_and_timm_have_no_place_for() -> None:
    aligned, rotated = make(align_corners=True), make()
    rotated = rotated._replace(config=rotated.config.model_copy(update={"rotates": True}))
    assert "align_corners" in FORM["transformers"].unsupported_reasons(aligned.config, aligned.network)[0]
    assert FORM["timm"].unsupported_reasons(aligned.config, aligned.network) == ()
    for form in LIBRARIES:
        assert "rotation" in form.unsupported_reasons(rotated.config, rotated.network)[0]
        assert form.supported_heads(make(heads=True).config) == ()


# timm


@pytest.mark.parametrize("align_corners", [False, True])
def test_timm_keeps_the_rule_of_positions(align_corners: bool, tmp_path: Path) -> None:
    model = make(align_corners=align_corners)
    target = written(FORM["timm"], model, tmp_path)
    given = images_of((64, 96))
    expected = said(model, given)["backbone"].spatial
    theirs = FORM["timm"].outputs(target, given, ExportSettings(()))["backbone"].spatial
    assert torch.allclose(theirs, expected, atol=1e-5)
    assert torch.allclose(amradio.load(target)(given).spatial, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "num_prefix", "changes", "name", "overrides"),
    [
        ("base", 8, {"align_corners": True, "layer_scale": 1e-5}, "base_patch16_radio_v3", {}),
        ("base", 8, {}, "base_patch16_radio_v3", {"pos_embed_align_corners": False}),
        ("large", 8, {"layer_scale": 1e-5}, "large_patch16_radio_v3", {}),
        ("huge", 10, {}, "huge_patch16_radio_v4", {}),
        ("huge", 8, {"align_corners": True}, "huge_patch16_radio_v3", {}),
        ("giant", 8, {}, "giant_patch16_radio_v3", {}),
        ("so400m", 10, {}, "so400m_patch16_radio_v4", {}),
        ("huge", 10, {"layer_scale": 1e-5}, "huge_patch16_radio_v4", {"init_values": 1e-5}),
    ],
)
def test_the_call_of_published_sizes(size: str, num_prefix: int, changes: dict, name: str, overrides: dict) -> None:
    settings = VitSettings.model_validate({"size": size, **changes})
    entry, call = call_for(settings, num_prefix)
    assert (entry.name, call.architecture, call.overrides) == (name, f"naflexvit_{name}", overrides)


@pytest.mark.slow
def test_the_entries_are_as_timm_has_them() -> None:
    for entry in ENTRIES:
        with torch.device("meta"):
            flexible = timm.create_model(f"naflexvit_{entry.name}")
            plain = timm.create_model(f"vit_{entry.name}")
        shape = (flexible.embed_dim, len(flexible.blocks), flexible.blocks[0].attn.num_heads, flexible.blocks[0].mlp.fc1.out_features)
        assert shape == entry.shape
        assert entry.shape in SIZES.values()
        assert flexible.embeds.reg_token.shape[1] == plain.reg_token.shape[1] == entry.reg_tokens
        assert flexible.embeds.pos_embed_align_corners == entry.align_corners
        assert ("blocks.0.ls1.gamma" in flexible.state_dict()) == entry.layer_scale
        assert flexible.embeds.pos_embed.shape[1:3] == (128, 128)


@pytest.mark.parametrize(
    "architecture", ["vit_huge_patch16_radio_v3", "naflexvit_huge_patch16_radio_v3", "naflexvit_base_patch16_radio_v3"]
)
def test_reads_folders_of_timm(architecture: str, tmp_path: Path) -> None:
    """Both layouts, tiny, saved by timm itself with another normalisation and a bias of the patches."""
    changes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.5, "reg_tokens": 3}
    changes |= {"pos_embed_grid_size": (6, 6)} if architecture.startswith("naflex") else {"img_size": 96}
    theirs = randomise(timm.create_model(architecture, **changes))
    theirs.pretrained_cfg |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "input_size": (3, 96, 96)}
    timm.models.save_for_hf(theirs, tmp_path, model_args=changes, safe_serialization=True)
    model = amradio.load(tmp_path)
    assert model.config.student.align_corners
    assert (model.config.num_summaries, model.config.image_size) == (1, 96)
    given = images_of((96, 96))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    with torch.inference_mode():
        tokens = theirs.forward_features((given - mean) / std)
    found = model(given)
    assert torch.allclose(found.summary, tokens[:, 0], atol=1e-4)
    assert torch.allclose(found.spatial.flatten(1, 2), tokens[:, 4:], atol=1e-4)


def test_a_file_of_timm_alone_does_not_say_its_heads(tmp_path: Path) -> None:
    theirs = timm.create_model("naflexvit_huge_patch16_radio_v4", embed_dim=32, depth=1, num_heads=4, pos_embed_grid_size=(4, 4))
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match="nothing says how many attention heads this ViT of 32 channels and 1 blocks has"):
        amradio.load(tmp_path / "theirs.safetensors")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("embeds.pos_embed", (1, 3, 4, 48), "are not those of one ViT"),
        ("embeds.proj.weight", (48, 770), "are not those of one ViT"),
        ("embeds.cls_token", (1, 1, 47), "are not those of one ViT"),
        ("blocks.0.attn.proj.weight", (48, 47), r"wrong shape: blocks.0.attn.proj.weight is \[48, 47\], not \[48, 48\]"),
        ("head.weight", (3, 48), "not known: head.weight"),
    ],
)
def test_damaged_files_of_timm_are_refused(name: str, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    target = written(FORM["timm"], make(), tmp_path)
    with safe_open(target, "pt") as opened:
        metadata = opened.metadata()
    save_file({**load_file(target), name: torch.zeros(shape)}, target, metadata)
    with pytest.raises(UserError, match=message):
        amradio.load(target)


def test_a_file_of_another_family_is_not_taken_for_one_of_timm(tmp_path: Path) -> None:
    other = tmp_path / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", embed_dim=32, depth=1, num_heads=2, img_size=32).state_dict(), other)
    assert not any(form.recognises(other) for form in FORMATS)
    with pytest.raises(UserError, match="not a model in a format that is read here"):
        amradio.load(other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "student", [{"model": "test_resnet", "level": -2}, {"model": "test_vit", "summary": "token"}], ids=lambda s: s["model"]
)
def test_backbones_of_timm_go_back_into_themselves(student: dict, tmp_path: Path) -> None:
    model = made({"type": "timm", **student})
    target = written(FORM["timm"], model, tmp_path)
    assert [form.name for form in FORMATS if form.recognises(target)] == ["timm"]
    back = amradio.load(target)
    for size in FORM["timm"].sizes(model, ExportSettings(())):
        images = images_of(size)
        expected, theirs = said(model, images)["backbone"], FORM["timm"].outputs(target, images, ExportSettings(()))["backbone"]
        for ours, again, other in zip(expected, back(images), theirs, strict=True):
            assert torch.allclose(ours, again, atol=1e-5, rtol=0)
            assert torch.allclose(ours, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"neck": True, "level": 1}, "no place for the student's neck"),
        ({"summaries": "per_teacher"}, "no place for the linear layers of `summaries: per_teacher`"),
        ({"summary": "map", "level": 1}, "left out layers that timm's test_resnet has"),
    ],
)
def test_what_a_backbone_of_timm_has_no_place_for(student: dict, message: str) -> None:
    model = made({"type": "timm", "model": "test_resnet", **student})
    reasons = FORM["timm"].unsupported_reasons(model.config, model.network)
    assert any(message in reason for reason in reasons)
    assert "this student is of type 'timm'" in FORM["transformers"].unsupported_reasons(model.config, model.network)[0]


# ONNX


TENSORRT_OPS = set(
    re.findall(
        r"\w+",
        "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos "
        "Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual "
        "Identity "
        "InstanceNormalization LayerNormalization Less LessOrEqual Log MatMul Max MaxPool Min Mul Neg Not Or Pad Pow Range Reciprocal "
        "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Shape Sigmoid Sign Sin Slice Softmax Softplus Split Sqrt "
        "Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where",
    )
)
"""Operators that TensorRT's parser takes without a plugin, as its documents list them (onnx-tensorrt, docs/operators.md: of TensorRT 8.5
all but Gelu and LayerNormalization, which TensorRT 10 lists as well)."""
COORDINATES = {"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"}
"""Those of Resize that the same list names, with the modes nearest and linear."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[LoadedModel, Path]]:
    """Graphs of a tiny ViT: of every size, of float16, and (by the command) of one size with one head and its weights in a second file."""
    found = {}
    for name, settings in (("free", {}), ("half", {"dtype": "float16"})):
        model = make(heads=True, depth=1, align_corners=name == "half")
        found[name] = (model, written(FORM["onnx"], model, tmp_path_factory.mktemp(name), **settings))
    model, folder = make(heads=True, depth=1), tmp_path_factory.mktemp("fixed")
    write_folder(folder / "model", model.config, model.network, {"step": 1, "num_steps": 1, "data": "nothing"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amradio.formats.onnx.INLINE_BYTES", 1000)
        said = amradio.export(folder / "model", "onnx", folder / "graph.onnx", heads=["sam"], image_size=48)
    assert "graph.onnx.data: move both together" in said.snippet
    config = model.config.model_copy(update={"heads": {"sam": model.config.heads["sam"]}})
    return {**found, "fixed": (LoadedModel(config, model.network), said.path)}


@pytest.mark.slow
def test_onnxruntime_alone_says_the_same_at_every_size_and_batch(exported: dict, tmp_path: Path) -> None:
    """In a process with neither this package nor torch."""
    model, path = exported["free"]
    cases = [images_of(size, batch) for size, batch in zip([*SIZES_PX, (16, 16)], (1, 3, 2, 1, 5), strict=True)]
    for number, images in enumerate(cases):
        np.save(tmp_path / f"images{number}.npy", images.numpy())
    snippet = FORM["onnx"].snippet(path, ExportSettings(tuple(model.config.heads)))
    program = ["import numpy"]
    for number in range(len(cases)):
        program += [f"images = numpy.load('images{number}.npy')", snippet]
        names = ("summary", "spatial", "clip_summary", "clip_spatial", "sam_spatial")
        program += [f"numpy.save('{name}{number}', {name})" for name in names]
    found = apart("\n".join([*program, "assert 'torch' not in sys.modules"]), tmp_path)
    for number, images in enumerate(cases):
        expected = named(said(model, images))
        assert list(expected) == ["summary", "spatial", "clip_summary", "clip_spatial", "sam_spatial"]
        for name, tensor in expected.items():
            assert found(f"{name}{number}").shape == tensor.shape
            assert np.abs(found(f"{name}{number}") - tensor.numpy()).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["free", "half", "fixed"])
def test_onnx_says_the_same_within_its_tolerance(name: str, exported: dict) -> None:
    model, path = exported[name]
    settings = ExportSettings(tuple(model.config.heads), "float16" if name == "half" else "float32", 50 if name == "fixed" else None)
    form = FORM["onnx"]
    for size in form.sizes(model, settings):
        images = images_of(size)
        expected, theirs = said(model, images), form.outputs(path, images, settings)
        assert expected.keys() == theirs.keys()
        for ours, other in zip(named(expected).values(), named(theirs).values(), strict=True):
            assert other.dtype == torch.float32
            assert (ours - other).abs().max() < form.tolerance(settings) * max(1, float(ours.std()))


@pytest.mark.slow
def test_a_graph_of_one_size_takes_that_alone_and_any_batch(exported: dict) -> None:
    model, path = exported["fixed"]
    assert FORM["onnx"].sizes(model, ExportSettings(("sam",), image_size=50)) == ((48, 48),)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["summary", "spatial", "sam_spatial"]
    assert session.run(["spatial"], {"images": images_of((48, 48), 3).numpy()})[0].shape == (3, 3, 3, 48)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="images"):
        session.run(None, {"images": images_of((64, 48)).numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["free", "half", "fixed"])
def test_graphs_are_of_operators_that_tensorrt_takes(name: str, exported: dict) -> None:
    _, path = exported[name]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    stated = {entry.key: entry.value for entry in model.metadata_props}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", int(stated["opset"]))]
    assert {node.op_type for node in model.graph.node} <= TENSORRT_OPS
    assert len(model.functions) == 0
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        assert not any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in attributes.values())
        if node.op_type == "Resize":
            assert attributes["coordinate_transformation_mode"].s.decode() in COORDINATES
            assert attributes["mode"].s == b"linear"
        if node.op_type in ("Slice", "Squeeze", "Unsqueeze"):
            axes = 3 if node.op_type == "Slice" else 1
            assert set(node.input[axes : axes + 1]) <= constants


@pytest.mark.slow
def test_the_graph_says_what_it_takes_and_gives(exported: dict) -> None:
    (_, free), (_, half), (_, fixed) = (exported[name] for name in ("free", "half", "fixed"))
    edges = [
        [dim.dim_param or dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] for path in (free, fixed)
    ]
    assert edges == [["batch", 3, "16*rows", "16*columns"], ["batch", 3, 48, 48]]
    said_sizes = [{entry.key: entry.value for entry in onnx.load(path).metadata_props}["sizes"] for path in (free, fixed)]
    assert said_sizes == ["H and W multiples of 16 px", "48 x 48 px"]
    weights = {tensor.data_type for tensor in onnx.load(half).graph.initializer if len(tensor.dims) == 2}
    assert weights == {onnx.TensorProto.FLOAT16}
    for path in (free, half, fixed):
        assert b".py" not in path.read_bytes()


@pytest.mark.slow
def test_eradio_goes_to_onnx_at_one_size(tmp_path: Path) -> None:
    """Convolutions, windowed attention with a position bias, the neck; the size is the model's own, the batch is free."""
    shape = {"dim": 8, "stem_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [2, 4], "neck_dim": 24, "window_size": 8}
    model = made({"type": "eradio", "size": "large", **shape}, image_size=100)
    settings = ExportSettings(("clip",))
    path = written(FORM["onnx"], model, tmp_path)
    assert FORM["onnx"].sizes(model, settings) == ((96, 96),)
    assert {node.op_type for node in onnx.load(path).graph.node} <= TENSORRT_OPS
    for batch in (1, 3):
        images = images_of((96, 96), batch)
        theirs = named(FORM["onnx"].outputs(path, images, settings))
        for name, ours in named(said(model, images)).items():
            assert (theirs[name] - ours).abs().max() < 1e-4 * max(1, float(ours.std()))


@pytest.mark.slow
def test_weights_beyond_one_file_go_along(exported: dict) -> None:
    _, path = exported["fixed"]
    assert {found.name for found in path.parent.iterdir()} == {"model", "graph.onnx", "graph.onnx.data"}
    assert path.stat().st_size < path.with_name("graph.onnx.data").stat().st_size
    with pytest.raises(UserError, match=r"graph\.onnx exists"):
        amradio.export(path.parent / "model", "onnx", path)


@pytest.mark.slow
def test_an_onnx_file_is_recognised_and_not_read(exported: dict, tmp_path: Path) -> None:
    _, path = exported["free"]
    assert [form.name for form in FORMATS if form.recognises(path)] == ["onnx"]
    with pytest.raises(UserError, match="an ONNX file is run"):
        amradio.load(path)
    other = tmp_path / "no.onnx"
    other.write_text("no graph")
    with pytest.raises(UserError, match="not a model in a format that is read here"):
        amradio.load(other)


@pytest.mark.slow
def test_onnx_refuses_bfloat16(tmp_path: Path) -> None:
    model = make()
    with pytest.raises(UserError, match="dtype bfloat16: an ONNX file is of float32 or float16"):
        FORM["onnx"].write(tmp_path / "model.onnx", model, ExportSettings((), "bfloat16"))


def test_a_missing_library_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("amradio.formats.onnx.find_spec", lambda name: None if name.startswith("onnx") else found(name))
    with pytest.raises(UserError, match=r"onnx and onnxscript and onnxruntime not installed; pip install 'amradio\[onnx\]'"):
        FORM["onnx"].write(tmp_path / "model.onnx", make(), ExportSettings(()))
    assert FORM["onnx"].outputs(tmp_path / "model.onnx", images_of((32, 32)), ExportSettings(())) is None
