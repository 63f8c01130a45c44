"""The task: what learns and what does not, the headline number, grids, partitions, target spaces, shared resizes."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import amradio.distillation.views as views_module
from amradio import UserError
from amradio import distill as run_distill
from amradio.batch import Batch
from amradio.distillation.alignment import Pair
from amradio.distillation.balance import FixedSettings
from amradio.distillation.calibration import calibrate
from amradio.distillation.losses import MseSettings
from amradio.distillation.metrics import measure
from amradio.distillation.normalizers import NORMALIZERS, NormalizeSettings, PerChannelSettings
from amradio.distillation.statistics import Normalizer, set_statistics
from amradio.distillation.task import Distillation, Objective
from amradio.distillation.views import Partition
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.features import Features, resize_grid
from amradio.heads import Head, LinearHeadSettings
from amradio.images import to_float
from amradio.network import Network
from amradio.students import Student
from amradio.teachers import Teacher
from amradio.training import Trainer, load_teachers
from runs import state


class Planned(Teacher):
    """Says what `answer` says of its (normalised) images."""

    def __init__(self, answer, dims=(4, 5), source="a test", input_size=None):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, patch_size=8, dims=dims, input_size=input_size, licence="none", source=source)
        self.answer = answer

    def encode(self, images: Tensor) -> Features:
        return self.answer(images)


def colours(images: Tensor, offset: float = 0.0) -> Features:
    """Summary [B, 4] and map [B, h, w, 5] of mean colours, far from zero where `offset` is large."""
    cells = torch.nn.functional.avg_pool2d(images, 8).permute(0, 2, 3, 1)
    return Features(
        torch.cat((images.mean((2, 3)), images.std((1, 2, 3))[:, None]), 1) + offset,
        torch.cat((cells, cells[..., :2].square()), -1) + offset,
    )


@pytest.fixture
def train(recipe):
    """`train("seed=1")`: a Trainer of three teachers on the CPU, calibrated, and what a step needs."""

    def build(*words: str, own=None, calibrated: bool = True) -> Trainer:
        r = recipe(*words)
        run = Trainer(r, load_teachers(r, own or {}), Processes(torch.device("cpu")), Log(None))
        if calibrated:
            prepare(run)
        return run

    return build


def batch_of(run: Trainer, step: int = 0, group: int = 0):
    stage = run.context.stages[0]
    return next(run.context.feeds.training(stage.groups[group], step))


def prepare(run: Trainer) -> None:
    """Statistics from the first batches of the first stage."""
    found = [
        (batch_of(run, step, number), group.partition) for number, group in enumerate(run.context.stages[0].groups) for step in range(2)
    ]
    calibrate(run.context.task, found, run.context.recipe.normalize, run.context.processes, None)


def step(run: Trainer, number: int = 0) -> dict[str, Tensor]:
    stage = run.context.stages[0]
    return run.optimization.update(stage, number, [batch_of(run, number, k) for k in range(len(stage.groups))], 1e-2, True)


# what learns


@pytest.mark.slow
def test_every_parameter_of_student_and_heads_changes_in_one_step(train):
    run = train("student.depth=2", "student.layer_scale=0.1", "student.position_dropout=0.0", "heads.spatial={type: mlp, num_inner: 1}")
    before = {name: value.clone() for name, value in run.context.task.named_parameters()}
    step(run)
    still = [name for name, value in run.context.task.named_parameters() if torch.equal(value, before[name])]
    assert not still
    names = "\n".join(before)
    for part in ("student.", "heads.clip.summary", "heads.clip.spatial", "heads.dino.spatial", "heads.sam.spatial"):
        assert f"network.{part}" in names
    assert "heads.sam.summary" not in names


@pytest.mark.slow
def test_heads_outside_a_partition_are_left_alone(train):
    """No gradient, and no decay either, or a head would fade in the stages that do without its teacher."""
    stages = (
        "stages=[{steps: 2, partitions: [{image_size: 32, batch_size: 4}]}, {steps: 2, partitions: [{teachers: [clip], batch_size: 4}]}]"
    )
    run = train(stages, "optimizer.weight_decay=0.5")
    step(run)
    before = {name: value.clone() for name, value in run.context.task.named_parameters()}
    partition = run.context.stages[0].groups[0].partition._replace(teachers=("clip",))
    alone = run.context.stages[1]._replace(groups=[run.context.stages[0].groups[0]._replace(partition=partition)])
    for number in (1, 2):
        run.optimization.update(alone, number, [batch_of(run, number)], 1e-2, True)
    for name, value in run.context.task.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith(("network.heads.dino", "network.heads.sam")), name


@pytest.mark.slow
def test_teachers_are_held_and_not_owned(train):
    run = train()
    theirs = {id(p) for teacher in run.context.task.teachers.values() for p in (*teacher.parameters(), *teacher.buffers())}
    assert theirs
    assert not theirs & {id(value) for value in (*run.context.task.parameters(), *run.context.task.buffers())}
    assert not theirs & {id(p) for group in run.context.optimizer.param_groups for p in group["params"]}
    run.context.task.train()
    assert run.context.task.network.training
    assert not any(module.training for teacher in run.context.task.teachers.values() for module in teacher.modules())
    assert not any(p.requires_grad for teacher in run.context.task.teachers.values() for p in teacher.parameters())
    before = {name: copy.deepcopy(teacher.state_dict()) for name, teacher in run.context.task.teachers.items()}
    step(run)
    for name, teacher in run.context.task.teachers.items():
        assert all(torch.equal(value, before[name][key]) for key, value in teacher.state_dict().items())


@pytest.mark.slow
def test_a_checkpoint_holds_these_keys_and_no_more_bytes(recipe):
    r = recipe("engine.ema=0.9")
    folder = run_distill(r)
    keys = set(state(folder))
    allowed = (
        "task/network.student.",
        "task/network.heads.",
        "task/normalizers.",
        "ema/student.",
        "ema/heads.",
        "optimizer/",
        "model/student.",
        "model/heads.",
    )
    assert not [key for key in keys if not key.startswith(allowed)]
    assert not [key for key in keys if any(word in key for word in ("vision_model", "encoder.layer", "teachers"))]
    checkpoint = folder / "checkpoints" / "last"
    parameters = sum(value.numel() for key, value in state(folder).items() if key.startswith("ema/"))
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert size < 4 * 4 * parameters * 1.1 + 200_000, "weights, their average and two moments in float32, and names"
    assert {file.name for file in checkpoint.iterdir()} == {"task.safetensors", "ema.safetensors", "optimizer.pt", "state.json"}


@pytest.mark.slow
def test_validation_changes_nothing_and_repeats_itself(train):
    run = train("engine.ema=0.9", "student.position_dropout=0.5")
    step(run)
    run.context.folder.path.mkdir()
    before = {key: value.clone() for key, value in (run.context.task.state_dict() | run.context.ema.average.state_dict()).items()}
    random = torch.get_rng_state()
    run.held_out.run(6)
    first = run.held_out.agreement
    run.held_out.run(6)
    assert run.held_out.agreement == first
    assert set(first) == {"clip/summary", "clip/spatial", "dino/summary", "dino/spatial", "sam/spatial"}
    after = run.context.task.state_dict() | run.context.ema.average.state_dict()
    assert not [key for key, value in after.items() if not torch.equal(value, before[key])]
    assert torch.equal(torch.get_rng_state(), random)
    assert run.context.task.training
    assert not run.context.ema.average.training


# the numbers


def statistics(seed: int = 0, dim: int = 6) -> tuple[Normalizer, Tensor, Tensor]:
    """A normaliser of far-off channels, its mean and its std."""
    draws = torch.Generator().manual_seed(seed)
    mean, std = 3 * torch.randn(dim, generator=draws) + 5, torch.rand(dim, generator=draws) + 0.1
    normalizer = Normalizer(dim)
    set_statistics(normalizer, PerChannelSettings(), mean.double(), std.double())
    return normalizer, mean, std


def test_cosines_equal_an_independent_computation():
    normalizer, mean, std = statistics()
    prediction, target = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    found = measure(Pair("a", "spatial", prediction, target), normalizer)
    m, s = mean.double().numpy(), std.double().numpy()
    p, t = (x.double().numpy() for x in (prediction, target))
    raw_p, raw_t = p * s + m, t * s + m

    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))).mean((1, 2))

    wanted = {
        "cosine": cosine(raw_p, raw_t),
        "constant_cosine": cosine(np.broadcast_to(m, raw_t.shape), raw_t),
        "standardized_cosine": cosine(p, t),
        "prediction_norm": np.linalg.norm(p, axis=-1).mean((1, 2)),
        "target_norm": np.linalg.norm(t, axis=-1).mean((1, 2)),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-4, atol=1e-5)


def test_a_constant_answer_scores_nothing_however_high_its_raw_cosine():
    normalizer, _, _ = statistics()
    target = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    for constant in (torch.zeros(64, 6), torch.full((64, 6), 0.3)):
        found = measure(Pair("a", "summary", constant, target), normalizer)
        assert abs(found["standardized_cosine"].mean()) < 0.1
        assert found["cosine"].mean() > 0.9
    right = measure(Pair("a", "summary", target, target), normalizer)
    torch.testing.assert_close(right["standardized_cosine"], torch.ones(64))


@pytest.mark.parametrize("space", ["none", "global", "per_channel"])
def test_the_headline_does_not_depend_on_the_target_space(space):
    settings = next(kind() for kind in NORMALIZERS if kind.model_fields["type"].default == space)
    reference, mean, std = statistics()
    normalizer = Normalizer(6)
    set_statistics(normalizer, settings, mean.double(), std.double())
    raw = [torch.randn(5, 6, generator=torch.Generator().manual_seed(k)) + 4 for k in (1, 2)]
    pairs = [Pair("a", "summary", *(n.to_target(x) for x in raw)) for n in (normalizer, reference)]
    torch.testing.assert_close(
        *(measure(p, n)["standardized_cosine"] for p, n in zip(pairs, (normalizer, reference), strict=True)), rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["larger", "smaller"])
def test_maps_are_compared_on_the_larger_or_the_smaller_grid(train, grid):
    run = train("loss.spatial=mse", f"loss.grid={grid}")
    task, partition = run.context.task, run.context.stages[0].groups[0].partition
    prepared = task.prepare(batch_of(run), partition)
    predictions = task.predict(prepared.views.student, torch.rand(4, 8), partition)
    assert predictions["sam"].spatial.shape[1:3] == (4, 4)
    shapes = {pair.name: tuple(pair.prediction.shape[1:3]) for pair in task.pairs(predictions, prepared) if pair.kind == "spatial"}
    own = {"clip": (4, 4), "dino": prepared.targets["dino"].spatial.shape[1:3], "sam": (8, 8)}
    choose = max if grid == "larger" else min
    assert shapes == {f"{name}/spatial": choose((4, 4), tuple(size)) for name, size in own.items()}
    (pair,) = (pair for pair in task.pairs(predictions, prepared) if pair.name == "sam/spatial")
    wanted = resize_grid(predictions["sam"].spatial, (8, 8)) if grid == "larger" else predictions["sam"].spatial
    torch.testing.assert_close(pair.prediction, wanted)
    assert pair.target.shape == pair.prediction.shape


def test_the_loss_is_the_sum_over_teachers_so_a_teacher_taken_twice_counts_twice(train):
    """Weights are absolute: nothing is divided by the number of teachers."""
    found = {}
    for names in (("a",), ("a", "b")):
        own = {name: Planned(colours, dims=(None, 5)) for name in names}
        none = [f"teachers.{name}=null" for name in ("clip", "dino", "sam")]
        run = train(
            *none, *(f"teachers.{name}={{type: custom}}" for name in names), "optimizer.clip=null", "student.position_dropout=0.0", own=own
        )
        run.context.task.network.heads[names[-1]].load_state_dict(run.context.task.network.heads["a"].state_dict())
        loss = step(run)["loss"].item()
        gradients = {name: parameter.grad for name, parameter in run.context.task.network.student.named_parameters()}
        found[len(names)] = loss, gradients["patch_generator.embedder.weight"]
    assert found[2][0] == pytest.approx(2 * found[1][0], rel=1e-6)
    torch.testing.assert_close(found[2][1], 2 * found[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_weights_of_teachers_kinds_and_partitions_scale_their_part(train):
    words = (
        "loss.spatial=mse",
        "teachers.clip.summary_weight=3.0",
        "teachers.dino.spatial_weight=0.25",
        "stages.0.partitions.0.weight=0.5",
    )
    numbers = step(train(*words))
    weights = {"clip/summary": 3.0, "clip/spatial": 1.0, "dino/summary": 1.0, "dino/spatial": 0.25, "sam/spatial": 1.0}
    wanted = 0.5 * sum(weight * numbers[f"{name}/loss"].item() for name, weight in weights.items())
    assert numbers["loss"].item() == pytest.approx(wanted, rel=1e-6)
    assert not [name for name in numbers if name.startswith("sam/summary")]


# target spaces


@pytest.mark.slow
def test_recalibration_keeps_what_the_heads_say_in_raw_space(train):
    run = train("engine.ema=0.9")
    for number in range(3):
        step(run, number)
    images = to_float(batch_of(run).images)[..., :32, :32]

    def raw() -> list[Tensor]:
        run.context.task.eval()
        networks = (run.context.task.network, run.context.ema.average)
        with torch.no_grad():
            found = [network(images, None, ["clip", "sam"]) for network in networks]
        run.context.task.train()
        heads = [("clip", "summary"), ("clip", "spatial"), ("sam", "spatial")]
        return [run.context.task.normalizers.of(name, kind).to_raw(getattr(each[name], kind)) for each in found for name, kind in heads]

    before, shift = raw(), run.context.task.normalizers.of("clip", "summary").shift.clone()
    partition = run.context.stages[0].groups[0].partition
    others = [(batch_of(run, k)._replace(images=255 - batch_of(run, k).images), partition) for k in (5, 6)]
    calibrate(run.context.task, others, run.context.recipe.normalize, run.context.processes, None, [run.context.ema.average])
    assert not torch.allclose(run.context.task.normalizers.of("clip", "summary").shift, shift)
    for one, other in zip(raw(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_folded_heads_speak_raw_teacher_space(train):
    run = train()
    step(run)
    images = to_float(batch_of(run).images)[..., :32, :32]
    folded = run.saving.folded_network().eval()
    run.context.task.eval()
    with torch.no_grad():
        raw, own = folded(images, None, ["clip", "dino", "sam"]), run.context.task.network(images, None, ["clip", "dino", "sam"])
    for name, kind in (("clip", "summary"), ("clip", "spatial"), ("dino", "spatial"), ("sam", "spatial")):
        wanted = run.context.task.normalizers.of(name, kind).to_raw(getattr(own[name], kind))
        torch.testing.assert_close(getattr(raw[name], kind), wanted, rtol=1e-4, atol=1e-4)
    assert run.context.task.network.heads["clip"].summary is not folded.heads["clip"].summary


def test_statistics_are_those_of_the_images_of_all_partitions(recipe):
    """A teacher in two partitions has one target space, over both."""
    seen: list[Tensor] = []

    def watched(images: Tensor) -> Features:
        found = colours(images, offset=100.0)
        seen.append(found.summary.double().clone())
        return found

    words = (
        "teachers={mine: {type: custom}}",
        "stages=[{steps: 1, partitions: [{image_size: 32, batch_size: 4}, {image_size: 16, batch_size: 2}]}]",
    )
    r = recipe("teachers.clip=null", "teachers.dino=null", "teachers.sam=null", *words)
    run = Trainer(r, load_teachers(r, {"mine": Planned(watched)}), Processes(torch.device("cpu")), Log(None))
    prepare(run)
    rows = torch.cat(seen).numpy()
    assert len(rows) == 2 * 4 + 2 * 2
    normalizer = run.context.task.normalizers.of("mine", "summary")
    np.testing.assert_allclose(normalizer.mean.numpy(), rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normalizer.std.numpy(), rows.std(0), rtol=1e-3)


# teachers in a step


def test_teachers_of_one_size_share_the_resized_images(train, monkeypatch):
    seen: dict[str, list[int]] = {}

    def watch(name: str, dims, **more) -> Planned:
        teacher = Planned(colours, dims=dims, **more)
        forward = teacher.forward

        def watched(images: Tensor) -> Features:
            seen.setdefault(name, []).append(images.data_ptr())
            return forward(images)

        teacher.forward = watched
        return teacher

    own = {name: watch(name, (4, 5), input_size=size) for name, size in (("a", 40), ("b", 40), ("c", 24))}
    words = [f"teachers.{name}={{type: custom}}" for name in own]
    run = train("teachers.clip=null", "teachers.dino=null", "teachers.sam=null", *words, own=own, calibrated=False)
    sizes: list[tuple[int, int]] = []
    resize = views_module.resize
    monkeypatch.setattr(views_module, "resize", lambda images, size: sizes.append(size) or resize(images, size))
    images = torch.randint(0, 255, (2, 3, 48, 48), dtype=torch.uint8)
    prepared = run.context.task.prepare(Batch(images, ("x", "y"), torch.zeros(2, 8)), Partition("0.0", ("a", "b", "c"), (40, 40)))
    assert sizes == [(40, 40), (24, 24)], "the student shares with its teachers, too"
    assert prepared.views.student.images is prepared.views.teachers["a"].images
    assert seen["a"] == seen["b"] != seen["c"]


@pytest.mark.slow
def test_bfloat16_autocast_leaves_the_targets_what_they_are(train):
    run = train()
    partition = Partition("0.0", ("clip", "dino", "sam"), (32, 32))
    exact = run.context.task.prepare(batch_of(run), partition).targets
    with torch.autocast("cpu", torch.bfloat16):
        half = run.context.task.prepare(batch_of(run), partition).targets
    for name in exact:
        for kind in ("summary", "spatial"):
            a, b = getattr(exact[name], kind), getattr(half[name], kind)
            if a is None:
                assert b is None
                continue
            assert b.dtype is torch.float32
            a, b = (x - exact_mean for exact_mean in (a.flatten(0, -2).mean(0),) for x in (a, b))
            assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.99, (name, kind)


@pytest.mark.slow
def test_a_step_in_bfloat16_reports_nearly_the_same_losses(train):
    exact, half = step(train()), step(train("engine.precision=bfloat16"))
    for name, value in exact.items():
        if name.endswith("loss"):
            assert half[name].dtype is torch.float32
            assert half[name].item() == pytest.approx(value.item(), rel=0.02)


@pytest.mark.slow
def test_a_summary_that_no_head_reads_is_reported(recipe, capsys):
    run_distill(recipe("teachers.clip.summary_weight=0.0", "teachers.dino.summary_weight=0.0", "stages.0.steps=1", "evaluate.every=null"))
    assert "warning: 1 of the student's 1 summaries is read by no head" in capsys.readouterr().out
    run_distill(recipe("out=" + str(Path(recipe().out).with_name("all")), "stages.0.steps=1", "evaluate.every=null"))
    assert "read by no head" not in capsys.readouterr().out


def test_a_teacher_in_no_partition_is_refused(recipe):
    with pytest.raises(UserError, match=r"teachers\.sam: .*no partition"):
        recipe("stages.0.partitions.0.teachers=[clip, dino]")


@pytest.mark.slow
def test_summaries_have_a_slot_each(train):
    run = train()
    heads = run.context.config.heads
    assert run.context.config.num_summaries == 2
    assert {heads["clip"].slot, heads["dino"].slot} == {0, 1}
    assert heads["sam"].summary is None


def test_a_tiny_task_by_hand():
    """Everything at once against a few lines of float64: one linear teacher, one linear student."""

    class Flat(Student):
        patch_size, summary_dim, spatial_dim, num_summaries = 8, 3, 3, 1

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

        def nearest_size(self, height, width):
            return height // 8 * 8, width // 8 * 8

        def forward(self, images, draws=None):
            cells = torch.nn.functional.avg_pool2d(self.condition(images), 8).permute(0, 2, 3, 1) * self.scale
            return Features(cells.mean((1, 2)), cells)

    torch.manual_seed(0)
    head = Head(LinearHeadSettings().build(3, 4), LinearHeadSettings().build(3, 5), 0, 3)
    network = Network(Flat(), {"a": head})
    objective = Objective(
        {"summary": MseSettings().build(), "spatial": MseSettings().build()}, FixedSettings().build({"a/summary": 2.0, "a/spatial": 0.5})
    )
    task = Distillation(network, {"a": Planned(colours)}, objective)
    partition = Partition("0.0", ("a",), (16, 16), 0.25)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    batch = Batch(images, ("a", "b", "c"), torch.rand(3, 8))
    calibrate(task, [(batch, partition)], NormalizeSettings(), Processes(torch.device("cpu")), None)
    found = task(batch, partition, measure=True)

    x = images.double().numpy() / 255
    said = colours(torch.from_numpy((x - 0.5) / 0.5))
    student = (x - network.student.mean.double().numpy()) / network.student.std.double().numpy()
    cells = student.reshape(3, 3, 2, 8, 2, 8).mean((3, 5)).transpose(0, 2, 3, 1) * np.array([0.5, -1.0, 2.0])
    total = 0.0
    for kind, weight, inputs in (("summary", 2.0, cells.mean((1, 2))), ("spatial", 0.5, cells)):
        layer = getattr(head, kind).final
        target = getattr(said, kind).double().numpy()
        axes = tuple(range(target.ndim - 1))
        target = (target - target.mean(axes)) / target.std(axes)
        prediction = inputs @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        loss = ((prediction - target) ** 2).mean()
        assert found.metrics[f"a/{kind}/loss"].item() == pytest.approx(loss, rel=1e-4)
        norm = np.sqrt((prediction**2).sum(-1) * (target**2).sum(-1))
        assert found.metrics[f"a/{kind}/standardized_cosine"].item() == pytest.approx(
            ((prediction * target).sum(-1) / norm).mean(), rel=1e-3, abs=1e-4
        )
        total += weight * loss
    assert found.loss.item() == pytest.approx(0.25 * total, rel=1e-4)
