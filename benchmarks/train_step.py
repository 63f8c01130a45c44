"""Images/s of the training loop against a bare hand-written loop over the same teachers, student, losses and batches, in one run.

    python benchmarks/train_step.py [--recipe quickstart] [--steps 60] [--rounds 5] [--json FILE] [key=value ...]

Loops take turns in one process, each round on the same batches and with the same number of CPU threads: the package's loop as the recipe
has it, the bare loop, and both with the teachers one step ahead in a thread (`engine.prepare_ahead`: each thread with half of the
threads). The time is taken between the fetch of batch `WARM` and that of the last one, so start-up is in none of them. A loop of the
package should reach 0.98 of the bare loop of its kind. The recipe's losses must be mean squared errors.

Then the parts of a step are timed one by one, with the device waited for at every border: waiting for data, views, each teacher, the
student's forward pass, the losses, backward, the exchange between processes (none here), optimizer.

    python benchmarks/train_step.py --switched [--recipe quickstart] [--steps 30] [--rounds 5] [--json FILE] [key=value ...]

measures in place of this what each part of `SWITCHED` adds to a step of the recipe, switched on alone, and all that go together: the
step with it and the step without take turns on batches of their own, and a ratio of 1.1 is a step that takes 1.1 times as long.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from amradio.devices import find_device
from amradio.distillation.alignment import align
from amradio.distillation.calibration import calibrate
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.engine.prefetch import ahead
from amradio.environment import environment
from amradio.recipe import Recipe
from amradio.training import Trainer, load_teachers
from amradio.training.trainer import Reporting

WARM = 5
HEADS = "heads={{summary: {{type: {0}}}, spatial: {{type: {0}}}}}"
SWITCHED = {
    "phi_s": ["normalize={summary: phi_s, spatial: phi_s}"],
    "pca": ["normalize.spatial=pca"],
    "zca": ["normalize.spatial=zca"],
    "hadamard": ["normalize.spatial=hadamard"],
    "angle": ["normalize.summary=none", "loss.summary=angle"],
    "tangent_sphere": ["normalize.summary=none", "loss.summary=tangent_sphere"],
    "hybrid": ["loss.spatial=hybrid"],
    "dampened_mse": ["loss.spatial=dampened_mse"],
    "rkd": ["loss.summary={type: sum, terms: [{loss: mse}, {loss: rkd}]}"],
    "asymmetric_rkd": ["loss.summary={type: sum, terms: [{loss: mse}, {loss: asymmetric_rkd}]}"],
    "token_similarity": ["loss.spatial={type: sum, terms: [{loss: mse}, {loss: token_similarity, weight: 0.1}]}"],
    "adaloss": ["balance=adaloss"],
    "uncertainty": ["balance=uncertainty"],
    "teacher_dropping": ["balance=teacher_dropping"],
    "transformer heads": [HEADS.format("transformer")],
    "ladder heads": [HEADS.format("ladder")],
    "shift": ["stages.0.partitions.0.shift=1"],
    "mosaic": ["stages.0.partitions.0.mosaic=[sam]"],
    "sizes 48, 64, 80": ["stages.0.partitions.0.image_sizes=[48, 64, 80]"],
    "the same, packed": ["stages.0.partitions.0.image_sizes=[48, 64, 80]", "stages.0.partitions.0.packed=true"],
    "sizes 48x80, 80x48": ["stages.0.partitions.0.image_sizes=[[48, 80], 64, [80, 48]]"],
    "windows": ["regularize.windows={sizes: [2, 4], num_global: 1}"],
    "spectral": ["regularize.spectral=true"],
    "weight_noise": ["regularize.weight_noise=0.05"],
    "drop_path": ["regularize.drop_path=0.1"],
    "self_distillation": ["engine.ema=0.999", "regularize.self_distillation={weight: 0.5}"],
    "ema": ["engine.ema=0.999"],
    "gradient_checkpointing": ["student.gradient_checkpointing=true"],
}
"""What each part is switched on by."""
TOGETHER = ("phi_s", "hybrid", "adaloss", "shift", "mosaic", "spectral", "weight_noise", "drop_path", "self_distillation")


class Stamped:
    """Batches from a list, again and again, with the time of each fetch."""

    def __init__(self, batches):
        self.batches = itertools.cycle(batches)
        self.stamps = []

    def __iter__(self):
        return self

    def __next__(self):
        synchronize()
        self.stamps.append(time.perf_counter())
        return next(self.batches)

    def seconds_a_step(self):
        return (self.stamps[-1] - self.stamps[WARM]) / (len(self.stamps) - 1 - WARM)


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def build(recipe):
    return Trainer(recipe, load_teachers(recipe, {}), Processes(find_device(recipe.engine.device, "engine.device")), Log(None))


def our_loop(trainer, batches, is_ahead):
    """The loop of the package, without evaluation and checkpoints but with its logs and checks."""
    stamped = Stamped(batches)
    recipe = trainer.context.recipe
    engine = recipe.engine.model_copy(update={"prepare_ahead": is_ahead})
    trainer.context.recipe = recipe.model_copy(update={"engine": engine})
    trainer.context.feeds.training = lambda group, step: stamped
    trainer.hooks = [hook for hook in trainer.hooks if isinstance(hook, Reporting)]
    trainer.run()
    return stamped.seconds_a_step()


def bare_loop(context, batches, steps, is_ahead):
    """What one writes in an afternoon for this one case: no names, no settings, no metrics."""
    stamped = Stamped(batches)
    task, device, optimizer = context.task, context.processes.device, context.optimizer
    network, (size, _) = task.network, context.stages[0].groups[0].partition.size
    parameters = list(network.parameters())
    to_target = task.normalizers.by_name()
    kernel = context.autocast

    def answers(batch):
        images = batch.images.to(device, non_blocking=True).float() / 255
        with torch.inference_mode(), torch.autocast(device.type, kernel, enabled=kernel is not None):
            raw = {name: teacher(images) for name, teacher in task.teachers.items()}
            return images, {key: to_target[key].to_target(raw[key[0]].of(key[1])) for key in to_target}

    def learn(batch, images, targets):
        with torch.autocast(device.type, kernel, enabled=kernel is not None):
            student = network.student(images, batch.draws.to(device, non_blocking=True))
            predictions = {name: head(student) for name, head in network.heads.items()}
        loss = 0.0
        for (name, kind), target in targets.items():
            prediction = predictions[name].of(kind)
            if kind == "spatial":
                prediction, target = align(prediction, target, "larger")
            loss = loss + (prediction.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    assert all(group.view_size == (size, size) for group in context.stages[0].groups)
    limited = itertools.islice(stamped, steps)
    if is_ahead:
        for batch, future in ahead(limited, answers):
            learn(batch, *future.result())
    else:
        for batch in limited:
            learn(batch, *answers(batch))
    return stamped.seconds_a_step()


class Parts:
    """Seconds a step in each named part, the device waited for at every border."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self._begun = {}

    def begin(self, name, *_):
        synchronize()
        self._begun[name] = time.perf_counter()

    def end(self, name, *_):
        synchronize()
        self.seconds[name] += time.perf_counter() - self._begun[name]

    @contextmanager
    def part(self, name):
        self.begin(name)
        yield
        self.end(name)

    def watch(self, name, module):
        return [
            module.register_forward_pre_hook(partial(self.begin, name)),
            module.register_forward_hook(partial(self.end, name)),
        ]

    def wrap(self, name, owner, method):
        """Times every call of a method."""
        original = getattr(owner, method)

        def timed(*positional, **named):
            with self.part(name):
                return original(*positional, **named)

        setattr(owner, method, timed)


def breakdown(trainer, batches, steps):
    """{part: ms a step}: parts one after another, so their sum is more than a step in which the device works ahead."""
    parts, context, task = Parts(), trainer.context, trainer.context.task
    stage, optimization = context.stages[0], trainer.optimization
    for name, teacher in task.teachers.items():
        parts.watch(f"teacher {name}", teacher)
    parts.watch("student forward", task.network.student)
    for name, head in task.network.heads.items():
        parts.watch(f"head {name}", head)
    parts.wrap("views", task.views, "of")
    parts.wrap("losses", task, "_compare")
    parts.wrap("optimizer", context.optimizer, "step")
    parts.wrap("clip", context.parallel, "clip")
    backward = torch.Tensor.backward
    torch.Tensor.backward = lambda self, *rest, **named: _timed(parts, "backward", backward, self, *rest, **named)
    stream = context.feeds.training(stage.groups[0], 0)
    try:
        for step in range(WARM + steps):
            if step == WARM:
                parts.seconds.clear()
            with parts.part("waiting for data"):
                batch = next(stream)
            with parts.part("step without data"):
                optimization.take(stage, step, [batch] * len(stage.groups), False)
    finally:
        torch.Tensor.backward = backward
        stream.close()
    milliseconds = {name: 1000 * seconds / steps for name, seconds in parts.seconds.items()}
    step = milliseconds.pop("step without data")
    inside = sum(value for name, value in milliseconds.items() if name != "waiting for data")
    return milliseconds | {"rest of the step": step - inside}


def _timed(parts, name, call, *positional, **named):
    with parts.part(name):
        return call(*positional, **named)


def switched(options, folder):
    """{part: steps of the recipe with the part / steps without it, one ratio a round}."""
    ratios = {}
    without = prepared(options, folder, [])
    for name, words in {**SWITCHED, "together": [word for part in TOGETHER for word in SWITCHED[part]]}.items():
        trainers = [without, prepared(options, folder, words)]
        ratios[name] = []
        for number in range(options.rounds):
            order = (0, 1) if number % 2 == 0 else (1, 0)
            seconds = {index: our_loop(*trainers[index], False) for index in order}
            ratios[name].append(seconds[1] / seconds[0])
        values = ratios[name]
        print(f"{name:24s} {statistics.median(values):.3f} of a step without it (from {min(values):.3f} to {max(values):.3f})", flush=True)
    return ratios


def prepared(options, folder, words):
    """A calibrated trainer of the recipe, and as many batches as it takes steps."""
    recipe = load(options, folder, words)
    trainer = build(recipe)
    context, group = trainer.context, trainer.context.stages[0].groups[0]
    stream = context.feeds.training(group, 0)
    batches = list(itertools.islice(stream, options.steps))
    stream.close()
    pairs = [(batch.to(context.processes.device), group.partition) for batch in batches[:8]]
    calibrate(context.task, pairs, recipe.normalize, context.processes, context.autocast)
    return trainer, batches


def load(options, folder, words=()):
    common = [f"stages.0.steps={options.steps}", "evaluate.every=null", "engine.log_every=20", f"out={folder}/run"]
    return Recipe.load(options.recipe, *common, *options.words, *words)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart", help="name or file; with one partition whose models see images of one size")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--switched", action="store_true", help="what each part of the method costs, switched on alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="*", help="changes to the recipe")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.switched:
            return write(options, {"step_with_it": switched(options, folder)})
        recipe = load(options, folder)
        if any(recipe.loss.of(kind).type != "mse" for kind in ("summary", "spatial")):
            raise SystemExit("the bare loop has mean squared errors only: give loss.summary=mse loss.spatial=mse")
        trainer = build(recipe)
        context, group = trainer.context, trainer.context.stages[0].groups[0]
        stream = context.feeds.training(group, 0)
        batches = list(itertools.islice(stream, 8))
        stream.close()
        pairs = [(batch.to(context.processes.device), group.partition) for batch in batches]
        calibrate(context.task, pairs, recipe.normalize, context.processes, context.autocast)
        training = context.feeds.training
        seconds = defaultdict(list)
        for _ in range(options.rounds):
            for is_ahead in (False, True):
                seconds["bare loop", is_ahead].append(bare_loop(context, batches, options.steps, is_ahead))
                seconds["amradio", is_ahead].append(our_loop(trainer, batches, is_ahead))
        context.feeds.training = training
        parts = breakdown(trainer, batches, options.steps)
    size = batches[0].images.shape[0]
    rows = {f"{name}{', prepare_ahead' if is_ahead else ''}": [size / s for s in values] for (name, is_ahead), values in seconds.items()}
    for name, speeds in rows.items():
        print(f"{name:26s} {statistics.median(speeds):8.1f} images/s   (from {min(speeds):.1f} to {max(speeds):.1f})")
    ratios = {}
    for is_ahead, name in ((False, "amradio / bare"), (True, "the same, both with prepare_ahead")):
        ratios[name] = [b / o for b, o in zip(seconds["bare loop", is_ahead], seconds["amradio", is_ahead], strict=True)]
        values = ratios[name]
        print(f"{name}: {statistics.median(values):.3f} (from {min(values):.3f} to {max(values):.3f}), {options.rounds} rounds")
    print(f"a step of {size} images in parts, ms (the device waited for at every border):")
    for name, value in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"  {name:20s} {value:9.2f}")
    return write(options, {"images_per_second": rows, "ratio": ratios, "ms_a_step": parts, "batch_size": size})


def write(options, result):
    if options.json:
        result |= {"steps": options.steps, "threads": torch.get_num_threads(), "words": options.words, "recipe": options.recipe}
        options.json.write_text(json.dumps(result | {"environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
