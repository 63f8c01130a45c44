"""Stages that freeze the student or restart the optimizer, learning rates of parts, and the optimizers by name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_distributed import assert_near
from torch import Tensor, nn

import amradio as package
from amradio.engine.checkpoint import Checkpoints
from amradio.engine.optimizer import FACTOR, build_optimizer, set_rates
from amradio.engine.rates import rate_factors
from amradio.engine.settings import OptimizerSettings
from amradio.errors import UserError
from amradio.heads import MlpHeadSettings
from amradio.network import HeadConfig, HeadPart, Network, NetworkConfig
from amradio.recipe import Recipe
from amradio.students import CustomStudent
from amradio.students.eradio_settings import EradioSettings
from amradio.students.timm_settings import TimmSettings
from amradio.students.vit_settings import VitSettings
from amradio.tensors import read_tensors
from processes import start_several
from runs import assert_same, metrics

ONE = ("teachers.dino=null", "teachers.sam=null", "evaluate.every=null", "engine.checkpoint_every=1", "engine.keep=9")
ERADIO = (
    "student={type: eradio, size: xxxtiny, dim: 8, stem_dim: 8, depths: [1, 1, 1, 1], num_heads: [2, 2], window_size: 3, cpb_hidden_dim: 8}"
)
PARTITIONS = "partitions: [{image_size: 32, batch_size: 4}]"
STAGE = f"steps: 3, frozen_steps: 1, {PARTITIONS}"
SCHEDULE = (
    f"stages=[{{{STAGE}}}, {{{STAGE}, restart: true, rate_factor: 0.5}}]",
    "optimizer={algorithm: lamb, rates: {heads: 2.0, norms: 0.5}, layer_decay: 0.8}",
    "engine.ema=0.5",
    "student.depth=2",
)


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    return read_tensors(folder / "checkpoints" / f"step_{step:09d}" / "task.safetensors")


def moments(folder: Path, step: int) -> dict:
    found = Checkpoints(folder / "checkpoints", 9)
    path = folder / "checkpoints" / f"step_{step:09d}"
    assert step in found.steps()
    return torch.load(path / "optimizer.pt", weights_only=True)["optimizer"]["state"]


# stages


@pytest.mark.slow
def test_the_student_keeps_its_bits_while_it_is_frozen(recipe: Callable[..., Recipe]):
    """BatchNorm statistics as well, whatever the decay; the heads learn meanwhile."""
    words = ("stages.0.steps=4", "stages.0.frozen_steps=2", "stages.0.partitions.0.image_size=64", "optimizer.weight_decay=0.5")
    folder = package.distill(recipe(*ONE, ERADIO, *words))
    steps = [weights(folder, step) for step in (1, 2, 3)]
    student = [key for key in steps[0] if key.startswith("network.student.")]
    heads = [key for key in steps[0] if key.startswith("network.heads.") and steps[0][key].ndim == 2]
    assert any(key.endswith("running_mean") for key in student)
    assert not [key for key in student if not torch.equal(steps[0][key], steps[1][key])]
    assert not [key for key in heads if torch.equal(steps[0][key], steps[1][key])]
    moved = [key for key in student if not torch.equal(steps[1][key], steps[2][key])]
    assert len(moved) > len(student) / 2
    assert any(key.endswith("running_mean") for key in moved)
    assert len(moments(folder, 2)) < len(moments(folder, 3)), "the optimizer has no averages of what is frozen"


@pytest.mark.slow
def test_a_stage_that_restarts_forgets_the_averages(recipe: Callable[..., Recipe], tmp_path: Path):
    stage = f"steps: 2, {PARTITIONS}"
    for restart, wanted in (("false", 3), ("true", 1)):
        words = (f"stages=[{{{stage}}}, {{{stage}, restart: {restart}, rate_factor: 0.5}}]", f"out={tmp_path / restart}")
        folder = package.distill(recipe(*ONE, *words))
        assert {float(state["step"]) for state in moments(folder, 3).values()} == {wanted}
        assert [row["learning_rate"] for row in metrics(folder)] == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])


@pytest.mark.slow
def test_a_run_resumes_across_a_restart_and_the_end_of_freezing(recipe: Callable[..., Recipe], tmp_path: Path):
    whole = package.distill(recipe(*ONE, *SCHEDULE, f"out={tmp_path / 'whole'}"))
    for step in (1, 3, 4):  # before the student is released; before the restart; after it
        cut = tmp_path / f"from {step}"
        shutil.copytree(whole, cut, symlinks=True)
        for later in range(step + 1, 7):
            shutil.rmtree(cut / "checkpoints" / f"step_{later:09d}")
        package.distill(recipe(*ONE, *SCHEDULE, f"out={cut}"))
        assert_same(whole, cut)


@pytest.mark.slow
def test_two_processes_follow_the_schedule_as_one(recipe_file: Path, recipe: Callable[..., Recipe], tmp_path: Path):
    one = package.distill(recipe(*ONE, *SCHEDULE, f"out={tmp_path / 'one'}"))
    words = ("distill", recipe_file, *ONE, *SCHEDULE, f"out={tmp_path / 'two'}")
    ended = [running.wait() for running in start_several(2, *words, folder=tmp_path / "printed")]
    assert [each.code for each in ended] == [0, 0], [each.errors for each in ended]
    assert "stage 2: heads alone are trained in its first 1 steps" in ended[0].output
    assert_near(one, tmp_path / "two")


def test_what_cannot_be_is_refused(recipe: Callable[..., Recipe]):
    with pytest.raises(UserError) as caught:
        recipe("stages.0.restart=true", "stages.0.frozen_steps=13")
    assert caught.value.problems == (
        "stages.0.frozen_steps: 13 of 12 steps; give at most as many as the stage has",
        "stages.0.restart: the optimizer has no averages to forget before the first stage; leave it out",
    )
    with pytest.raises(UserError, match=r"epsilon: lion divides by no average, so 0\.1 would do nothing; leave it out"):
        recipe("optimizer={algorithm: lion, epsilon: 0.1}")
    student = CustomStudent(nn.Conv2d(3, 4, 8, 8), patch_size=8)
    with pytest.raises(UserError, match=r"optimizer\.layer_decay: a student of this kind has no blocks whose order is known; leave it out"):
        package.distill(recipe("optimizer.layer_decay=0.5", "student={type: custom}"), student=student)


# learning rates of parts


def network(student: VitSettings | EradioSettings | TimmSettings) -> Network:
    part = HeadPart(head=MlpHeadSettings(hidden_dim=8), dim=5)
    return NetworkConfig(student=student, num_summaries=1, heads={"clip": HeadConfig(summary=part, spatial=part)}).build()


def test_parts_have_their_rates():
    built = network(VitSettings(dim=16, depth=2, num_heads=2, patch_size=8, max_image_size=32))
    settings = OptimizerSettings.model_validate({"rates": {"body": 0.5, "heads": 2.0, "norms": 3.0}, "layer_decay": 0.5})
    factors = rate_factors(built, settings)
    assert factors["student.blocks.1.mlp.fc1.weight"] == 0.5
    assert factors["student.blocks.1.norm1.bias"] == 1.5
    assert factors["student.blocks.0.mlp.fc1.weight"] == 0.25
    assert factors["student.patch_generator.pos_embed"] == 0.125
    assert {factors[name] for name in factors if name.startswith("heads.")} == {2.0, 6.0}
    assert factors.keys() == dict(built.named_parameters()).keys()
    optimizer = build_optimizer(built, settings, {"student.patch_generator.pos_embed"}, factors)
    set_rates(optimizer, 0.1, [group[FACTOR] for group in optimizer.param_groups])
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates == {name: pytest.approx(0.1 * factor) for name, factor in factors.items()}


@pytest.mark.parametrize(
    ("student", "first", "last"),
    [
        (EradioSettings(size="xxxtiny", dim=8, summaries="per_teacher"), "patch_embed.", ("high_res_neck.", "summary_queries")),
        (TimmSettings(model="test_vit", summaries="per_teacher"), "trunk.patch_embed.", ("trunk.norm.", "summarise.")),
        (TimmSettings(model="test_convnext"), "trunk.stem.", ("trunk.head.norm.",)),
    ],
    ids=["eradio", "timm vit", "timm convnext"],
)
def test_layers_are_counted_from_the_input(student, first: str, last: tuple[str, ...]):
    built = student.build(2)
    layers = built.layers()
    assert layers.keys() == dict(built.named_parameters()).keys()
    assert {layers[name] for name in layers if name.startswith(first)} == {min(layers.values())}
    assert {layers[name] for name in layers if name.startswith(last)} <= {max(layers.values())}
    assert set(layers.values()) == set(range(min(layers.values()), max(layers.values()) + 1))
    assert len(set(layers.values())) > 3


# optimizers by name


@pytest.mark.parametrize("name", ["adamw", "lamb", "nadamw", "lion"])
def test_every_optimizer_learns_decays_matrices_alone_and_keeps_to_its_groups(name: str):
    torch.manual_seed(0)
    model = nn.Linear(6, 6)
    settings = OptimizerSettings.model_validate({"algorithm": name, "learning_rate": 1e-2, "weight_decay": 0.5})
    optimizer = build_optimizer(model, settings, (), {"bias": 2.0})
    assert [(len(group["params"]), group["weight_decay"], group[FACTOR]) for group in optimizer.param_groups] == [
        (1, 0.5, 1.0),
        (0, 0.0, 1.0),
        (1, 0.0, 2.0),
    ]
    images, wanted = torch.randn(64, 6), torch.randn(64, 6)
    found = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(images) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.9 * found[0]
    before = model.bias.detach().clone()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(model.bias, before), "no gradient, no change"


def test_lamb_is_its_formula():
    """You et al., arXiv 1904.00962, algorithm 2, in float64: Adam's update and the decay, scaled to the norm of the weights."""
    rate, decay, (first, second), epsilon = 0.1, 0.3, (0.8, 0.95), 1e-6
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    settings = OptimizerSettings(algorithm="lamb", learning_rate=rate, weight_decay=decay, betas=(first, second), epsilon=epsilon)
    optimizer = build_optimizer(model, settings, ())
    wanted = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    m = {name: torch.zeros_like(value) for name, value in wanted.items()}
    v = {name: torch.zeros_like(value) for name, value in wanted.items()}
    for step in range(1, 5):
        for name, parameter in model.named_parameters():
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient.clone()
            m[name] = first * m[name] + (1 - first) * gradient
            v[name] = second * v[name] + (1 - second) * gradient**2
            update = m[name] / (1 - first**step) / ((v[name] / (1 - second**step)).sqrt() + epsilon)
            if name == "weight":  # what does not decay is not scaled either, as in NVIDIA's LAMB
                update = update + decay * wanted[name]
                update = update * wanted[name].norm() / update.norm()
            wanted[name] = wanted[name] - rate * update
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-10, atol=1e-12)
