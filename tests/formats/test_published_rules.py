"""The official reader's rules, computed anew from written files; files that it reads otherwise; E-RADIO without its dead norm."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import amradio
from amradio import UserError, formats
from amradio.formats import ExportSettings, LoadedModel
from amradio.formats.model_folder import write_folder
from amradio.formats.radio.hf_remote_code import RemoteCode
from amradio.formats.radio.rules import crops_positions, windows
from amradio.formats.radio.torchhub import TorchHub
from amradio.heads import MlpHeadSettings
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students import EradioSettings, VitSettings

NOTES = {"step": 1, "num_steps": 1, "data": "nothing"}
LAYOUTS = {"torchhub": TorchHub(), "hf": RemoteCode()}


def model(tmp_path: Path, student: Any) -> Path:
    part = HeadPart(head=MlpHeadSettings(hidden_dim=8), dim=8)
    count = 1 if student.shares_summary else 2
    heads = {name: HeadConfig(summary=part, spatial=part, slot=slot % count) for name, slot in (("clip", 0), ("dino", 1))}
    config = NetworkConfig(student=student, num_summaries=count, heads=heads, image_size=64)
    write_folder(tmp_path / "model", config, config.build(), NOTES)
    return tmp_path / "model"


def vit(**changes: Any) -> VitSettings:
    return VitSettings(**{"dim": 64, "depth": 2, "num_heads": 4, "num_registers": 3, "max_image_size": 256} | changes)


def settings_of(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return json.loads((path / "config.json").read_text())["args"]
    with torch.serialization.safe_globals([argparse.Namespace]):
        return vars(torch.load(path, weights_only=True)["args"])


def out(layout: str, tmp_path: Path) -> Path:
    return tmp_path / f"out{LAYOUTS[layout].suffix}"


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "student",
    [vit(max_image_size=224), vit(max_image_size=220), vit(max_image_size=592, layer_scale=0.1), vit(max_image_size=224, patch_size=14)],
)
def test_cropped_positions_stay_on_where_the_table_is_of_the_size_of_the_architecture(layout: str, student: Any, tmp_path: Path, capsys):
    amradio.export(model(tmp_path, student), layout, out(layout, tmp_path))
    settings = settings_of(out(layout, tmp_path))
    assert settings["model_kwargs"]["img_size"] != settings["cpe_max_size"]
    assert settings["model_kwargs"]["img_size"] % student.patch_size == 0
    assert crops_positions(settings, student.patch_size)
    assert not crops_positions(settings | {"model_kwargs": {}}, student.patch_size)
    printed = capsys.readouterr().out
    side = student.table_side()
    assert f"cropped positions on, position table {side}x{side}" in printed
    images = torch.rand(1, 3, 4 * student.patch_size, 6 * student.patch_size)
    first, second = amradio.load(tmp_path / "model")(images), amradio.load(out(layout, tmp_path))(images)
    torch.testing.assert_close(first.spatial, second.spatial, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_no_size_is_stated_where_none_is_needed(tmp_path: Path):
    amradio.export(model(tmp_path, vit()), "torchhub", tmp_path / "out.pth.tar")
    assert "img_size" not in settings_of(tmp_path / "out.pth.tar")["model_kwargs"]


@pytest.mark.parametrize(
    ("settings", "patch_size", "on"),
    [
        ({"model": "vit_base_patch16_224", "cpe_max_size": 2048}, 16, True),
        ({"model": "vit_base_patch16_224", "cpe_max_size": 224}, 16, False),
        ({"model": "vit_base_patch16_224", "cpe_max_size": 220}, 16, False),  # the table has whole patches
        ({"model": "vit_base_patch16_v2_224", "cpe_max_size": 224}, 16, True),
        ({"model": "vit_base_patch16_v2_224", "cpe_max_size": 592}, 16, False),
        ({"model": "vit_base_patch16_224", "cpe_max_size": 224, "model_kwargs": {"img_size": 432}}, 16, True),
        ({"model": "vit_base_patch16_224", "cpe_max_size": 432, "model_kwargs": {"img_size": [432, 432]}}, 16, False),
        ({"model": "vit_huge_patch14_224", "cpe_max_size": 1050, "model_kwargs": {"patch_size": 14}}, 14, True),
    ],
)
def test_when_the_published_code_crops_positions(settings: dict[str, Any], patch_size: int, on: bool):
    assert crops_positions(settings, patch_size) is on


@pytest.mark.slow
def test_a_file_whose_positions_are_not_cropped_is_refused_by_name(tmp_path: Path):
    amradio.export(model(tmp_path, vit(max_image_size=224)), "torchhub", tmp_path / "out.pth.tar")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "out.pth.tar", weights_only=True)
    del content["args"].model_kwargs["img_size"]
    torch.save(content, tmp_path / "ours.pth.tar")
    assert amradio.load(tmp_path / "ours.pth.tar").heads == ("clip", "dino")  # written by an older amradio, whose positions were cropped
    del content["args"].amradio
    torch.save(content, tmp_path / "theirs.pth.tar")
    with pytest.raises(UserError, match=r"args\.cpe_max_size 224 is the size that args\.model is made for.*no CPE"):
        amradio.load(tmp_path / "theirs.pth.tar")


class Forgetful(TorchHub):
    """A format that writes one setting otherwise; the weights, and so our own reader's outputs, stay."""

    name = "forgetful"
    changes: dict[str, Any] = {}  # noqa: RUF012 - set by the test

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        super().write(target, model, settings)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(target, weights_only=True)
        vars(content["args"]).update(self.changes)
        torch.save(content, target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_kwargs": {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": 256}}, "cropped positions off, not on"),
        ({"register_multiple": 9}, "class tokens and registers together 9, not 5"),
        ({"cpe_num_registers": 1}, "class tokens and registers together 3, not 5"),
    ],
)
def test_what_our_own_reader_cannot_see_is_seen_by_the_rules(changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch):
    form = Forgetful()
    form.changes = changes
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, form))
    with pytest.raises(UserError, match=f"official reader would build another model: .*{said}"):
        amradio.export(model(tmp_path, vit()), "forgetful", tmp_path / "out.pth.tar")
    assert not (tmp_path / "out.pth.tar").exists()


# E-RADIO


@pytest.fixture(scope="module")
def eradio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("eradio"), EradioSettings(size="xxxtiny_8x_ws16"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_eradio_has_no_dead_norm_and_is_read_with_or_without(layout: str, eradio: Path, tmp_path: Path, capsys):
    path = amradio.export(eradio, layout, out(layout, tmp_path)).path
    printed = capsys.readouterr().out
    assert "windows by set_optimal_window_size (as printed below) 128x128px:4 96x160px:3" in " ".join(printed.split())
    assert "set_optimal_window_size(images.shape[2:])" in printed.split("Load it")[1]
    if layout == "hf":
        assert "set_optimal_window_size" in (path / "README.md").read_text()
    images = torch.rand(1, 3, 64, 96)
    expected = amradio.load(eradio)(images, heads=["clip"])
    dim = 8 * 32
    norm = {"weight": torch.ones(dim), "bias": torch.zeros(dim), "running_mean": torch.zeros(dim), "running_var": torch.ones(dim)}
    norm["num_batches_tracked"] = torch.tensor(3)
    start = "radio_model.model.norm." if layout == "hf" else "base_model.norm."
    if layout == "hf":
        weights = load_file(path / "model.safetensors")
    else:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, weights_only=True)
        weights = content["state_dict"]
    assert not [key for key in weights if key.startswith(start)]
    for added in ({}, {key: norm[key] for key in ("weight", "bias")}, norm):  # the official class drops it, older files have it
        changed = {**weights, **{start + key: tensor for key, tensor in added.items()}}
        if layout == "hf":
            save_file(changed, path / "model.safetensors")
        else:
            torch.save({**content, "state_dict": changed}, path)
        found = amradio.load(path)
        assert {key for key in found.ignored_keys if "norm." in key and "relative" not in key} == {start + key for key in added}
        torch.testing.assert_close(found(images, heads=["clip"])["clip"].spatial, expected["clip"].spatial, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_folder_of_ours_from_before_has_the_dead_norm(eradio: Path):
    file = eradio / "model.safetensors"
    weights = load_file(file)
    assert not [key for key in weights if key.startswith("student.norm.")]
    old = {f"student.norm.{key}": torch.ones(256) for key in ("weight", "bias", "running_mean", "running_var")}
    save_file({**weights, **old}, file)
    network = amradio.load(eradio).network
    network.load_state_dict({**network.state_dict(), **old})  # as a run that resumes does


@pytest.mark.parametrize(("height", "width", "cells"), [(224, 224, 7), (256, 256, 8), (384, 512, 12), (512, 512, 16), (64, 64, 2)])
def test_published_windows(height: int, width: int, cells: int):
    assert windows(height, width) == cells
