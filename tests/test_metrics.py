"""Measures of agreement: what the norm ratio shows that no standardized cosine does, and that all places report the same numbers."""

import json

import pytest
import torch
from torch import Tensor

import amradio
from amradio.commands.evaluate import teachers_of
from amradio.distillation.alignment import Pair
from amradio.distillation.metrics import compare, measure, with_norm_ratio
from amradio.distillation.normalizers import PerChannelSettings
from amradio.distillation.statistics import Normalizer, set_statistics
from amradio.evaluation.features.teacher_agreement import Comparison
from amradio.evaluation.suite import Suite
from amradio.formats.model_card import agreement_table
from runs import metrics

MEASURES = {"standardised_cosine", "norm_ratio", "cosine", "constant_cosine"}
DRIFTS = (0.76, 1.0, 3.5)
"""How much the predictions of exported heads were seen to vary against their teachers' features."""


def means(measured: dict[str, Tensor]) -> dict[str, float]:
    return with_norm_ratio({name: value.mean().item() for name, value in measured.items()})


def features(*shape: int) -> Tensor:
    """Channels of unlike means and spreads, means that are large against the spreads."""
    draws = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=draws) * torch.tensor([0.1, 1.0, 2.0, 5.0]) + torch.tensor([4.0, -3.0, 0.5, 9.0])


@pytest.mark.parametrize("shape", [(64, 4), (16, 3, 5, 4)])
@pytest.mark.parametrize("drift", DRIFTS)
def test_a_drift_of_the_norm_is_seen(drift: float, shape: tuple[int, ...]) -> None:
    target = features(*shape)
    mean, std = target.flatten(0, -2).mean(0), target.flatten(0, -2).std(0, correction=0)
    drifted = mean + drift * (target - mean)
    found = means(compare(drifted, target, mean, std))
    assert found["norm_ratio"] == pytest.approx(drift, rel=1e-4)
    assert found["standardised_cosine"] == pytest.approx(1, abs=1e-4), "the headline cannot see it"
    normalizer = Normalizer(4)
    set_statistics(normalizer, PerChannelSettings(), mean.double(), std.double())
    kind = "summary" if len(shape) == 2 else "spatial"
    in_target_space = means(measure(Pair("a", kind, normalizer.to_target(drifted), normalizer.to_target(target)), normalizer))
    assert in_target_space == pytest.approx(found, rel=1e-3)
    comparison = Comparison(kind, (mean.double(), std.double()), 4)
    for start in range(0, shape[0], 10):  # uneven batches
        comparison.update(drifted[start : start + 10], target[start : start + 10])
    by_size = comparison.values()
    for name, column in (("norm_ratio", "norm ratio"), ("cosine", "cosine"), ("constant_cosine", "constant cosine")):
        assert by_size[column] == pytest.approx(found[name], rel=1e-3)


def test_a_constant_varies_by_nothing_and_targets_that_never_change_give_a_finite_number() -> None:
    target = features(32, 4)
    mean, std = target.mean(0), target.std(0)
    assert means(compare(mean.expand_as(target), target, mean, std))["norm_ratio"] == 0
    still = mean.expand(32, 4)
    assert torch.isfinite(torch.tensor(list(means(compare(target, still, mean, torch.ones(4))).values()))).all()


def test_logs_held_out_images_evaluation_and_card_report_them(recipe, capsys) -> None:
    folder = amradio.distill(recipe("stages.0.steps=2", "evaluate.every=2"))
    printed = capsys.readouterr().out
    assert "standardised cosine (norm ratio): clip/summary" in printed
    steps = [line for line in printed.splitlines() if line.startswith("step ")]
    assert steps
    assert not any("norm" in line for line in steps), "step lines stay short"
    logged, held_out = ([row for row in metrics(folder) if any(key.startswith(prefix) for key in row)][-1] for prefix in ("clip/", "val/"))
    stored = json.loads((folder / "evaluations" / "step_000000002" / "held_out.json").read_text())
    for name in ("clip/summary", "clip/spatial", "dino/summary", "dino/spatial", "sam/spatial"):
        assert {key.rsplit("/", 1)[1] for key in logged if key.startswith(f"{name}/")} >= MEASURES
        assert stored[name].keys() == MEASURES
        assert {key: held_out[f"val/{name}/{key}"] for key in MEASURES} == stored[name]
        assert stored[name]["norm_ratio"] > 0
    card = (folder / "model" / "README.md").read_text()
    assert "| feature | standardized cosine | norm ratio | raw cosine | raw cosine of a constant |" in card
    row = stored["sam/spatial"]
    shown = " | ".join(f"{row[key]:.3f}" for key in ("standardised_cosine", "norm_ratio", "cosine", "constant_cosine"))
    assert f"| sam/spatial | {shown} |" in card
    data = str(recipe().data.train.path)
    word = f"evaluations.a={{type: agreement, data: {{type: folder, path: {data}}}, image_sizes: [32]}}"
    found = amradio.evaluate(folder, word, teachers=teachers_of(folder, {}, Suite.load(word)))["a"].rows["student/sam"]
    table = capsys.readouterr().out
    assert {"spatial std cosine", "spatial norm ratio", "spatial cosine", "spatial constant cosine"} <= found.keys()
    assert "spatial norm ratio" in table.replace("\n", " ") or "norm ratio" in table
    assert found["spatial norm ratio"] == pytest.approx(stored["sam/spatial"]["norm_ratio"], rel=0.5)


def test_a_card_of_a_run_that_measured_less() -> None:
    lines = agreement_table({"clip/summary": {"standardised_cosine": 0.5, "cosine": 0.75, "constant_cosine": 0.25}})
    assert lines[-1] == "| clip/summary | 0.500 | - | 0.750 | 0.250 |"


@pytest.mark.parametrize("kind", ["summary", "spatial"])
def test_the_loss_of_agreement_is_am_radios_whatever_the_defaults_are(kind: str) -> None:
    target = features(8, 4) if kind == "summary" else features(4, 2, 2, 4)
    prediction = target + features(*target.shape).flip(0)
    comparison = Comparison(kind, (target.flatten(0, -2).mean(0).double(), target.flatten(0, -2).std(0).double()), 4)  # type: ignore[arg-type]
    comparison.update(prediction, target)
    cosine = 1 - torch.nn.functional.cosine_similarity(prediction, target, dim=-1).mean().item()
    smooth_l1 = torch.nn.functional.smooth_l1_loss(prediction, target).item()
    assert comparison.values()["loss"] == pytest.approx(cosine if kind == "summary" else 0.9 * cosine + 0.1 * smooth_l1, rel=1e-4)
