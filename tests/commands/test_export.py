"""`amradio export`: round trips among all formats, what is printed, what is refused, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import amradio
from amradio import UserError, formats
from amradio import distill as run_distill
from amradio.__main__ import main
from amradio.features import Features
from amradio.formats import ExportSettings, LoadedModel
from amradio.formats.model_folder import write_folder
from amradio.formats.radio.torchhub import TorchHub
from amradio.heads import LinearHeadSettings
from amradio.network import HeadConfig, HeadPart
from amradio.students import EradioSettings, VitSettings
from model_folders import NOTES, config_of, layer_scale_vit
from runs import files

NAMES = [form.name for form in formats.FORMATS]
READ = [name for name in NAMES if name != "onnx"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a ViT with LayerScale and three heads, one of them for the map alone."""
    return layer_scale_vit(tmp_path / "model")


def out_of(name: str, folder: Path, stem: str = "out") -> Path:
    form = next(form for form in formats.FORMATS if form.name == name)
    return folder / f"{stem}{form.suffix}"


def answers(path: Path, images: Tensor) -> dict[str, Features]:
    loaded = amradio.load(path)
    return loaded(images, heads=loaded.heads)


def largest(first: dict[str, Features], second: dict[str, Features]) -> float:
    """Over the outputs that both have; a format without heads answers with the backbone alone."""
    pairs = [pair for name in first.keys() & second.keys() for pair in zip(first[name], second[name], strict=True)]
    return max((one - other).abs().max().item() for one, other in pairs if one is not None and other is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_reloaded_and_compared(name: str, model: Path, tmp_path: Path, capsys):
    exported = amradio.export(model, name, out_of(name, tmp_path))
    found = dict(exported.differences)
    form = next(form for form in formats.FORMATS if form.name == name)
    carried = form.supported_heads(formats.read(model).config)
    wanted = {"backbone/summary", "backbone/spatial"} | {f"{head}/spatial" for head in carried}
    assert wanted <= set(found)
    assert all(value is not None and value < 1e-5 for value in found.values())
    assert set(exported.left_out) == {"clip", "dino", "sam"} - set(carried)
    printed = capsys.readouterr().out
    assert form.reader in " ".join(printed.split())
    assert exported.snippet in printed
    assert all(output in printed for output in found)
    assert all(head in printed for head in exported.left_out)
    assert str(exported.path) in exported.snippet
    assert not list(tmp_path.glob(".part*"))
    usual = tmp_path / "any new file"
    usual.touch()
    written = [exported.path] if exported.path.is_file() else list(exported.path.iterdir())
    assert {file.stat().st_mode for file in written} == {usual.stat().st_mode}


@pytest.mark.slow
@pytest.mark.parametrize("second", READ)
@pytest.mark.parametrize("first", READ)
def test_round_trips_among_all_formats(first: str, second: str, model: Path, tmp_path: Path):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    original = answers(model, images)
    there = amradio.export(model, first, out_of(first, tmp_path, "there")).path
    back = amradio.export(there, second, out_of(second, tmp_path, "back")).path
    found = answers(back, images)
    carried = set(amradio.load(there).heads) & {
        head for form in formats.FORMATS if form.name == second for head in form.supported_heads(formats.read(there).config)
    }
    assert set(found) == {"backbone"} | carried
    assert largest(original, found) < 1e-5


@pytest.mark.slow
def test_an_eradio_survives_the_official_formats(tmp_path: Path):
    config = config_of(EradioSettings(size="xxxtiny_8x_ws16"))
    write_folder(tmp_path / "model", config, config.build(), NOTES)
    there = amradio.export(tmp_path / "model", "torchhub", tmp_path / "there.pth.tar").path
    back = amradio.export(there, "hf", tmp_path / "back").path
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    assert largest(answers(tmp_path / "model", images), answers(back, images)) < 1e-5
    assert amradio.load(back).heads == ("clip", "dino", "sam")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["amradio", "torchhub", "hf"])
def test_half_weights(name: str, dtype: str, model: Path, tmp_path: Path):
    exported = amradio.export(model, name, out_of(name, tmp_path), dtype=dtype)
    assert all(value is not None and value < 1e-5 for _, value in exported.differences)
    found = formats.read(exported.path).network.state_dict()
    whole = formats.read(model).network.state_dict()
    assert all(torch.equal(found[key], whole[key].to(getattr(torch, dtype))) for key in whole)
    again = amradio.export(exported.path, name, out_of(name, tmp_path, "again"))
    kept = formats.read(again.path).network.state_dict()
    assert {tensor.dtype for tensor in kept.values()} == {getattr(torch, dtype)}


@pytest.mark.slow
def test_chosen_heads_go_along_in_their_order(model: Path, tmp_path: Path):
    amradio.export(model, "torchhub", tmp_path / "out.pth.tar", heads=["sam", "dino"])
    found = amradio.load(tmp_path / "out.pth.tar")
    assert set(found.heads) == {"dino", "sam"}
    images = torch.rand(1, 3, 64, 64)
    assert largest(answers(model, images), answers(tmp_path / "out.pth.tar", images)) < 1e-5
    assert found.summary_dim == 128
    amradio.export(model, "hf", tmp_path / "bare", heads=[])
    assert amradio.load(tmp_path / "bare").heads == ()


# the card


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amradio", "hf", "transformers"])
def test_the_card_of_an_exported_folder(name: str, model: Path, tmp_path: Path):
    there = amradio.export(model, "torchhub", tmp_path / "there.pth.tar").path
    folder = amradio.export(there, name, tmp_path / "out").path
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["pipeline_tag"] == "image-feature-extraction"
    assert header["library_name"] == ("transformers" if name == "transformers" else "amradio")
    for words in ("7 of 9 steps on 12 images of teapots", "| clip/summary | 0.500 | 0.900 | 0.750 | 0.250 |", "seed: 41", "64 px"):
        assert words in card
    assert "there.pth.tar" not in card.split("## Load it")[1].split("##")[0]
    assert "PATH/OF/THIS/FOLDER" in card
    assert str(tmp_path) not in card
    if name != "transformers":  # it has no place for heads
        assert "Apple AMLR (research only) | research only |" in card
        assert "**The weights of clip are not for commercial use.**" in card
        assert "| facebook/dinov2-small | Apache-2.0 | commercial use |" in card


@pytest.mark.slow
def test_a_run_folder_goes_out_with_its_recipe(recipe, tmp_path: Path):
    run = run_distill(recipe("stages.0.steps=2", "evaluate.every=2", "engine.checkpoint_every=2"))
    exported = amradio.export(run, "hf", tmp_path / "out")
    card = (exported.path / "README.md").read_text()
    assert "2 of 2 steps on 24 images in" in card
    assert "| dino/summary | " in card
    assert "batch_size: 4" in card
    images = torch.rand(1, 3, 32, 32)
    assert largest(answers(Path(run), images), answers(exported.path, images)) < 1e-5


# one message, nothing written


@pytest.fixture
def refused(model: Path, tmp_path: Path, capsys) -> Callable[..., str]:
    """Runs the command; what it prints as its error, after seeing that nothing was touched."""

    def run(*words: str, out: Path) -> str:
        before = files(tmp_path)
        assert main(["export", str(model), "--out", str(out), *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert files(tmp_path) == before
        assert not list(tmp_path.glob(".part*"))
        assert "error: " in [line[:7] for line in printed.err.splitlines()]
        return printed.err

    return run


def test_nothing_is_overwritten(refused, tmp_path: Path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("three years")
    (tmp_path / "file").write_text("x")
    (tmp_path / "file.pth.tar").write_text("x")
    (tmp_path / "folder.pth.tar").mkdir()
    assert "exists; nothing was touched" in refused("--format", "hf", out=taken)
    assert "exists; nothing was touched" in refused("--format", "hf", out=tmp_path / "file")
    assert "exists; nothing was touched" in refused("--format", "torchhub", out=tmp_path / "file.pth.tar")
    assert "exists; nothing was touched" in refused("--format", "torchhub", out=tmp_path / "folder.pth.tar")


@pytest.mark.slow
def test_an_empty_folder_may_be_filled(model: Path, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["export", str(model), "--format", "amradio", "--out", str(tmp_path / "empty"), "--heads", "sam,clip"]) == 0
    assert set(amradio.load(tmp_path / "empty").heads) == {"clip", "sam"}
    assert "sam/spatial" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "torchub"), "there is no 'torchub'; did you mean 'torchhub'?"),
        (("--format", "torchhub"), "a file whose name ends in .pth.tar"),
        (("--format", "hf", "--image-size", "64"), "takes images of every legal size; leave it out"),
        (("--format", "hf", "--heads", "clp"), "there is no head 'clp'; did you mean 'clip'?"),
        (("--format", "transformers", "--heads", "clip"), "format 'transformers' has no place for head 'clip'; leave it out"),
    ],
)
def test_mistakes_of_the_user(words: tuple[str, ...], message: str, refused, tmp_path: Path):
    assert message in refused(*words, out=tmp_path / "out")


def test_unknown_dtype_and_absent_model(model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="dtype: there is no 'float8'"):
        amradio.export(model, "hf", tmp_path / "out", dtype="float8")
    with pytest.raises(UserError, match="there is no such file or folder"):
        amradio.export(tmp_path / "nowhere", "hf", tmp_path / "out")


def test_a_model_that_the_format_cannot_hold(tmp_path: Path):
    config = config_of(VitSettings(dim=64, depth=1, num_heads=4, num_registers=3, max_image_size=128, align_corners=True))
    write_folder(tmp_path / "model", config, config.build(), NOTES)
    with pytest.raises(UserError, match="cannot be written as 'torchhub': its position table is read with align_corners true"):
        amradio.export(tmp_path / "model", "torchhub", tmp_path / "out.pth.tar")


@pytest.mark.slow
def test_heads_without_a_place_are_left_out_and_named(tmp_path: Path, capsys):
    linear = HeadConfig(spatial=HeadPart(head=LinearHeadSettings(), dim=5))
    config = config_of(VitSettings(dim=64, depth=1, num_heads=4, num_registers=3, max_image_size=128), edges=linear)
    write_folder(tmp_path / "model", config, config.build(), NOTES)
    assert amradio.export(tmp_path / "model", "hf", tmp_path / "out").left_out == ("edges",)
    assert "no place for them: edges" in capsys.readouterr().out


class Forgetful(TorchHub):
    """A format that loses a bias."""

    name = "forgetful"

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        with torch.no_grad():
            model.network.heads["dino"].summary.final[2].bias.add_(1e-2)  # type: ignore[union-attr]
        super().write(target, model, settings)
        with torch.no_grad():
            model.network.heads["dino"].summary.final[2].bias.sub_(1e-2)  # type: ignore[union-attr]


class Failing(TorchHub):
    """A format whose disk is full after half of the file."""

    name = "failing"

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        super().write(target, model, settings)
        target.write_bytes(target.read_bytes()[:1000])
        raise OSError(28, "No space left on device")


class Uninstalled(TorchHub):
    """A format whose library is not here."""

    name = "uninstalled"
    reader = "some library"

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> None:  # type: ignore[override]
        return None


class Deaf(TorchHub):
    """A format whose library has no summary for DINO."""

    name = "deaf"

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> dict[str, Features]:
        found = super().outputs(target, images, settings)
        return {**found, "dino": found["dino"]._replace(summary=None)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "message"),
    [(Forgetful(), r"the written model is not the same: dino/summary differs by 1\.0e-02; more than 1e-04"), (Failing(), "No space left")],
)
def test_nothing_is_left_behind_on_failure(form: Any, message: str, model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, form))
    before = files(tmp_path)
    with pytest.raises(UserError, match=message):
        amradio.export(model, form.name, tmp_path / "out.pth.tar")
    assert files(tmp_path) == before


@pytest.mark.slow
def test_what_was_not_compared_is_said(model: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Uninstalled(), Deaf()))
    found = dict(amradio.export(model, "deaf", tmp_path / "deaf.pth.tar").differences)
    assert [name for name, value in found.items() if value is None] == ["dino/summary"]
    assert "no such output" in capsys.readouterr().out
    assert amradio.export(model, "uninstalled", tmp_path / "out.pth.tar").differences == ()
    assert "Not compared: some library is not installed here." in capsys.readouterr().out
