"""A step wastes nothing: images become floats once, models of one size share a view, nothing waits, sizes are compiled once."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amradio import distill as run_distill
from amradio.batch import Batch
from amradio.engine import compilation
from amradio.recipe import Recipe
from amradio.training import Trainer
from amradio.training.optimization import Optimization
from amradio.training.schedule import Stage
from runs import losses

pytestmark = pytest.mark.slow

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.is_nonzero.default}
"""Operations whose result the host needs before it goes on: on a GPU each waits for all that was begun."""
SIZES = "stages.0.partitions.0={image_size: 48, image_sizes: [{size: 32}, {size: 48}], batch_size: 4}"


class Watch(TorchDispatchMode):
    """Counts conversions of bytes to floats, and what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.conversions: list[tuple[int, ...]] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        out = operation(*arguments, **(named or {}))
        if operation in WAITS:
            frames = [frame for frame in traceback.extract_stack() if "/torch/optim/" in frame.filename or "/amradio/" in frame.filename]
            if "/amradio/" in frames[-1].filename:  # AdamW's counts of steps are on the CPU, wherever the weights are
                self.waits.append(f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}")
        if operation is torch.ops.aten._to_copy.default and arguments[0].dtype is torch.uint8 and out.is_floating_point():
            self.conversions.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("words", [(), ("engine.accumulate=2", "engine.ema=0.99", "balance=adaloss"), (SIZES,)], ids=str)
def test_a_step_converts_images_once_and_waits_for_nothing(recipe: Callable[..., Recipe], monkeypatch, tmp_path: Path, words):
    take = Optimization.take
    seen: list[Watch] = []

    def watched(self: Optimization, stage: Stage, step: int, *rest: Any) -> dict[str, torch.Tensor]:
        if not 1 <= step < 5:
            return take(self, stage, step, *rest)
        with Watch() as watch:
            metrics = take(self, stage, step, *rest)
        seen.append(watch)
        return metrics

    monkeypatch.setattr(Optimization, "take", watched)
    run_distill(recipe("stages.0.steps=6", "evaluate.every=null", "engine.log_every=100", "engine.checkpoint_every=100", *words))
    pieces = 2 if "engine.accumulate=2" in words else 1
    assert [len(watch.conversions) for watch in seen] == [pieces] * 4
    assert [watch.waits for watch in seen] == [[]] * 4


def test_models_of_one_size_share_a_view(recipe: Callable[..., Recipe], monkeypatch):
    made = []
    prepare = Trainer.__init__

    def kept(self: Trainer, *positional: Any, **named: Any) -> None:
        prepare(self, *positional, **named)
        made.append(self)

    monkeypatch.setattr(Trainer, "__init__", kept)
    run_distill(recipe("stages.0.steps=1", "evaluate.every=null"))
    task, stage = made[0].context.task, made[0].context.stages[0]
    (partition,) = stage.partitions(0)
    batch = Batch(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ("a", "b"), torch.zeros(2, 8))
    views = task.prepare(batch, partition).views
    assert views.student.images is views.teachers["clip"].images
    assert views.student.images is not views.teachers["sam"].images


@pytest.mark.parametrize("ahead", ["false", "true"])
def test_each_size_is_compiled_once(recipe: Callable[..., Recipe], monkeypatch, tmp_path: Path, ahead: str):
    """With a backend that runs the graphs as they are: the losses are those of the eager run, and no size is compiled a second time."""
    graphs: list[tuple[tuple[Any, ...], ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        tensors = [given for given in inputs if isinstance(given, torch.Tensor)]
        graphs.append(tuple(tuple(given.shape) for given in tensors if given.ndim == 4 and given.shape[:2] == (4, 3)))
        return graph.forward

    monkeypatch.setattr(compilation, "BACKEND", backend)
    sizes = "stages.0.partitions.0={image_size: 56, image_sizes: [{size: 40}, {size: 48}, {size: 56}], batch_size: 4}"
    words = ("stages.0.steps=12", "evaluate.every=6", "teachers.dino=null", "teachers.sam=null", sizes)
    words = (*words, f"engine.prepare_ahead={ahead}")
    eager = losses(run_distill(recipe(*words, f"out={tmp_path / 'eager'}")))
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=2):  # fewer than there are sizes, as torch's 8 is for some recipes
        compiled = losses(run_distill(recipe(*words, "engine.compile=true", f"out={tmp_path / 'compiled'}")))
    assert compiled == pytest.approx(eager, rel=1e-5)
    fixed = [shape for images in graphs for shape in images if all(isinstance(side, int) for side in shape)]
    sizes_seen = sorted(shape[2] for shape in fixed)
    assert sizes_seen == [32, 40, 48, 56, 56], "the teacher's size, and the student's in training; the last in evaluation as well"
