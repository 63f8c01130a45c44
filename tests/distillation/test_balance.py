"""Balance: each against its formula, gradients, state, and what is drawn."""

import math

import pytest
import torch
from torch import Tensor

from amradio.distillation.balance import BALANCES, AdaLossSettings, FixedSettings, TeacherDroppingSettings, UncertaintySettings
from amradio.distillation.random_numbers import uniform
from amradio.distillation.weighting import StepLosses

WEIGHTS = {"a/summary": 2.0, "a/spatial": 0.5, "b/spatial": 1.0, "c/summary": 1.5}


def losses(values: dict[str, Tensor], draws: Tensor | None = None) -> StepLosses:
    """values: [B] by name."""
    return StepLosses({name: value.mean() for name, value in values.items()}, values, draws)


def some(batch: int = 6, seed: int = 0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.rand(batch, generator=draws).requires_grad_(True) for name in WEIGHTS}


def fixed(values: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[name] * value.mean() for name, value in values.items()]).sum()


@pytest.mark.parametrize("settings", [kind() for kind in BALANCES], ids=lambda s: s.type)
def test_at_first_every_balance_multiplies_by_the_weights(settings):
    """Teacher dropping in evaluation; Kendall's has log 2 a loss beside it."""
    values, balance = some(), settings.build(WEIGHTS).eval()
    total = balance(losses(values))
    assert total.dtype is torch.float32
    constant = math.log(2) * sum(WEIGHTS.values()) if isinstance(settings, UncertaintySettings) else 0
    assert total.item() == pytest.approx(fixed(values).item() + constant, rel=1e-6)
    total.backward()
    for name, value in values.items():
        torch.testing.assert_close(value.grad, torch.full((6,), WEIGHTS[name] / 6))


@pytest.mark.parametrize("settings", [kind() for kind in BALANCES], ids=lambda s: s.type)
def test_a_weight_of_zero_silences_even_an_infinite_loss(settings):
    values = {"a/summary": torch.tensor([2.0]), "a/spatial": torch.tensor([float("inf")])}
    balance = settings.build({"a/summary": 1.0, "a/spatial": 0.0})
    constant = math.log(2) if isinstance(settings, UncertaintySettings) else 0
    assert balance(losses(values, torch.rand(1, 8))).item() == pytest.approx(2.0 + constant)


def test_adaloss_divides_by_a_running_mean():
    balance = AdaLossSettings(decay=0.9).build(WEIGHTS)
    means = dict.fromkeys(WEIGHTS, 0.0)
    for step in range(5):
        values = some(seed=step)
        if step == 3:
            del values["b/spatial"]  # a stage without this teacher
        factors = {name: 1 / mean if mean else 1.0 for name, mean in means.items()}
        total = balance(losses(values))
        wanted = sum(WEIGHTS[name] * factors[name] * value.mean().item() for name, value in values.items())
        assert total.item() == pytest.approx(wanted, rel=1e-5)
        total.backward()
        for name, value in values.items():
            torch.testing.assert_close(value.grad, torch.full((6,), WEIGHTS[name] * factors[name] / 6))
        balance.follow({name: value.mean().detach() for name, value in values.items()})
        for name, value in values.items():
            means[name] = value.mean().item() if step == 0 else 0.9 * means[name] + 0.1 * value.mean().item()
    assert balance.factors({"a/summary"})["a/summary"].item() == pytest.approx(1 / means["a/summary"], rel=1e-5)
    again = AdaLossSettings(decay=0.9).build(WEIGHTS)
    again.load_state_dict(balance.state_dict())
    assert torch.equal(again(losses(some())), balance(losses(some())))
    assert set(balance.state_dict()) == {"expected"}


def test_adaloss_stays_finite_where_a_loss_is_zero():
    balance = AdaLossSettings().build({"a/summary": 1.0})
    balance.follow({"a/summary": torch.tensor(1e-30)})
    assert balance(losses({"a/summary": torch.tensor([0.0])})).item() == 0
    assert torch.isfinite(balance(losses({"a/summary": torch.tensor([1.0])})))


def test_uncertainty_equals_its_formula():
    values, balance = some(), UncertaintySettings().build(WEIGHTS)
    b = {name: 0.3 * number - 0.4 for number, name in enumerate(WEIGHTS)}
    balance.load_state_dict({f"b.{name}": torch.tensor(value) for name, value in b.items()})
    total = balance(losses(values))
    wanted = sum(WEIGHTS[n] * (math.exp(-b[n]) * values[n].mean().item() + math.log1p(math.exp(b[n]))) for n in WEIGHTS)
    assert total.item() == pytest.approx(wanted, rel=1e-6)
    total.backward()
    for name, parameter in balance.named_parameters():
        name = name.removeprefix("b.")
        slope = WEIGHTS[name] * (1 / (1 + math.exp(-b[name])) - math.exp(-b[name]) * values[name].mean().item())
        assert parameter.grad.item() == pytest.approx(slope, rel=1e-5)
        torch.testing.assert_close(values[name].grad, torch.full((6,), WEIGHTS[name] * math.exp(-b[name]) / 6))
        assert [id(found) for found in balance.learnt({name, "d/summary"})] == [id(parameter)]
        assert balance.factors({name})[name].item() == pytest.approx(math.exp(-b[name]))


def dropped(values: dict[str, Tensor], draws: Tensor, probability: float) -> Tensor:
    """Teacher dropping by loops over images and teachers."""
    teachers = list(dict.fromkeys(name.partition("/")[0] for name in values))
    chances = uniform(draws, range(1, len(teachers) + 1))
    total, batch = torch.zeros(()), draws.shape[0]
    for image in range(batch):
        of = [sum(WEIGHTS[n] * values[n][image] for n in values if n.startswith(f"{teacher}/")) for teacher in teachers]
        worst = max(range(len(teachers)), key=lambda t: float(of[t].detach()))
        for number, loss in enumerate(of):
            if number == worst or chances[number, image] >= probability:
                total = total + loss
    return total * len(teachers) / (1 + (len(teachers) - 1) * (1 - probability)) / batch


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.9])
def test_teacher_dropping_equals_a_loop(probability):
    values, draws = some(40), torch.rand(40, 8, generator=torch.Generator().manual_seed(3))
    balance = TeacherDroppingSettings(probability=probability).build(WEIGHTS).train()
    total, wanted = balance(losses(values, draws)), dropped(values, draws, probability)
    torch.testing.assert_close(total, wanted)
    names = list(values.values())
    torch.testing.assert_close(torch.autograd.grad(total, names), torch.autograd.grad(wanted, names))
    assert torch.allclose(total, fixed(values)) == (probability == 0)
    torch.testing.assert_close(balance.eval()(losses(values, draws)), fixed(values))


def test_teacher_dropping_leaves_a_single_teacher_alone():
    balance = TeacherDroppingSettings().build(WEIGHTS).train()
    values = {name: value for name, value in some().items() if name.startswith("a/")}
    torch.testing.assert_close(balance(losses(values, torch.rand(6, 8))), fixed(values))


def test_the_worst_teacher_is_kept_and_the_others_by_chance():
    count, probability = 4000, 0.3
    draws = torch.rand(count, 8, generator=torch.Generator().manual_seed(5))
    size = {"a/summary": 1.0, "b/spatial": 9.0, "c/summary": 0.1}
    values = {name: torch.full((count,), value, requires_grad=True) for name, value in size.items()}
    TeacherDroppingSettings(probability=probability).build(WEIGHTS).train()(losses(values, draws)).backward()
    kept = {name: (value.grad > 0).double().mean().item() for name, value in values.items()}
    assert kept["b/spatial"] == 1
    assert kept["a/summary"] == pytest.approx(1 - probability, abs=0.03)
    assert kept["c/summary"] == pytest.approx(1 - probability, abs=0.03)


def test_pieces_of_a_batch_draw_what_the_whole_draws():
    values, draws = some(8), torch.rand(8, 8)
    balance = TeacherDroppingSettings().build(WEIGHTS).train()
    parts = [balance(losses({n: v[k::2] for n, v in values.items()}, draws[k::2])) for k in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), balance(losses(values, draws)))


def test_draws_are_uniform_and_independent_of_one_another():
    found = uniform(torch.rand(20_000, 8, generator=torch.Generator().manual_seed(1)), range(1, 4))
    assert found.min() >= 0
    assert found.max() < 1
    torch.testing.assert_close(found.mean(1), torch.full((3,), 0.5, dtype=torch.float64), rtol=0, atol=0.01)
    torch.testing.assert_close(found.var(1), torch.full((3,), 1 / 12, dtype=torch.float64), rtol=0, atol=0.002)
    assert torch.corrcoef(found).fill_diagonal_(0).abs().max() < 0.03


def test_fixed_has_no_state():
    assert FixedSettings().build(WEIGHTS).state_dict() == {}
