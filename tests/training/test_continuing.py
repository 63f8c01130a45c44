"""Going on from a model: what is kept, new and dropped; the same numbers at step 0; parts that stay frozen; resuming without the model."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import amradio
from amradio import UserError
from amradio import distill as run_distill
from amradio.commands.distill import dry_run
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.features import Features
from amradio.heads import AttentionHeadSettings, LinearHeadSettings, MlpHead, MlpHeadSettings
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students.base import CLIP_MEAN, CLIP_STD
from amradio.students.vit_settings import VitSettings
from amradio.teachers import Teacher
from amradio.training import Trainer, load_teachers
from amradio.training.continuation import plan
from runs import assert_same, losses, metrics, state

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
CONDITIONER = {"norm_mean": CLIP_MEAN, "norm_std": CLIP_STD}
SHORT = ("stages.0.steps=6", "evaluate.every=6", "engine.checkpoint_every=3")
TOKENS = "student.patch_generator.cls_token.token"


def vit(num_summaries: int, heads: dict[str, HeadConfig], **more) -> NetworkConfig:
    student = VitSettings(dim=32, depth=2, num_heads=2, patch_size=8, max_image_size=64, num_registers=2)
    return NetworkConfig(student=student, num_summaries=num_summaries, heads=heads, **more)


def head(summary: int | None = None, spatial: int | None = None, slot: int = 0, source: str = "a") -> HeadConfig:
    parts = (dim and HeadPart(head=MlpHeadSettings(hidden_dim=16), dim=dim) for dim in (summary, spatial))
    return HeadConfig(summary=next(parts), spatial=next(parts), slot=slot, teacher={"source": source})


# the plan


def test_heads_are_matched_by_name_and_summaries_follow_them():
    model = vit(3, {"clip": head(8, 9, 0), "dino": head(10, 11, 1), "sam": head(12, 13, 2)}, summary_slots=[0, 1], image_size=64)
    found = plan(model, {"sam": head(12, 13), "mine": head(5, 6), "dino": head(10, 11), "more": head(None, 7)}, 48)
    assert list(found.config.heads) == ["sam", "mine", "dino", "more"]
    assert found.summaries == (1, 2, None)
    assert {name: each.slot for name, each in found.config.heads.items()} == {"sam": 1, "mine": 2, "dino": 0, "more": 0}
    assert (found.config.num_summaries, found.config.summary_slots, found.config.image_size) == (3, [0, 2], 48)
    assert found.new_summaries == (2,)
    assert found.kept == (("sam", "summary"), ("sam", "spatial"), ("dino", "summary"), ("dino", "spatial"))
    assert "head mine: summary and spatial new" in found.notes
    assert "dropped, as no teacher has its name: head clip" in found.notes
    assert "summaries: 2 of 3 kept, 1 new" in found.notes


def test_a_teacher_that_stays_keeps_its_summary_where_that_is_no_longer_learnt():
    """SAM's summary is usually given no weight; its token is part of what the other tokens see."""
    found = plan(vit(2, {"clip": head(8, 9, 0), "sam": head(12, 13, 1)}), {"sam": head(None, 13)}, 32)
    assert found.summaries == (1,)
    assert found.config.heads["sam"].summary is None
    assert found.new_summaries == ()


def test_a_new_head_reads_a_summary_that_no_head_read_before_one_is_made():
    found = plan(vit(3, {}, summary_slots=[0, 1]), {"mine": head(5, 6)}, 32)
    assert found.summaries == (0, 1, 2)
    assert (found.config.heads["mine"].slot, found.config.summary_slots, found.new_summaries) == (0, [0, 1], (0,))
    found = plan(vit(2, {"clip": head(8, None, 1)}), {"clip": head(8), "a": head(5), "b": head(6)}, 32)
    assert found.summaries == (0, 1, None)
    assert {name: each.slot for name, each in found.config.heads.items()} == {"clip": 1, "a": 0, "b": 2}
    assert found.new_summaries == (0, 2)


def test_a_student_keeps_one_summary_at_least():
    found = plan(vit(1, {"clip": head(8, 9)}), {"mine": head(None, 6)}, 32)
    assert found.summaries == (0,)
    assert any("no head in common: the model has clip" in note for note in found.notes)


def test_statistics_of_blocks_that_are_trained_on_are_dropped():
    found = plan(vit(1, {"clip": head(8, 9)}, rotates=True, normalizes_blocks="shared"), {"clip": head(8, 9)}, 32)
    assert (found.config.rotates, found.config.normalizes_blocks) == (True, None)


def test_a_kept_head_keeps_its_layers_whatever_they_are():
    old = HeadConfig(
        summary=HeadPart(head=LinearHeadSettings(), dim=8),
        spatial=HeadPart(head=AttentionHeadSettings(num_heads=2, upsample_factor=2), dim=9),
        teacher={"source": "b"},
    )
    found = plan(vit(1, {"clip": old}), {"clip": head(8, 9)}, 32)
    assert (found.config.heads["clip"].summary, found.config.heads["clip"].spatial) == (old.summary, old.spatial)
    assert found.config.heads["clip"].teacher == {"source": "a"}
    assert "head clip: it was made for b and is now taught by a" in found.notes


def test_other_channels_are_refused_for_all_heads_at_once():
    with pytest.raises(UserError) as caught:
        plan(vit(2, {"clip": head(8, 9, 0), "dino": head(10, 11, 1)}), {"clip": head(8, 7), "dino": head(12, 11)}, 32)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "teachers.clip: its spatial has 7 channels, the model's head 'clip' says 9",
        "teachers.dino: its summary has 12 channels, the model's head 'dino' says 10",
    ]


# runs


@pytest.fixture
def finished(recipe, tmp_path) -> Path:
    """The run folder of six steps from three teachers."""
    return run_distill(recipe(*SHORT, "student.depth=2", f"out={tmp_path / 'finished'}"))


def goes_on(recipe, finished: Path, *words: str):
    """The base recipe from the finished model on. (A mapping whose type changes starts afresh.)"""
    return recipe(*SHORT, f"student={{type: model, path: {finished}}}", *words)


def training(recipe, own: dict[str, Teacher] | None = None) -> Trainer:
    return Trainer(recipe, load_teachers(recipe, own or {}), Processes(torch.device("cpu")), Log(None))


def agreement(folder: Path, step: int) -> dict[str, float]:
    """The held-out cosines of a step, by name."""
    (row,) = (row for row in metrics(folder) if row["step"] == step and "val/dino/spatial/cosine" in row)
    return {key: value for key, value in row.items() if key.startswith("val/")}


@pytest.mark.slow
def test_at_step_0_it_agrees_as_the_finished_model_did(recipe, finished):
    folder = run_distill(goes_on(recipe, finished))
    before, after = agreement(finished, 6), agreement(folder, 0)
    assert len(before) == 5 * 4
    assert after == pytest.approx(before, abs=1e-3)
    assert agreement(folder, 6)["val/dino/spatial/standardized_cosine"] > before["val/dino/spatial/standardized_cosine"]
    assert amradio.load(folder).heads == ("clip", "dino", "sam")


@pytest.mark.slow
def test_the_backbone_and_the_kept_heads_begin_with_the_same_bits(recipe, finished):
    run = training(goes_on(recipe, finished, "teachers.sam=null"))
    images = torch.rand(2, 3, 32, 48)
    model = amradio.load(finished)
    with torch.no_grad():
        found = run.context.task.network.eval()(images, None, ["clip", "dino"])
    for name, features in model(images, heads=["clip", "dino"]).items():
        for one, other in zip(found[name], features, strict=True):
            assert torch.equal(one, other), name
    assert set(run.context.task.network.heads) == {"clip", "dino"}


class Colours(Teacher):
    """Mean colours: summary [B, 3], spatial [B, H/8, W/8, 3]."""

    def __init__(self) -> None:
        super().__init__(mean=(0.5,) * 3, std=(0.25,) * 3, patch_size=8, dims=(3, 3), input_size=None, licence="none", source="colours")

    def encode(self, images: torch.Tensor) -> Features:
        return Features(images.mean((2, 3)), torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1))


NEW = ("teachers.mine={type: custom}", "teachers.clip=null")
"""One teacher goes, one comes."""


@pytest.mark.slow
def test_a_teacher_of_ones_own_gets_a_head_and_a_summary(recipe, finished, capsys):
    old = load_file(finished / "model" / "model.safetensors")
    run = training(goes_on(recipe, finished, *NEW), {"mine": Colours()})
    assert run.context.config.num_summaries == 2
    tokens = run.context.task.network.state_dict()[TOKENS]
    assert torch.equal(tokens, old[TOKENS][[1, 1, 2]]), "dino's, a copy of it for the new one, the register"
    folder = run_distill(goes_on(recipe, finished, *NEW), teachers={"mine": Colours()})
    printed = capsys.readouterr().out
    for line in (
        f"student continues from {finished}",
        "head dino: summary and spatial kept",
        "head sam: spatial kept",
        "head mine: summary and spatial new",
        "dropped, as no teacher has its name: head clip",
        "summaries: 1 of 2 kept, 1 new",
    ):
        assert line in printed.splitlines()
    model = amradio.load(folder)
    assert model.heads == ("dino", "sam", "mine")
    assert "Made from a model of clip (not stated" in (folder / "model" / "README.md").read_text(), "whose head is gone, but not its terms"
    assert model(torch.rand(1, 3, 32, 32), heads=["mine"])["mine"].summary.shape == (1, 3)
    begun, learnt = (agreement(folder, step)["val/mine/spatial/standardized_cosine"] for step in (0, 6))
    assert learnt > begun


@pytest.mark.slow
def test_upsampling_and_attention_heads_go_on(recipe, tmp_path):
    heads = (
        "heads.by_teacher.sam={spatial: {type: attention, num_heads: 2, depth: 1}}",
        "heads.by_teacher.clip={summary: linear, spatial: {type: mlp, upsample_factor: 2}}",
    )
    finished = run_distill(recipe(*SHORT, *heads, f"out={tmp_path / 'finished'}"))
    folder = run_distill(goes_on(recipe, finished))
    assert agreement(folder, 0) == pytest.approx(agreement(finished, 6), abs=1e-3)
    found = amradio.load(folder).config.heads
    assert found["sam"].spatial.head.type == "attention"
    assert found["clip"].spatial.head.upsample_factor == 2


# parts that are trained


PARTS = {"last_blocks": "{type: last_blocks, count: 1}", "lora": "{type: lora, rank: 2, alpha: 8.0}"}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_what_is_frozen_keeps_its_bits_and_all_else_moves(recipe, finished, part):
    words = (*NEW, f"student.train={PARTS[part]}", "optimizer.weight_decay=0.5", "engine.ema=0.5", "stages.0.steps=3", "evaluate.every=3")
    old = load_file(finished / "model" / "model.safetensors")
    folder = run_distill(goes_on(recipe, finished, *words), teachers={"mine": Colours()})
    found = state(folder)
    student = {key.removeprefix("task/network."): value for key, value in found.items() if key.startswith("task/network.student.")}
    for key, value in student.items():
        moves = key.startswith("student.blocks.1.") if part == "last_blocks" else "lora" in key
        if key == TOKENS:
            assert torch.equal(value[[0, 2]], old[key][[1, 2]]), "the kept token and the register"
            assert not torch.equal(value[1], old[key][1]), "the new one"
        elif "lora" not in key:
            assert torch.equal(value, old[key]) != moves, key
            assert torch.equal(found[f"ema/{key}"], old[key]) != moves, key
        else:
            assert value.abs().sum() > 0, key
            assert not torch.equal(value, found[f"ema/{key}"]), key
    assert {key for key in found if key.startswith("model/student.")} == {f"model/{key}" for key in old if key.startswith("student.")}


@pytest.mark.slow
def test_every_trained_parameter_changes_and_no_other_has_a_gradient(recipe, finished):
    run = training(goes_on(recipe, finished, "student.train=lora"))
    before = {name: value.clone() for name, value in run.context.task.named_parameters()}
    stage = run.context.stages[0]
    for step in range(2):  # a product of which one factor is zero moves the other only from its second step on
        run.optimization.update(stage, step, [next(run.context.feeds.training(group, step)) for group in stage.groups], 1e-2, True)
    for name, value in run.context.task.named_parameters():
        trained = "lora" in name or ".heads." in name
        assert torch.equal(value, before[name]) != trained, name
        assert (value.grad is None) != trained, name
    optimised = {id(p) for group in run.context.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(value) for value in run.context.task.parameters() if value.requires_grad}


@pytest.mark.slow
def test_the_model_folder_holds_merged_weights_that_say_the_same(recipe, finished):
    run = training(goes_on(recipe, finished, "student.train={type: lora, rank: 2}"))
    for name, value in run.context.task.network.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(value, std=0.05)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        trained = run.context.task.network.eval()(images)["backbone"]
    run.context.folder.path.mkdir()
    run.saving.run(1)
    model = amradio.load(run.context.folder.model)
    for one, other in zip(model(images), trained, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert model.config.student.train.type == "all"
    adapters = [key for key in load_file(run.context.folder.path / "checkpoints" / "last" / "task.safetensors") if "lora" in key]
    assert len(adapters) == 2 * 4 * 2


# resuming


@pytest.mark.slow
@pytest.mark.parametrize("part", [None, *PARTS])
def test_a_run_resumes_bit_for_bit_and_without_the_model_it_is_from(recipe, finished, tmp_path, part):
    words = [*NEW, "engine.ema=0.9", "engine.keep=9", "student.gradient_checkpointing=true"]
    words += [f"student.train={PARTS[part]}"] if part else []
    whole = run_distill(goes_on(recipe, finished, *words, f"out={tmp_path / 'whole'}"), teachers={"mine": Colours()})
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped, symlinks=True)
    shutil.rmtree(stopped / "checkpoints" / "step_000000006")
    resumed = goes_on(recipe, finished, *words, f"out={stopped}")
    shutil.rmtree(finished)
    run_distill(resumed, teachers={"mine": Colours()})
    assert list(losses(stopped)) == list(range(1, 7))
    assert_same(whole, stopped)
    with pytest.raises(UserError, match=r"(?s)another recipe; .*student\.train\.count: was (not set|1), is now 2"):
        run_distill(goes_on(recipe, finished, *NEW, "student.train={type: last_blocks, count: 2}", f"out={stopped}"), {"mine": Colours()})


# bad input


def refused(recipe) -> list[str]:
    """What a dry run says, which is what the run says; nothing is written."""
    with pytest.raises(UserError) as caught:
        dry_run(recipe)
    with pytest.raises(UserError) as again:
        run_distill(recipe)
    assert caught.value.problems == again.value.problems
    assert not Path(recipe.out).exists()
    return list(caught.value.problems)


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_kept(recipe, finished, capsys):
    dry_run(goes_on(recipe, finished, "teachers.sam=null", "student.train={type: last_blocks, count: 1}"))
    printed = capsys.readouterr().out
    assert "head clip: summary and spatial kept" in printed
    assert "dropped, as no teacher has its name: head sam" in printed
    assert "student: last_blocks trains 0.01 M parameters" in printed


@pytest.mark.slow
def test_a_path_that_is_no_model(recipe, tmp_path):
    for path, words in ((tmp_path / "nowhere", "there is no such file or folder"), (tmp_path, r"no config.json in it")):
        (problem,) = refused(goes_on(recipe, path))
        assert problem.startswith(f"student.path: {path}: ")
        assert words in problem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["student.train={type: last_blocks, count: 3}"], "student.train.count: the last 3 blocks were asked for, the student has 2"),
        (["heads.by_teacher.sam={spatial: linear}"], "heads.by_teacher.sam: the model's head 'sam' keeps its layers"),
        (["teachers.dino={type: clip, model: CLIP}"], "teachers.dino: its summary has 24 channels, the model's head 'dino' says 32"),
    ],
)
def test_what_does_not_fit_the_model(recipe, finished, teacher_folders, words, message):
    words = [word.replace("CLIP", str(teacher_folders["clip"])) for word in words]
    (problem,) = refused(goes_on(recipe, finished, *words))
    assert problem.startswith(message)


@pytest.mark.slow
def test_a_part_of_random_weights(recipe):
    (problem,) = refused(recipe("student.train=lora"))
    assert problem.startswith("student.train: 'lora' trains a part of weights that exist, and this student begins at random")


@pytest.mark.slow
def test_a_damaged_record_of_the_network(recipe, finished):
    (finished / "network.json").write_text("{")
    with pytest.raises(UserError, match=r"network\.json: line 1: not valid JSON .*; restore this file"):
        run_distill(recipe(*SHORT, "student.depth=2", f"out={finished}"))


@pytest.mark.slow
def test_parts_of_a_student_that_was_started_from_weights(recipe, finished, tmp_path):
    """`start_from`: the heads are new, so every summary is trained; registers are not."""
    words = ("student.depth=2", f"student.start_from={finished / 'model'}", "student.train={type: last_blocks, count: 1}")
    old = load_file(finished / "model" / "model.safetensors")
    found = state(run_distill(recipe(*SHORT, *words)))
    assert torch.equal(found["task/network.student.blocks.0.mlp.fc1.weight"], old["student.blocks.0.mlp.fc1.weight"])
    assert not torch.equal(found["task/network.student.blocks.1.mlp.fc1.weight"], old["student.blocks.1.mlp.fc1.weight"])
    same = [torch.equal(*pair) for pair in zip(found[f"task/network.{TOKENS}"], old[TOKENS], strict=True)]
    assert same == [False, False, True]


# other students and other formats

NARROW = "type: eradio, dim: 8, stem_dim: 8, depths: [1, 1, 1, 1], num_heads: [2, 2], window_size: 2, cpb_hidden_dim: 8"
OTHERS = {
    "eradio": f"student={{{NARROW}, summaries: per_teacher}}",
    "eradio shared": f"student={{{NARROW}}}",
    "timm": "student={type: timm, model: vit_tiny_patch16_224, image_size: 32, summaries: per_teacher}",
    "timm shared": "student={type: timm, model: test_convnext}",
}


@pytest.mark.slow
@pytest.mark.parametrize("student", OTHERS)
def test_other_students_go_on(recipe, tmp_path, student):
    one = ("stages.0.steps=2", "evaluate.every=2", "stages.0.partitions.0.image_size=32")
    finished = run_distill(recipe(*one, OTHERS[student], f"out={tmp_path / 'finished'}"))
    same = run_distill(recipe(*one, f"student={{type: model, path: {finished}}}", f"out={tmp_path / 'same'}"))
    assert agreement(same, 0) == pytest.approx(agreement(finished, 2), abs=1e-3)
    run = training(recipe(*one, f"student={{type: model, path: {finished}}}", *NEW), {"mine": Colours()})
    shares = "shared" in student
    assert run.context.config.num_summaries == (1 if shares else 2)
    assert {name: head.slot for name, head in run.context.config.heads.items()} == {"dino": 0, "sam": 0, "mine": 0 if shares else 1}
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = run.context.task.network.eval()(images, None, ["dino"])["dino"]
    wanted = amradio.load(finished)(images, heads=["dino"])["dino"]
    torch.testing.assert_close(found.summary, wanted.summary, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.spatial, wanted.spatial, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_parts_of_a_timm_student_keep_the_rows_of_other_summaries(recipe, tmp_path):
    """Its summaries are rows of a linear layer, which decays: those that stay must not."""
    words = ("stages.0.steps=2", "evaluate.every=null")
    finished = run_distill(recipe(*words, OTHERS["timm"], f"out={tmp_path / 'finished'}"))
    old = load_file(finished / "model" / "model.safetensors")["student.summarise.weight"]
    going_on = f"student={{type: model, path: {finished}, train: {{type: last_blocks, count: 2}}}}"
    folder = run_distill(recipe(*words, going_on, *NEW, "optimizer.weight_decay=0.5"), teachers={"mine": Colours()})
    new = load_file(folder / "model" / "model.safetensors")
    assert torch.equal(new["student.summarise.weight"][:192], old[192:])
    assert not torch.equal(new["student.summarise.weight"][192:], old[192:])
    frozen = [name for name in new if name.startswith("student.trunk.blocks.9.")]
    before = load_file(finished / "model" / "model.safetensors")
    assert frozen
    assert all(torch.equal(new[name], before[name]) for name in frozen)


@pytest.mark.slow
def test_a_student_without_blocks_is_one_message(recipe, tmp_path):
    words = ("stages.0.steps=1", "evaluate.every=null")
    finished = run_distill(recipe(*words, OTHERS["timm shared"], f"out={tmp_path / 'finished'}"))
    for part in PARTS.values():
        (problem,) = refused(recipe(*words, f"student={{type: model, path: {finished}, train: {part}}}"))
        assert problem.startswith("student.train.")
        assert "take train: all" in problem
    (problem,) = refused(recipe(*words, f"student={{type: model, path: {finished}, align_corners: true}}"))
    assert problem.startswith("student.align_corners: ")


@pytest.mark.slow
def test_how_positions_are_stretched_can_be_chosen(recipe, finished):
    for chosen in (None, True, False):
        words = f"student={{type: model, path: {finished}, align_corners: {'null' if chosen is None else str(chosen).lower()}}}"
        assert training(recipe(*SHORT, words)).context.task.network.student.patch_generator.rule.align_corners is bool(chosen)


class Spoken(Teacher):
    """Any number of channels, each a fixed mixture of mean colours and their squares."""

    def __init__(self, summary: int, spatial: int):
        super().__init__(
            mean=(0.5,) * 3, std=(0.25,) * 3, patch_size=16, dims=(summary, spatial), input_size=None, licence="none", source="mixtures"
        )
        draws = torch.Generator().manual_seed(summary)
        self.register_buffer("mixture", torch.randn(6, summary + spatial, generator=draws))

    def encode(self, images: torch.Tensor) -> Features:
        cells = torch.nn.functional.avg_pool2d(images, 16).permute(0, 2, 3, 1)
        both = torch.cat([cells, cells.square()], -1) @ self.mixture
        return Features(both.mean((1, 2))[:, : self.summary_dim], both[..., self.summary_dim :])


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the reference checkpoints are not on this machine")
@pytest.mark.parametrize("file", ["idx.pth.tar", "upsample.pth.tar", "spectral.pth.tar", "hf_name"])
def test_an_official_checkpoint_goes_on_with_two_of_its_heads_and_a_third_teacher(recipe, file, tmp_path):
    teachers = {"clip": Spoken(32, 40), "dino_v2": Spoken(48, 48), "mine": Spoken(8, 12)}
    words = [f"teachers.{name}={{type: custom}}" for name in teachers] + [f"teachers.{name}=null" for name in ("dino", "sam")]
    words += ["stages=[{steps: 6, partitions: [{image_size: 64, batch_size: 4}]}]", f"student={{type: model, path: {FIXTURES / file}}}"]
    before = amradio.load(FIXTURES / file)
    old = before.network.state_dict()
    run = training(recipe(*words), teachers)
    new = run.context.task.network.state_dict()
    heads = [name for name in new if name.startswith(("heads.clip.", "heads.dino_v2."))]
    assert len(heads) > 20
    assert all(torch.equal(new[name], old[name]) for name in heads)
    assert torch.equal(new[TOKENS], old[TOKENS][[0, 1, 0, *range(3, len(old[TOKENS]))]]), "SAM's token is gone, the registers stayed"
    assert all(torch.equal(new[name], old[name]) for name in new if name.startswith("student.blocks."))
    folder = run_distill(recipe(*words), teachers=teachers)
    model = amradio.load(folder)
    assert model.heads == ("clip", "dino_v2", "mine")
    assert model.summary_dim == 3 * 64
    shapes = {name: features.spatial.shape[1:] for name, features in model(torch.rand(1, 3, 64, 96), heads=model.heads).items()}
    factor = 2 if file.startswith("upsample") else 1
    assert shapes == {"backbone": (4, 6, 64), "clip": (4 * factor, 6 * factor, 40), "dino_v2": (4, 6, 48), "mine": (4, 6, 12)}
    begun, learnt = (sum(row["loss"] for row in metrics(folder) if row["step"] == step and "loss" in row) for step in (1, 6))
    assert learnt < begun
    assert file in (folder / "model" / "README.md").read_text(), "the card names the model whose terms hold"


@pytest.mark.slow
@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the reference checkpoints are not on this machine")
@pytest.mark.parametrize("heads", [(), ("clip", "dino")])
def test_an_official_eradio_goes_on(recipe, heads, tmp_path):
    """Bare, and wrapped as the hub's file is, with two heads; a teacher is new. Its map has 24 channels and stride 8."""
    torch.manual_seed(0)
    state = torch.load(FIXTURES / "eradio_tiny8x.state.pt", weights_only=True)
    file = FIXTURES / "eradio_tiny8x.state.pt"
    if heads:
        file = tmp_path / "eradio.pth.tar"
        official = {f"base_model.{key}": tensor for key, tensor in state.items()}
        official |= {f"input_conditioner.{key}": torch.tensor(value).view(3, 1, 1) for key, value in CONDITIONER.items()}
        for number in range(len(heads)):
            for kind, dim in (("_heads", 6), ("_feature_projections", 7)):
                official |= {f"{kind}.{number}.{key}": tensor for key, tensor in MlpHead(24, 16, dim).state_dict().items()}
        settings = {"model": "eradio", "teachers": [{"name": name} for name in heads], "cls_token_per_teacher": False}
        torch.save({"arch": "eradio", "epoch": 0, "args": argparse.Namespace(**settings, cpe_max_size=None), "state_dict": official}, file)
    teachers = {name: Spoken(6, 7) for name in heads} | {"mine": Spoken(8, 12)}
    words = [f"teachers.{name}={{type: custom}}" for name in teachers] + [f"teachers.{name}=null" for name in ("sam", "clip", "dino")]
    words = [word for word in words if not word.endswith("=null") or word.split(".")[1].split("=")[0] not in heads]
    words += [
        "stages=[{steps: 40, partitions: [{image_size: 64, batch_size: 8}]}]",
        "evaluate.every=40",
        "engine.log_every=40",
        f"student={{type: model, path: {file}}}",
    ]
    run = training(recipe(*words), teachers)
    before, images = amradio.load(file), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = run.context.task.network.eval()(images, None, heads)
    for name, features in before(images, heads=heads).items():
        for one, other in zip(found[name], features, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    folder = run_distill(recipe(*words), teachers=teachers)
    model = amradio.load(folder)
    assert model.heads == (*heads, "mine")
    assert model.config.student.window == "fixed", "as the file was trained"
    assert model(images, heads=["mine"])["mine"].spatial.shape == (2, 8, 12, 12)
    # Of the training losses: 40 steps change held-out cosines by less than rounding changes them from machine to machine.
    curve = [row["mine/spatial/loss"] for row in metrics(folder) if "mine/spatial/loss" in row]
    assert sum(curve[-3:]) < 0.95 * sum(curve[:3])
    assert file.name in (folder / "model" / "README.md").read_text()
