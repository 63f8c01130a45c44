"""Licences survive: whatever heads are kept and whatever format follows on whatever format, all ancestors are named."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import amradio
from amradio import UserError, formats
from amradio import distill as run_distill
from amradio.formats import ExportSettings, LoadedModel
from amradio.formats.model_folder import write_folder
from amradio.formats.radio.torchhub import TorchHub
from amradio.formats.timm.format import Timm
from amradio.heads import MlpHeadSettings
from amradio.licences import NOT_STATED, UNKNOWN, Ancestor, ancestor, front_matter, licence_in, of_teachers, official, terms, united
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students import VitSettings

TEACHERS = {
    "clip": {"type": "open_clip", "source": "apple/DFN5B-CLIP-ViT-H-14-378", "licence": "Apple AMLR (research only)"},
    "meta": {"type": "clip", "source": "/data/metaclip", "licence": "CC BY-NC 4.0"},
    "dino": {"type": "dinov2", "source": "facebook/dinov2-small"},
    "mine": {"type": "custom"},
}
NAMES = [form.name for form in formats.FORMATS]
READ = [name for name in NAMES if name != "onnx"]


def config_of(**changes: Any) -> NetworkConfig:
    part = HeadPart(head=MlpHeadSettings(hidden_dim=8), dim=8)
    heads = {name: HeadConfig(summary=part, slot=slot, teacher=facts) for slot, (name, facts) in enumerate(TEACHERS.items())}
    student = VitSettings(dim=64, depth=1, num_heads=4, num_registers=4, max_image_size=128)
    return NetworkConfig(**{"student": student, "num_summaries": 4, "heads": heads, "image_size": 64} | changes)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = config_of()
    write_folder(tmp_path / "model", config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing"})
    return tmp_path / "model"


def out(name: str, folder: Path, stem: str) -> Path:
    return folder / f"{stem}{next(form for form in formats.FORMATS if form.name == name).suffix}"


def plain(path: Path) -> list[dict[str, str]]:
    """What the files themselves state, read without amradio."""
    if path.is_dir():
        config = json.loads((path / "config.json").read_text())
        own = config.get("args", config).get("amradio", config)
        from safetensors import safe_open

        with safe_open(path / "model.safetensors", "pt") as opened:
            assert json.loads(opened.metadata()["distilled_from"]) == own["distilled_from"]
        return own["distilled_from"]
    if path.suffix == ".onnx":
        import onnx

        return json.loads({entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}["distilled_from"])
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as opened:
            return json.loads(opened.metadata()["distilled_from"])
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)["args"].amradio["distilled_from"]


def all_four(path: Path) -> None:
    found = {each["name"]: each for each in plain(path)}
    assert set(found) == set(TEACHERS)
    assert (found["clip"]["licence"], found["clip"]["implies"]) == ("Apple AMLR (research only)", "research only")
    assert (found["meta"]["source"], found["meta"]["implies"]) == ("/data/metaclip", "no commercial use")
    assert found["dino"]["licence"] == "Apache-2.0"  # known by its name
    assert found["mine"]["licence"] == NOT_STATED
    if path.is_dir():
        text = (path / "README.md").read_text()
        header = yaml.safe_load(text.split("---")[1])
        assert header["license"] == "other"
        assert header["base_model"] == ["apple/DFN5B-CLIP-ViT-H-14-378", "facebook/dinov2-small"]
        assert "student of clip, meta, dino, mine" in text
        assert all(f"| {licence} |" in text for licence in ("Apple AMLR (research only)", "CC BY-NC 4.0", "Apache-2.0"))
        assert "**The weights of clip, meta are not for commercial use.**" in text


@pytest.mark.slow
@pytest.mark.parametrize("heads", [None, ["dino"], []])
@pytest.mark.parametrize("name", NAMES)
def test_every_format_names_all_whatever_heads_it_has(name: str, heads: list[str] | None, model: Path, tmp_path: Path):
    form = next(form for form in formats.FORMATS if form.name == name)
    if heads and not form.supported_heads(config_of()):
        return
    all_four(amradio.export(model, name, out(name, tmp_path, "out"), heads=heads).path)


@pytest.mark.slow
@pytest.mark.parametrize("first", READ)
def test_exports_of_exports_without_heads(first: str, model: Path, tmp_path: Path):
    there = amradio.export(model, first, out(first, tmp_path, "there"), heads=[]).path
    assert amradio.load(there).heads == ()
    for second in READ:
        all_four(amradio.export(there, second, out(second, tmp_path, f"back_{second}")).path)


def test_a_folder_from_before_the_key(model: Path, tmp_path: Path):
    file = model / "config.json"
    config = json.loads(file.read_text())
    del config["distilled_from"]
    file.write_text(json.dumps(config))
    all_four(amradio.export(model, "transformers", tmp_path / "out").path)
    config["distilled_from"] = [{"name": "x"}]
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: distilled_from"):
        amradio.load(model)


@pytest.mark.slow
def test_an_official_file_is_an_ancestor_itself(model: Path, tmp_path: Path):
    amradio.export(model, "torchhub", tmp_path / "out.pth.tar")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "out.pth.tar", weights_only=True)
    del content["args"].amradio  # as NVIDIA's files are
    for teacher in content["args"].teachers:
        teacher.pop("amradio", None)
    for name, licence in (("c-radio_v3-b.pth.tar", "NVIDIA Open Model License"), ("radio_v2.5-h.pth.tar", "NSCL (non-commercial)")):
        torch.save(content, tmp_path / name)
        found = amradio.load(tmp_path / name).config.distilled_from
        assert {each.name for each in found} == {*TEACHERS, name}
        assert [each.licence for each in found if each.name == name] == [licence]
        again = amradio.export(tmp_path / name, "transformers", tmp_path / name.split("_")[0]).path
        assert {each["name"] for each in plain(again)} == {*TEACHERS, name}


@pytest.mark.parametrize(
    ("path", "licence"),
    [
        ("e-radio_v2.pth.tar", "NSCL (non-commercial)"),
        ("c-radio_v4-h_half.pth.tar", "NVIDIA Open Model License"),
        ("models--nvidia--C-RADIOv3-B/snapshots/abc", "NVIDIA Open Model License"),
        ("models--nvidia--RADIO-L/snapshots/abc", "NSCL (non-commercial)"),
        ("models--timm--vit_base_patch16_radio_v3.c_radio/snapshots/abc", "NVIDIA Open Model License"),
        ("weights.pth.tar", NOT_STATED),
    ],
)
def test_licences_of_official_files(path: str, licence: str, tmp_path: Path):
    assert official(tmp_path / path, "hf").licence == licence


def test_a_card_beside_the_weights_states_the_licence(tmp_path: Path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: some terms\n---\n# x\nlicense: mit\n")
    assert licence_in(tmp_path) == "some terms"
    assert official(tmp_path, "hf").licence == "some terms"
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\xff")
    assert licence_in(tmp_path) is None


class Forgetful(Timm):
    """A format that drops an ancestor."""

    name = "forgetful"

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        fewer = model.config.model_copy(update={"distilled_from": model.config.distilled_from[1:]})
        super().write(target, model._replace(config=fewer), settings)


def test_an_export_that_loses_one_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Forgetful()))
    with pytest.raises(UserError, match=r"does not state that the model was distilled from clip; nothing was kept"):
        amradio.export(model, "forgetful", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
def test_continued_models_unite_their_ancestors(recipe, model: Path, tmp_path: Path):
    short = ("stages.0.steps=1", "evaluate.every=null", "engine.checkpoint_every=1")
    student = f"student={{type: model, path: {model}}}"
    run = Path(run_distill(recipe(*short, student, "teachers.dino=null", "teachers.clip=null", f"out={tmp_path / 'run'}")))
    found = amradio.load(run).config
    assert list(found.heads) == ["sam"]
    assert [each.name for each in found.distilled_from] == [*TEACHERS, "sam"]
    learner = f"teachers={{old: {{type: model, path: {run}}}}}"
    fresh = ("student={type: vit, dim: 64, depth: 1, num_heads: 4, max_image_size: 64}", f"student.start_from={model}")
    second = Path(run_distill(recipe(*short, "teachers=null", learner, *fresh, f"out={tmp_path / 'second'}")))
    names = [each.name for each in amradio.load(second).config.distilled_from]
    assert set(names) == {"old", "initial weights", "sam", *TEACHERS}


def test_the_union_keeps_each_once_and_the_licence_that_is_stated():
    unknown, known = ancestor("a", "x"), ancestor("a", "x", "MIT")
    assert united([unknown], [known], [ancestor("b", "x")]) == [known, ancestor("b", "x")]
    assert united([known], [unknown]) == [known]
    assert ancestor("dino", "facebook/dinov2-base", NOT_STATED).licence == "Apache-2.0"
    assert of_teachers({"a": {}}) == [Ancestor(name="a", source="not stated", licence=NOT_STATED, implies=terms(NOT_STATED))]


@pytest.mark.parametrize(
    ("licence", "implied"),
    [
        ("MIT", "commercial use"),
        ("apache-2.0", "commercial use"),
        ("BSD-3-Clause", "commercial use"),
        ("cc-by-nc-sa-4.0", "no commercial use"),
        ("FAIR Noncommercial Research License", "no commercial use"),
        ("NVIDIA Source Code License, Non-Commercial", "no commercial use"),
        ("dinov3-license", "terms of its own, also for what is derived from it"),
        ("nvidia-open-model-license", "commercial use under its terms"),
        ("limited-research-licence", UNKNOWN),  # not by the letters of MIT
        ("for permitted uses", UNKNOWN),
    ],
)
def test_what_a_licence_implies_is_read_from_whole_words(licence: str, implied: str):
    assert terms(licence) == implied


def test_front_matter_of_cards():
    assert front_matter([]) == []
    assert front_matter([ancestor("a", "openai/clip-vit-base-patch16")]) == [
        "license: mit",
        "base_model:",
        '- "openai/clip-vit-base-patch16"',
    ]
    lines = front_matter([ancestor("a", "x", 'odd "terms"\n---'), ancestor("b", "y", "MIT")])
    assert yaml.safe_load("\n".join(lines)) == {"license": "other", "license_name": "that of its teachers, see below"}
    assert yaml.safe_load("\n".join(front_matter([ancestor("a", "x", 'odd "terms"\n---')])))["license"] == "other"


def test_official_readers_still_read_the_arguments(model: Path, tmp_path: Path):
    """Plain values alone: strings in lists and dictionaries."""
    amradio.export(model, "torchhub", tmp_path / "out.pth.tar")
    with torch.serialization.safe_globals([argparse.Namespace]):
        arguments = torch.load(tmp_path / "out.pth.tar", weights_only=True)["args"]
    assert json.loads(json.dumps(arguments.amradio["distilled_from"])) == arguments.amradio["distilled_from"]
    content = TorchHub().stated_ancestors(tmp_path / "out.pth.tar")
    assert [each["name"] for each in content] == list(TEACHERS)
