"""Measures of agreement: what the norm ratio shows that no standardized cosine does, and that all places report the same numbers."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import amradio
from amradio.commands.evaluate import teachers_of
from amradio.distillation.alignment import Pair
from amradio.distillation.metrics import compare, headline, measure, with_norm_ratio
from amradio.distillation.normalizers import PerChannelSettings
from amradio.distillation.statistics import Normalizer, set_statistics
from amradio.engine.checkpoint import CHECKSUMS, _signed
from amradio.evaluation.features.teacher_agreement import Comparison
from amradio.evaluation.suite import Suite
from amradio.formats.model_card import agreement_table
from amradio.formats.model_folder import read_config, write_folder
from amradio.run_folder import RunFolder
from processes import at_step, start, terminate_self
from runs import metrics

MEASURES = {"standardized_cosine", "norm_ratio", "cosine", "constant_cosine"}
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
    assert found["standardized_cosine"] == pytest.approx(1, abs=1e-4), "the headline cannot see it"
    normalizer = Normalizer(4)
    set_statistics(normalizer, PerChannelSettings(), mean.double(), std.double())
    kind = "summary" if len(shape) == 2 else "spatial"
    in_target_space = means(measure(Pair("a", kind, normalizer.to_target(drifted), normalizer.to_target(target)), normalizer))
    assert in_target_space == pytest.approx(found, rel=1e-3)
    comparison = Comparison(kind, (mean.double(), std.double()), 4)
    for first in range(0, shape[0], 10):  # uneven batches
        comparison.update(drifted[first : first + 10], target[first : first + 10])
    by_size = comparison.values()
    for name in MEASURES:
        assert by_size[name] == pytest.approx(found[name], rel=1e-3)


def test_a_constant_varies_by_nothing_and_targets_that_never_change_give_a_finite_number() -> None:
    target = features(32, 4)
    mean, std = target.mean(0), target.std(0)
    assert means(compare(mean.expand_as(target), target, mean, std))["norm_ratio"] == 0
    still = mean.expand(32, 4)
    assert torch.isfinite(torch.tensor(list(means(compare(target, still, mean, torch.ones(4))).values()))).all()


@pytest.mark.slow
def test_logs_held_out_images_evaluation_and_card_report_them(recipe, capsys) -> None:
    folder = amradio.distill(recipe("stages.0.steps=2", "evaluate.every=2"))
    printed = capsys.readouterr().out
    assert "standardized cosine (norm ratio): clip/summary" in printed
    steps = [line for line in printed.splitlines() if line.startswith("step ")]
    assert steps
    assert not any("norm" in line for line in steps), "step lines stay short"
    logged, held_out = ([row for row in metrics(folder) if any(key.startswith(prefix) for key in row)][-1] for prefix in ("clip/", "val/"))
    stored = RunFolder(folder).evaluations()[2]["held_out"]
    for name in ("clip/summary", "clip/spatial", "dino/summary", "dino/spatial", "sam/spatial"):
        assert {key.rsplit("/", 1)[1] for key in logged if key.startswith(f"{name}/")} >= MEASURES
        assert stored[name].keys() == MEASURES
        assert {key: held_out[f"val/{name}/{key}"] for key in MEASURES} == stored[name]
        assert stored[name]["norm_ratio"] > 0
    card = (folder / "model" / "README.md").read_text()
    assert "| feature | standardized cosine | norm ratio | raw cosine | raw cosine of a constant |" in card
    row = stored["sam/spatial"]
    shown = " | ".join(f"{row[key]:.3f}" for key in ("standardized_cosine", "norm_ratio", "cosine", "constant_cosine"))
    assert f"| sam/spatial | {shown} |" in card
    data = str(recipe().data.train.path)
    word = f"evaluations.a={{type: agreement, data: {{type: folder, path: {data}}}, image_sizes: [32]}}"
    found = amradio.evaluate(folder, word, teachers=teachers_of(folder, {}, Suite.load(word)))["a"].rows["student/sam"]
    table = capsys.readouterr().out
    assert {f"spatial_{name}" for name in MEASURES} <= found.keys()
    assert "spatial norm ratio" in table.replace("\n", " ") or "norm ratio" in table
    assert found["spatial_norm_ratio"] == pytest.approx(stored["sam/spatial"]["norm_ratio"], rel=0.5)


def test_a_card_of_a_run_that_measured_less() -> None:
    lines = agreement_table({"clip/summary": {"standardized_cosine": 0.5, "cosine": 0.75, "constant_cosine": 0.25}})
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


@pytest.fixture
def of_one_size(tmp_path: Path) -> Path:
    """Images of the size at which the loader of a run hands them over (SAM's 64 px), so that it resizes them no more than an evaluation."""
    folder = tmp_path / "of_one_size"
    folder.mkdir()
    draws = torch.Generator().manual_seed(3)
    for number in range(9):
        pixels = (torch.rand(64, 64, 3, generator=draws) * 255).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["larger", "smaller"])
def test_a_run_and_an_evaluation_of_it_measure_the_same_number(recipe, of_one_size: Path, grid: str, tmp_path: Path) -> None:
    """Not nearly: the same images, grid and statistics."""
    data = f"{{type: folder, path: {of_one_size}}}"
    words = ("stages.0.steps=2", "evaluate={every: 2, batches: 9}", f"loss.grid={grid}", f"data.val={data}", "student.patch_size=4")
    folder = amradio.distill(recipe(*words, *(f"teachers.{name}.precision=float32" for name in ("clip", "dino", "sam"))))
    stored = RunFolder(folder).evaluations()[2]["held_out"]
    word = f"evaluations.a={{type: agreement, data: {data}, image_sizes: [32]}}"
    result = amradio.evaluate(folder, word, "device=cpu", json_file=tmp_path / "a.json")["a"]
    for name, row in stored.items():
        teacher, kind = name.split("/")
        measured = {key: result.rows[f"student/{teacher}"][f"{kind}_{key}"] for key in row}
        assert measured == pytest.approx(row, rel=1e-3, abs=1e-4), name
    details = json.loads((tmp_path / "a.json").read_text())["results"]["a"]["details"]
    assert details["grid"] == grid
    assert set(details["statistics"].values()) == {"calibration of the run"}
    assert details["statistics"].keys() == stored.keys()

    alone = amradio.evaluate(folder / "model", word, "device=cpu", teachers=teachers_of(folder, {}, Suite.load(word)))["a"]
    assert alone.details["grid"] == grid, "a model folder knows its recipe"
    assert set(alone.details["statistics"].values()) == {"images of this evaluation"}
    assert "standardized with statistics of the images of this evaluation" in alone.notes
    assert alone.rows["student/dino"]["spatial_standardized_cosine"] != result.rows["student/dino"]["spatial_standardized_cosine"]
    assert alone.rows["student/dino"]["spatial_cosine"] == pytest.approx(result.rows["student/dino"]["spatial_cosine"], rel=1e-5)


# files from before the measure had its present name

OLD = Path(__file__).parent / "old"


def old_text(text: str) -> str:
    """As versions before wrote it."""
    assert "standardized_cosine" in text
    return text.replace("standardized_cosine", "standardised_cosine")


def test_a_model_folder_from_before_is_read_and_shown_under_the_new_name(tmp_path: Path) -> None:
    shutil.copy(OLD / "config.json", tmp_path / "config.json")
    assert "standardised_cosine" in (OLD / "config.json").read_text()
    config = read_config(tmp_path)
    assert config.training is not None
    assert config.training.agreement["clip/summary"] == {"standardized_cosine": 0.5, "norm_ratio": 0.9, "cosine": 0.75}
    write_folder(tmp_path / "again", config, config.build(), config.training.model_dump())
    assert "standardised" not in (tmp_path / "again" / "config.json").read_text()
    assert "| clip/summary | 0.500 | 0.900 | 0.750 | - |" in (tmp_path / "again" / "README.md").read_text()
    assert amradio.load(tmp_path / "again").heads == ("clip",)


@pytest.mark.slow
def test_a_run_folder_from_before_resumes(recipe, recipe_file: Path, tmp_path: Path) -> None:
    words = ("stages.0.steps=4", "evaluate.every=2", "engine.checkpoint_every=2")
    words = (*words, f"out={tmp_path / 'x'}")
    ended = start("distill", recipe_file, *words, folder=tmp_path / "printed", prelude=partial(at_step, 2, terminate_self)).wait()
    assert ended.code == 143, ended.errors
    files = [*(tmp_path / "x").rglob("state.json"), tmp_path / "x" / "model" / "config.json", tmp_path / "x" / "metrics.jsonl"]
    assert len(files) == 3
    for file in files:
        file.write_text(old_text(file.read_text()))
    state = json.loads(files[0].read_text())
    files[0].write_text(_signed(state.pop("step"), state, state.pop(CHECKSUMS)))
    folder = amradio.distill(recipe(*words))
    rows = metrics(folder)
    assert any("standardised_cosine" in key for row in rows for key in row), "lines of metrics.jsonl stay as they were"
    assert "val/clip/summary/standardized_cosine" in rows[-1]
    for file in (folder / "checkpoints" / "step_000000004" / "state.json", folder / "model" / "config.json"):
        assert "standardised" not in file.read_text()
    assert (folder / "model" / "README.md").read_text().count("| clip/summary | ") == 1


def test_a_log_line_shows_the_headline_of_every_teacher():
    numbers = {
        "loss": 0.5,
        "clip/summary/standardized_cosine": 0.8124,
        "clip/spatial/standardized_cosine": 0.7236,
        "clip/spatial/cosine": 0.9,
        "sam/spatial/standardized_cosine": 0.7012,
    }
    assert headline(numbers) == "clip 0.812/0.724  sam -/0.701"
    assert headline({"loss": 0.5}) == ""
