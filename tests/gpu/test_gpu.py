"""What only a GPU shows: equal numbers, precision, compiling, pinned memory, nccl, and steps that do not wait for the device."""

import socket
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

import amradio
from amradio import distill as run_distill
from amradio.data.loading_processes import load_items
from amradio.recipe import Recipe
from amradio.training import Trainer
from model_folders import layer_scale_vit
from processes import at_step, start, start_several, terminate_self
from runs import losses, state

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")]

ON_GPU = ("engine.device=cuda",)
EAGER = ("evaluate.every=null", "engine.checkpoint_every=100", "engine.log_every=1")


def test_a_run_on_a_gpu_is_the_run_on_a_cpu(recipe: Callable[..., Recipe], tmp_path: Path):
    """The same images, draws and targets; only rounding differs (convolutions in TF32)."""
    words = ("stages.0.steps=6", *EAGER)
    on_cpu = losses(run_distill(recipe(*words, f"out={tmp_path / 'cpu'}")))
    on_gpu = losses(run_distill(recipe(*words, *ON_GPU, f"out={tmp_path / 'gpu'}")))
    assert on_gpu == pytest.approx(on_cpu, rel=5e-3)


def test_a_resumed_run_goes_the_same_way(recipe_file: Path, tmp_path: Path):
    """Up to the order in which a GPU adds up the gradients of interpolated position tables."""
    words = ("stages.0.steps=8", "evaluate.every=null", "engine.log_every=1", "engine.checkpoint_every=100", *ON_GPU)
    whole = run_distill(Recipe.load(str(recipe_file), *words, f"out={tmp_path / 'whole'}"))
    parts = tmp_path / "parts"
    stopped = start("distill", recipe_file, *words, f"out={parts}", folder=tmp_path, prelude=partial(at_step, 4, terminate_self)).wait()
    assert stopped.code == 143, stopped
    run_distill(Recipe.load(str(recipe_file), *words, f"out={parts}"))
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-3)
    first, second = state(whole), state(parts)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_bfloat16_is_what_auto_means_here_and_learns(recipe: Callable[..., Recipe], tmp_path: Path):
    run = run_distill(recipe("stages.0.steps=40", "engine.precision=auto", *EAGER, *ON_GPU, f"out={tmp_path / 'run'}"))
    assert "bfloat16" in (run / "train.log").read_text()
    curve = losses(run)
    assert sum(curve[step] for step in range(36, 41)) < 0.9 * sum(curve[step] for step in range(1, 6))


def test_compiled_is_eager(recipe: Callable[..., Recipe], tmp_path: Path):
    words = ("stages.0.steps=3", *EAGER, *ON_GPU)
    eager = losses(run_distill(recipe(*words, f"out={tmp_path / 'eager'}")))
    torch.compiler.reset()
    compiled = losses(run_distill(recipe(*words, "engine.compile=true", f"out={tmp_path / 'compiled'}")))
    assert compiled == pytest.approx(eager, rel=5e-3)


class _Images(torch.utils.data.Dataset):
    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"images": torch.full((2, 3, 8, 8), number, dtype=torch.uint8)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaded_tensors_are_pinned(num_workers: int):
    items = list(load_items(_Images(), range(3), num_workers))
    assert [int(item["images"][0, 0, 0, 0]) for item in items] == [0, 1, 2]
    assert all(item["images"].is_pinned() for item in items)


def _caller(message: str) -> str:
    """The lines of the package that led to a synchronisation; empty for other warnings."""
    if "called a synchronizing" not in message:
        return ""
    frames = [frame for frame in traceback.extract_stack() if "/amradio/" in frame.filename]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in frames[-4:])


@pytest.mark.parametrize("words", [(), ("engine.accumulate=2", "engine.ema=0.99"), ("engine.precision=bfloat16",)], ids=str)
def test_steps_between_log_lines_do_not_wait_for_the_device(recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch, words):
    """No synchronisation in torch's own account, and none among the profiler's events."""
    take, waits, events = Trainer._take_step, [], []

    def watched(self: Trainer, step: int) -> None:
        if not 6 <= step < 12:  # estimates wait for the device at steps 5 and 25
            return take(self, step)
        torch.cuda.set_sync_debug_mode("warn")
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with warnings.catch_warnings(), torch.profiler.profile(activities=activities) as profile:
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: waits.append(_caller(str(message)))
            take(self, step)
            torch.cuda.set_sync_debug_mode("default")
        events.append({event.key for event in profile.key_averages()})
        return None

    monkeypatch.setattr(Trainer, "_take_step", watched)
    run_distill(recipe("stages.0.steps=14", "evaluate.every=null", "engine.log_every=100", *ON_GPU, *words, f"out={tmp_path / 'run'}"))
    assert len(events) == 6
    assert all("aten::convolution" in names for names in events)
    assert not [place for place in waits if place]
    assert not set.union(*events) & {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "cudaStreamSynchronize"}


def test_synchronized_batch_norm_on_one_process_is_batch_norm():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).cuda()
        synced = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).cuda()
        synced.load_state_dict(plain.state_dict())
        synced = nn.parallel.DistributedDataParallel(convert_sync_batchnorm(synced), device_ids=[0])
        images = torch.rand(4, 3, 16, 16, device="cuda")
        torch.testing.assert_close(synced(images), plain(images), rtol=1e-3, atol=1e-4)
        synced(images).square().mean().backward()
        plain(images).square().mean().backward()
        for one, other in zip(synced.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-2, atol=1e-4)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="nccl takes one process a GPU, and there is one GPU")
@pytest.mark.parametrize("student", ["{type: eradio, size: xxxtiny_8x_ws16}", None], ids=["eradio", "vit"])
def test_two_processes_are_one(recipe_file: Path, tmp_path: Path, student: str | None):
    words = ["stages.0.steps=6", *EAGER, *ON_GPU] + ([f"student={student}"] if student else [])
    whole = run_distill(Recipe.load(str(recipe_file), *words, f"out={tmp_path / 'one'}"))
    ended = [process.wait() for process in start_several(2, "distill", recipe_file, *words, f"out={tmp_path / 'two'}", folder=tmp_path)]
    assert [result.code for result in ended] == [0, 0], ended
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), rel=5e-3)


def test_a_model_answers_on_a_gpu_as_on_a_cpu(tmp_path: Path):
    model = amradio.load(layer_scale_vit(tmp_path / "model"))
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    on_cpu = model(images, heads=model.heads)
    on_gpu = model.to("cuda")(images.cuda(), heads=model.heads)
    for head, features in on_cpu.items():
        for kind, value in features.items():
            torch.testing.assert_close(on_gpu[head].of(kind).cpu(), value, rtol=1e-2, atol=1e-2)


def test_evaluation_and_cost_on_a_gpu(recipe: Callable[..., Recipe], pictures: Path, tmp_path: Path):
    run = run_distill(recipe("stages.0.steps=2", *EAGER, *ON_GPU, f"out={tmp_path / 'run'}"))
    labelled = f"{{type: class_folder, path: {pictures}}}"
    knn = f"evaluations.knn={{type: knn, database: {labelled}, queries: {labelled}}}"
    words = ("device=cuda", knn, "evaluations.speed={type: throughput}")
    results = amradio.evaluate(run, *words)
    assert set(results) == {"knn", "speed"}
    assert results["speed"].rows["student"]["peak_memory_mb"] > 0
    assert all(0 <= value <= 100 for row in results["knn"].rows.values() for value in row.values())
