"""The projectors of DUNE and UNIC within a network: trained, saved, exported, refused by name, evaluated."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import amradio
from amradio import formats
from amradio.errors import UserError
from amradio.evaluation.predictors import predictors
from amradio.formats.model_folder import write_folder
from amradio.heads import HeadSettings, LadderHeadSettings, MlpHeadSettings, TransformerHeadSettings
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students import EradioSettings, StudentSettings, VitSettings
from model_folders import NOTES
from runs import metrics

SETTINGS = [TransformerHeadSettings(num_heads=4), LadderHeadSettings(hidden_dim=8)]
VIT = VitSettings(dim=64, depth=2, num_heads=4, num_registers=3, max_image_size=128)
WORDS = {
    "transformer": ("heads={summary: {type: transformer, num_heads: 2}, spatial: {type: transformer, num_heads: 2}}",),
    "ladder": ("heads={summary: {type: ladder, hidden_dim: 8}, spatial: {type: ladder, hidden_dim: 8}}", "student.depth=3"),
}


def config_of(settings: HeadSettings, student: StudentSettings = VIT) -> NetworkConfig:
    """One head of this kind, and one that every format has a place for."""
    special = HeadConfig(
        summary=HeadPart(head=settings, dim=7), spatial=HeadPart(head=settings, dim=9), slot=0 if student.shares_summary else 1
    )
    plain = HeadConfig(summary=HeadPart(head=MlpHeadSettings(hidden_dim=8), dim=5), spatial=HeadPart(head=MlpHeadSettings(), dim=6))
    return NetworkConfig(student=student, num_summaries=2, heads={"plain": plain, "special": special}, image_size=64)


@pytest.fixture(params=SETTINGS, ids=lambda settings: settings.type)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = config_of(request.param)
    network = config.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write_folder(tmp_path / "model", config, network, NOTES)
    return tmp_path / "model"


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def test_a_model_folder_keeps_them(folder: Path):
    model = amradio.load(folder)
    first = model(images(2, 3, 64, 96), heads=["special"])["special"]
    assert (first.summary.shape, first.spatial.shape) == ((2, 7), (2, 4, 6, 9))
    again = amradio.load(folder)(images(2, 3, 64, 96), heads=["special"])["special"]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_the_features_of_blocks_are_those_of_intermediates(folder: Path):
    for windows in (None, 2):
        student = amradio.load(folder).network.student
        student.set_windows(windows, num_global=1)
        last, blocks = student.forward_blocks(images(2, 3, 64, 96))
        assert len(blocks) == student.num_blocks == 2
        wanted = student.intermediates(images(2, 3, 64, 96))
        for found, other in zip([*blocks, last], [*wanted, student(images(2, 3, 64, 96))], strict=True):
            torch.testing.assert_close(found.summary, other.summary, rtol=0, atol=0)
            torch.testing.assert_close(found.spatial, other.spatial, rtol=0, atol=0)


@torch.inference_mode()
def test_the_other_kind_and_the_blocks_are_read(folder: Path):
    """A ladder does not follow the last block alone; a transformer's summary follows the map."""
    network = amradio.load(folder).network
    before = network(images(1, 3, 64, 64), None, ["special"])["special"]
    if network.reads_blocks(["special"]):
        network.head("special").summary.steps[0].weight.zero_()
    else:
        network.student.patch_generator.embedder.weight.zero_()
    assert not torch.allclose(network(images(1, 3, 64, 64), None, ["special"])["special"].summary, before.summary)


@torch.inference_mode()
def test_images_of_several_sizes_in_one_call_are_those_alone(folder: Path):
    network = amradio.load(folder).network
    some = [images(3, 64, 96), images(3, 32, 64), images(3, 64, 96) / 2]
    for found, image in zip(network.pack(some, ["special", "plain"]), some, strict=True):
        for name, features in network(image[None], None, ["special", "plain"]).items():
            torch.testing.assert_close(found[name].summary, features.summary, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[name].spatial, features.spatial, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_an_evaluation_sees_what_the_model_predicts(folder: Path):
    model = amradio.load(folder)
    rows = predictors(model, {}, 64, "square")
    found, wanted = rows["student/special"](images(2, 3, 64, 64)), model(images(2, 3, 64, 64), heads=["special"])["special"]
    torch.testing.assert_close(found.summary, wanted.summary)
    torch.testing.assert_close(found.spatial, wanted.spatial)


@pytest.mark.slow
@pytest.mark.parametrize("name", [form.name for form in formats.FORMATS])
def test_formats_without_a_place_leave_them_out_and_refuse_them_by_name(folder: Path, tmp_path: Path, name: str, capsys):
    form = next(form for form in formats.FORMATS if form.name == name)
    out = tmp_path / f"out{form.suffix}"
    exported = amradio.export(folder, name, out)
    carries = name in ("amradio", "onnx")
    assert ("special" in exported.left_out) == (not carries)
    assert ("special/spatial" in dict(exported.differences)) == carries
    if not carries:
        assert "special" in capsys.readouterr().out
        with pytest.raises(UserError, match=f"heads: format '{name}' has no place for head 'special'; leave it out"):
            amradio.export(folder, name, tmp_path / f"other{form.suffix}", heads=["special"])


def test_a_student_without_blocks_has_no_ladder():
    with pytest.raises(UserError, match="a head of type 'ladder' reads the blocks of a student of type 'vit'"):
        config_of(LadderHeadSettings(), EradioSettings(size="xxxtiny")).build()
    assert config_of(TransformerHeadSettings(num_heads=1), EradioSettings(size="xxxtiny")).build() is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORDS)
def test_they_are_trained_and_a_model_with_them_is_continued(kind: str, recipe, tmp_path: Path):
    first = amradio.distill(recipe(*WORDS[kind], "stages.0.steps=6", "optimizer.learning_rate=3e-3", "evaluate.every=6"))
    words = (f"student={{type: model, path: {first}}}", "stages.0.steps=1", "evaluate.every=1", f"out={tmp_path / 'again'}")
    second = amradio.distill(recipe(*words))
    start, before = [row for row in metrics(first) if "val/clip/spatial/cosine" in row]
    assert before["val/sam/spatial/standardized_cosine"] > start["val/sam/spatial/standardized_cosine"] + 0.1
    after = next(row for row in metrics(second) if "val/clip/spatial/cosine" in row)
    assert after["val/clip/spatial/cosine"] == pytest.approx(before["val/clip/spatial/cosine"], abs=1e-4)
    assert amradio.load(second).config.heads["clip"].spatial.head.type == kind


def test_a_ladder_of_another_student_is_refused_in_one_line(recipe_file: Path, amradio, tmp_path: Path):
    words = ("student={type: eradio, size: xxxtiny}", "heads.spatial=ladder", "stages.0.partitions.0.image_size=64")
    ended = amradio("distill", recipe_file, *words)
    assert ended.code == 2
    assert "Traceback" not in ended.errors
    assert "a head of type 'ladder' reads the blocks of a student of type 'vit'; take that, or another head" in ended.errors
