"""Each part that a recipe's word switches on: a resumed run equals an uninterrupted one bit for bit, two processes equal one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_distributed import assert_near

import amradio as package
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.errors import UserError
from amradio.formats.model_folder import CARD_FILE, read_config
from amradio.tensors import read_tensors
from amradio.training import Trainer, load_teachers
from processes import start_several
from runs import assert_same, metrics, state

STAGES = (
    "stages=[{steps: 4, partitions: [{image_size: 32, batch_size: 4, teachers: [clip, dino]}]},"
    " {steps: 4, partitions: [{image_size: 40, batch_size: 4, teachers: [clip, dino]}, {image_size: 48, batch_size: 4}]}]"
)
WORDS = (STAGES, "evaluate.every=4", "engine.checkpoint_every=3", "engine.ema=0.9", "normalize.batches=4")
"""A second stage with another teacher, whose statistics rewrite the heads; a stop within it."""
RESOLUTIONS = (
    "stages=[{steps: 4, partitions: [{image_size: 32, image_sizes: [32, {size: [32, 40], teachers: {dino: 28}}], packed: true, shift: 1,"
    " batch_size: 4, teachers: [clip, dino]}]},"
    " {steps: 4, partitions: [{image_size: 32, image_sizes: [32, 48], shift: 1, mosaic: [sam], batch_size: 8}]}]"
)
"""Packed images, some of them not square, and then several sizes with mosaics; both shifted."""
STILL = ("stages.0.steps=2", "optimizer.learning_rate=0", "evaluate.every=2")
"""A run that learns nothing."""
PARTS: dict[str, tuple[str, ...]] = {
    "phi_s": ("normalize={summary: phi_s, spatial: phi_s}",),
    "pca": ("normalize={summary: global, spatial: pca}",),
    "zca": ("normalize.spatial=zca",),
    "hadamard": ("normalize.spatial=hadamard",),
    "angle": ("normalize.summary=none", "loss.summary=angle", "loss.spatial=hybrid", "loss.token_exponent=0.5"),
    "tangent_sphere": ("normalize.summary=none", "loss.summary=tangent_sphere", "loss.spatial=dampened_mse", "engine.accumulate=2"),
    "relations": (
        "loss.summary={type: sum, terms: [{loss: mse}, {loss: rkd, weight: 0.5}, {loss: asymmetric_rkd, weight: 2.0}]}",
        "loss.spatial={type: sum, terms: [{loss: mse}, {loss: token_similarity, weight: 0.1}]}",
    ),
    "adaloss": ("balance={type: adaloss, decay: 0.5}", "engine.accumulate=2"),
    "uncertainty": ("balance=uncertainty", "engine.accumulate=2"),
    "transformer": ("heads={summary: {type: transformer, num_heads: 2}, spatial: {type: transformer, num_heads: 2}}",),
    "ladder": ("heads={summary: {type: ladder, hidden_dim: 8}, spatial: {type: ladder, hidden_dim: 8}}", "student.depth=2"),
    "resolutions": (RESOLUTIONS, "loss.token_exponent=0.5", "engine.prepare_ahead=true"),
    "teacher_dropping": ("balance=teacher_dropping", "engine.accumulate=2"),
    "one_pass": ("balance=teacher_dropping", "regularize.weight_noise=0.05"),  # a step of one pass, whose graph is static under DDP
}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of uninterrupted runs by part, each made once; the entry "" is the folder that they are in."""
    return {"": tmp_path_factory.mktemp("whole")}


@pytest.fixture
def whole(whole_runs: dict[str, Path], recipe) -> Callable[[str], Path]:
    """`whole(part)`: the folder of its uninterrupted run on one process."""

    def of(part: str) -> Path:
        if part not in whole_runs:
            whole_runs[part] = package.distill(recipe(*WORDS, *PARTS[part], f"out={whole_runs[''] / part}"))
        return whole_runs[part]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_resumed_run_is_the_uninterrupted_one(part: str, recipe, whole, tmp_path: Path):
    """Resumed from step 6, within the second stage."""
    cut = tmp_path / "cut"
    shutil.copytree(whole(part), cut, symlinks=True)
    shutil.rmtree(cut / "checkpoints" / "step_000000008")
    package.distill(recipe(*WORDS, *PARTS[part], f"out={cut}"))
    assert f"resuming {cut} from step 6 of 8" in (cut / "train.log").read_text()
    assert_same(whole(part), cut)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_two_processes_are_one(part: str, recipe_file: Path, whole, tmp_path: Path):
    words = ("distill", recipe_file, *WORDS, *PARTS[part])
    two = [running.wait() for running in start_several(2, *words, f"out={tmp_path / 'two'}", folder=tmp_path / "two printed")]
    assert [ended.code for ended in two] == [0, 0], [ended.errors for ended in two]
    assert_near(whole(part), tmp_path / "two")


# normalizers


@pytest.mark.slow
def test_a_model_and_its_card_name_the_target_spaces(recipe, tmp_path: Path):
    folder = package.distill(recipe("normalize.spatial=phi_s", "stages.0.steps=1", "evaluate.every=null"))
    training = read_config(folder / "model").training
    assert training is not None
    assert training.target_spaces == {"summary": "per_channel", "spatial": "phi_s"}
    assert (
        "Target spaces in training: per_channel for summary features, phi_s for spatial features."
        in (folder / "model" / CARD_FILE).read_text()
    )
    manifest = json.loads((folder / "calibration" / "stage_0" / "manifest.json").read_text())
    assert manifest["target_spaces"] == training.target_spaces


@pytest.mark.slow
def test_the_heads_of_a_phi_s_model_predict_raw_features(recipe, tmp_path: Path):
    """What the exported model predicts is what the run measured as agreement of its heads in target space."""
    folder = package.distill(recipe("normalize.spatial=phi_s", "stages.0.steps=2", "evaluate.every=2"))
    weights = state(folder)
    scale, shift = (weights[f"task/normalizers.clip.spatial.{name}"] for name in ("scale", "shift"))
    assert scale.shape == (32, 32)
    inside = weights["task/network.heads.clip.spatial.final.2.weight"].double()
    torch.testing.assert_close(weights["model/heads.clip.spatial.final.2.weight"], (scale.double() @ inside).float())
    bias = scale.double() @ weights["task/network.heads.clip.spatial.final.2.bias"].double() + shift.double()
    torch.testing.assert_close(weights["model/heads.clip.spatial.final.2.bias"], bias.float())


@pytest.mark.slow
def test_raw_agreement_does_not_change_where_statistics_are_measured_anew(recipe, tmp_path: Path):
    """At the border of two stages: heads are rewritten into the new target space before the evaluation that follows the first step."""
    words = ("optimizer.learning_rate=0", "evaluate.every=1", "normalize.batches=3", "normalize.spatial=phi_s", "engine.ema=0.5")
    stage = "{steps: 2, partitions: [{image_size: 32, batch_size: 4}]}"
    rows = metrics(package.distill(recipe(*words, f"stages=[{stage}, {stage}]")))
    values = [row["val/clip/spatial/cosine"] for row in rows if "val/clip/spatial/cosine" in row]
    assert len(values) == 5
    assert values[1:] == pytest.approx([values[1]] * 4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["phi_s", "zca"])
def test_a_continued_model_keeps_its_raw_predictions_in_a_mixing_space(recipe, tmp_path: Path, space: str):
    """Its heads predict raw features, whatever the target space was that they were trained in."""
    first = package.distill(recipe("stages.0.steps=4", "evaluate.every=4", "normalize.spatial=per_channel"))
    words = (f"student={{type: model, path: {first}}}", f"normalize={{summary: {space}, spatial: {space}, batches: 4}}")
    second = package.distill(
        recipe(*words, "stages.0.steps=2", "optimizer.learning_rate=0", "evaluate.every=2", f"out={tmp_path / 'again'}")
    )
    before = [row for row in metrics(first) if "val/clip/spatial/cosine" in row][-1]
    after = [row for row in metrics(second) if "val/clip/spatial/cosine" in row][-1]
    for key in ("val/clip/spatial/cosine", "val/dino/summary/cosine", "val/sam/spatial/cosine"):
        assert after[key] == pytest.approx(before[key], abs=1e-4)
    old, new = (package.load(folder) for folder in (first, second))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        new(images, heads=["clip"])["clip"].spatial, old(images, heads=["clip"])["clip"].spatial, rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_too_few_samples_and_widths_without_a_matrix_are_warned_of(recipe_file: Path, amradio, tmp_path: Path):
    ended = amradio("distill", recipe_file, "normalize={summary: phi_s, batches: 1}", "stages.0.steps=1", f"out={tmp_path / 'run'}")
    assert ended.code == 0, ended.errors
    lines = [line for line in ended.output.splitlines() if "covariance" in line]
    assert len(lines) == 2, ended.output
    assert "normalize.summary: the covariance of the 24 channels of clip is measured from 4 samples, fewer than channels" in lines[0]
    assert "Hadamard" not in ended.output


# losses and balance


def test_what_compares_images_is_refused_where_pieces_would_take_them_apart(recipe):
    words = ("loss.summary={type: sum, terms: [{loss: mse}, {loss: rkd}]}", "engine.accumulate=2", "stages.0.partitions.0.batch_size=1")
    with pytest.raises(UserError) as caught:
        recipe(*words)
    assert caught.value.problems == (
        "stages.0.partitions.0.batch_size: loss.summary compares the images of a step with one another, and there is only 1; raise it",
        "engine.accumulate: loss.summary compares the images of a step with one another, and 2 pieces would take them apart; set it to 1",
    )


def test_a_loss_for_the_other_kind_is_refused(recipe):
    with pytest.raises(UserError, match="loss: spatial: a loss of type 'angle' compares summary features only"):
        recipe("loss.spatial=angle")


@pytest.mark.slow
def test_the_calibrated_directions_are_those_of_raw_summaries(recipe):
    folder = package.distill(recipe("loss.summary=angle", "normalize.summary=none", "stages.0.steps=1", "evaluate.every=null"))
    weights = state(folder)
    written = json.loads((folder / "calibration" / "stage_0" / "manifest.json").read_text())["directions"]
    assert set(written) == {"clip", "dino"}
    for name, spread in written.items():
        assert spread["dispersion"] == pytest.approx(weights[f"task/spheres.{name}.dispersion"].item())
        assert 0 < spread["tangent_variance"] <= spread["dispersion"]
        assert weights[f"task/spheres.{name}.direction"].norm().item() == pytest.approx(1, abs=1e-6)
        mean = weights[f"task/normalizers.{name}.summary.mean"]
        assert torch.cosine_similarity(mean, weights[f"task/spheres.{name}.direction"], dim=0) > 0.99
    plain = package.distill(recipe("stages.0.steps=1", "evaluate.every=null", f"out={folder.parent / 'plain'}"))
    assert not [key for key in state(plain) if "spheres" in key or "balance" in key], "nothing is kept of parts that are off"


@pytest.mark.slow
def test_adaloss_follows_the_losses_of_whole_steps(recipe):
    words = ("balance={type: adaloss, decay: 0.75}", "stages.0.steps=3", "evaluate.every=null", "engine.accumulate=2")
    folder = package.distill(recipe(*words))
    rows, expected = metrics(folder), state(folder)["task/balance.expected"]
    names = [key.removesuffix("/loss") for key in rows[0] if key.endswith("/loss")]
    for name in names:
        values = [row[f"{name}/loss"] for row in rows]
        mean = 0.75 * values[0] + 0.25 * values[1]
        assert [row[f"{name}/balance"] for row in rows] == pytest.approx([1, 1 / values[0], 1 / mean], rel=1e-5)
        assert min(abs(0.75 * mean + 0.25 * values[2] - float(each)) for each in expected) < 1e-5 * mean
    assert rows[2]["loss"] == pytest.approx(sum(rows[2][f"{name}/loss"] * rows[2][f"{name}/balance"] for name in names), rel=1e-4)


@pytest.mark.slow
def test_uncertainty_learns_its_factors_and_leaves_those_of_absent_teachers_alone(recipe):
    one, two = (f"{{steps: 4, partitions: [{{image_size: 32, batch_size: 4, teachers: [{names}]}}]}}" for names in ("clip, dino", "sam"))
    words = ("evaluate.every=null", "engine.checkpoint_every=4", "engine.keep=9", "optimizer.learning_rate=0.01")
    folder = package.distill(recipe("balance=uncertainty", f"stages=[{one}, {two}]", *words))
    before, after = (
        {key.removeprefix("balance.b."): value.item() for key, value in read_tensors(path).items() if "balance.b." in key}
        for path in (folder / "checkpoints" / f"step_{step:09d}" / "task.safetensors" for step in (4, 8))
    )
    assert set(after) == {"clip/summary", "clip/spatial", "dino/summary", "dino/spatial", "sam/spatial"}
    assert all(after.values())
    assert before["sam/spatial"] == 0
    assert {name for name in after if after[name] == before[name]} == set(after) - {"sam/spatial"}


@pytest.mark.slow
def test_teacher_dropping_is_off_where_nothing_is_trained(recipe):
    found = {}
    for balance in ("fixed", "teacher_dropping"):
        r = recipe(f"balance={balance}", "student.position_dropout=0.0")
        run = Trainer(r, load_teachers(r, {}), Processes(torch.device("cpu")), Log(None))
        run.calibration.measure(run.context.stages[0])
        group = run.context.stages[0].groups[0]
        batch = next(run.context.feeds.training(group, 0))
        for training in (True, False):
            run.context.task.train(training)
            found[balance, training] = run.context.task(batch, group.partition).loss.item()
    assert found["fixed", False] == pytest.approx(found["teacher_dropping", False], rel=1e-6)
    assert found["fixed", True] != pytest.approx(found["teacher_dropping", True], rel=1e-3)
