"""Spectral reparametrisation, weight noise, drop path and activation checkpointing of every student."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amradio.errors import UserError
from amradio.formats.radio.spectral import realise
from amradio.students import CustomStudent, EradioSettings, Student, TimmSettings, VitSettings
from amradio.students.draws import derived
from amradio.students.drop_path import DropPath, add_drop_path
from amradio.students.reparametrization import begin_step, parametrizations, plain, plain_state, reparametrize, without_decay

SMALL_ERADIO = {
    "size": "xxxtiny",
    "dim": 8,
    "stem_dim": 8,
    "depths": (1, 1, 2, 1),
    "num_heads": (2, 2),
    "window_size": 2,
    "cpb_hidden_dim": 8,
}
VIT = {"dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8, "max_image_size": 64, "num_registers": 1}
STUDENTS: dict[str, Callable[..., Student]] = {
    "vit": lambda **more: VitSettings.model_validate(VIT | more).build(2),
    "eradio": lambda **more: EradioSettings.model_validate(SMALL_ERADIO | more).build(1),
    "timm vit": lambda **more: TimmSettings.model_validate({"model": "test_vit"} | more).build(1),
    "timm convnext": lambda **more: TimmSettings.model_validate({"model": "test_convnext"} | more).build(1),
    "timm resnet": lambda **more: TimmSettings.model_validate({"model": "test_resnet"} | more).build(1),
}


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def draws(count: int = 3, seed: int = 2) -> Tensor:
    return torch.rand(count, 8, generator=torch.Generator().manual_seed(seed))


def spectral_norm(weight: Tensor) -> float:
    return torch.linalg.matrix_norm(weight.detach().double(), ord=2).item()


# spectral reparametrisation


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "eradio", "timm vit"])
def test_a_reparametrised_student_is_what_it_was_and_what_it_is_written_as(name: str):
    torch.manual_seed(0)
    student = STUDENTS[name]().eval()
    before = student(images())
    reparametrize(student, spectral=True, deviation=0.0)
    torch.testing.assert_close(student(images()).spatial, before.spatial, rtol=1e-4, atol=1e-5)
    for step in range(3):  # as in training: matrices that no longer fit their first u and v
        for _, chain in parametrizations(student):
            chain.original.data += 0.1 * torch.randn_like(chain.original)
        begin_step(student, 0, step)
    written = plain(student)
    assert not list(parametrizations(written))
    torch.testing.assert_close(written(images()).spatial, student(images()).spatial, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, plain_state(student)[key]) for key, value in written.state_dict().items())
    assert list(parametrizations(student)), "the student itself is left alone"


def test_queries_keys_and_values_have_scales_of_their_own_which_are_the_norms():
    torch.manual_seed(0)
    student = STUDENTS["vit"]()
    reparametrize(student, spectral=True, deviation=0.0)
    qkv = student.get_submodule("blocks.1.attn.qkv")
    with torch.no_grad():
        for number, part in enumerate(qkv.parametrizations.weight[0].parts):
            part.scale.fill_(float(number))
    for step in range(200):
        begin_step(student, 0, step)
    wanted = [nn.functional.softplus(torch.tensor(float(number))).item() + 0.05 for number in range(3)]
    assert [spectral_norm(rows) for rows in qkv.weight.chunk(3)] == pytest.approx(wanted, rel=1e-3)
    spared = without_decay(student)
    assert len(spared) == 4 * len(student.blocks)
    scales = [parameter for key, parameter in student.named_parameters() if key.endswith(".scale")]
    assert len(scales) == 6 * len(student.blocks)
    assert all(scale.ndim == 2 for scale in scales), "so that it decays, as matrices do"


def test_the_layout_is_that_of_published_checkpoints():
    """Names of `shared/facts/radio.md` 2.3, as the reader of published files understands them."""
    student = STUDENTS["vit"]()
    reparametrize(student, spectral=True, deviation=0.0)
    state = student.state_dict()
    start = "blocks.0.attn.qkv.parametrizations.weight"
    wanted = {f"{start}.original"} | {f"{start}.0.parts.{n}.{key}" for n in range(3) for key in ("scale", "_u", "_v", "_sn_version")}
    assert {key for key in state if key.startswith("blocks.0.attn.qkv.param")} == wanted
    assert state[f"{start}.0.parts.0.scale"].shape == (1, 1)
    assert "blocks.0.mlp.fc1.parametrizations.weight.0.scale" in state
    assert "patch_generator.embedder.weight" in state
    read, wanted_state = realise(state, "file"), plain_state(student)
    assert read.keys() == wanted_state.keys()
    for key, value in wanted_state.items():
        torch.testing.assert_close(read[key], value, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_formula_and_flow_into_scales():
    torch.manual_seed(0)
    student = STUDENTS["vit"]().double()
    reparametrize(student, spectral=True, deviation=0.0)
    layer = student.get_submodule("blocks.0.mlp.fc1")
    chain = layer.parametrizations.weight
    direction = torch.randn_like(chain.original)
    (layer.weight * direction).sum().backward()
    original = chain.original.detach().clone().requires_grad_()
    u, v, s = chain[0]._u, chain[0]._v, chain[0].scale.detach().clone().requires_grad_()
    wanted = ((torch.log1p(s.exp()) + 0.05) * original / torch.einsum("o,oi,i->", u, original, v) * direction).sum()
    wanted.backward()
    torch.testing.assert_close(chain.original.grad, original.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(chain[0].scale.grad, s.grad, rtol=1e-10, atol=1e-12)


# weight noise


def test_noise_is_a_function_of_seed_and_step_and_is_off_in_evaluation():
    student = STUDENTS["vit"]().train()
    quiet = student.eval()(images()).spatial
    reparametrize(student, spectral=False, deviation=0.1)
    assert not without_decay(student)
    found = {}
    for seed, step in ((0, 1), (0, 2), (1, 1), (0, 1)):
        begin_step(student, seed, step)
        found.setdefault((seed, step), []).append(student.train()(images(), draws()).spatial.detach())
    assert torch.equal(*found[0, 1])
    assert not torch.equal(found[0, 1][0], found[0, 2][0])
    assert not torch.equal(found[0, 1][0], found[1, 1][0])
    assert torch.equal(student.eval()(images()).spatial, quiet)
    student.train()
    factors = torch.cat([chain[0].factor.flatten() for _, chain in parametrizations(student)])
    assert factors.mean().item() == pytest.approx(1, abs=0.005)
    assert factors.std().item() == pytest.approx(0.1, rel=0.03)
    assert torch.equal(plain(student).eval()(images()).spatial, quiet)


def test_a_student_without_linear_layers_is_refused():
    student = CustomStudent(nn.Conv2d(3, 4, 8, 8), patch_size=8)
    with pytest.raises(UserError, match="no linear layers"):
        reparametrize(student, spectral=True, deviation=0.0)
    with pytest.raises(UserError, match="no residual branches"):
        add_drop_path(student, 0.1)


# drop path


def test_derived_numbers_are_uniform_and_differ():
    numbers = torch.stack([derived(draws(4000), number) for number in range(6)])
    assert 0 <= numbers.min() < 0.01 < 0.99 < numbers.max() < 1
    assert numbers.mean(1).tolist() == pytest.approx([0.5] * 6, abs=0.02)
    assert (torch.corrcoef(numbers) - torch.eye(6)).abs().max() < 0.06


@pytest.mark.parametrize("name", ["vit", "eradio", "timm vit", "timm convnext"])
def test_branches_are_dropped_by_sample_in_training_alone(name: str):
    torch.manual_seed(0)
    student = STUDENTS[name]().eval()
    whole = student(images()).spatial
    add_drop_path(student, 0.5)
    assert torch.equal(student(images()).spatial, whole)
    rates = [path.rate for path in student.drop_paths]
    assert (rates[0], rates[-1]) == (0, 0.5)
    assert rates == sorted(rates)
    assert set(student.drop_paths) == {module for module in student.modules() if isinstance(module, DropPath)}
    student.take_draws(draws())
    for path in student.drop_paths:
        path.train()  # the rest stays in evaluation: no positions are drawn, and BatchNorm keeps images apart
    dropped = student(images()).spatial
    assert not torch.equal(dropped, whole)
    student.take_draws(draws()[1:2])
    torch.testing.assert_close(student(images()[1:2]).spatial, dropped[1:2], rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    path = DropPath(0.3, 1).train()
    path.draws = draws(5000)
    rows = path(torch.ones(10_000, 2))[::2, 0]
    assert rows.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert rows.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(path(torch.ones(10_000, 2))[1::2, 0], rows), "windows of one sample go together"


# activation checkpointing


@pytest.mark.parametrize("name", STUDENTS)
def test_checkpointing_saves_memory_and_changes_no_gradient(name: str):
    torch.manual_seed(0)
    student = STUDENTS[name](depth=6) if name == "vit" else STUDENTS[name]()
    cheap = STUDENTS[name](gradient_checkpointing=True, **({"depth": 6} if name == "vit" else {}))
    cheap.load_state_dict(student.state_dict())
    kept: dict[str, int] = {}
    for label, module in (("plain", student), ("cheap", cheap)):
        add_drop_path(module, 0.2) if name != "timm resnet" else None
        module.train()
        module.take_draws(draws())
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() if tensor.is_leaf is False or not tensor.requires_grad else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = module(images(), draws())
        kept[label] = sum(sizes)
        (features.spatial.square().mean() + features.summary.square().mean()).backward()
    gradients = dict(cheap.named_parameters())
    for key, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[key].grad, parameter.grad, rtol=1e-6, atol=1e-8)
    buffers = dict(cheap.named_buffers())
    assert all(torch.equal(value, buffers[key]) for key, value in student.named_buffers())
    assert kept["cheap"] < (0.75 if name == "timm resnet" else 0.5) * kept["plain"], kept  # most of a tiny ResNet is its stem
    assert isinstance(copy.deepcopy(cheap), type(student))
