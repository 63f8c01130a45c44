"""Images/s of the training loop against a bare hand-written loop over the same teachers, student, losses and batches, in one run.

    python benchmarks/train_step.py [--steps 60] [--rounds 5] [--json FILE] [key=value ...]

Both loops run alternately in one process, each round on the same batches; the time is taken between the fetch of batch `WARM` and
that of the last one, so start-up is in neither. The loop should reach at least 0.95 of the bare one.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from amradio.devices import find_device
from amradio.distillation.calibration import calibrate
from amradio.engine.distributed import Processes
from amradio.engine.log import Log
from amradio.environment import environment
from amradio.recipe import Recipe
from amradio.training import Trainer, load_teachers
from amradio.training.trainer import Reporting

QUICKSTART = Path(__file__).parents[1] / "src/amradio/recipes/quickstart.yaml"
WARM = 5


class Stamped:
    """Batches from a list, again and again, with the time of each fetch."""

    def __init__(self, batches):
        self.batches = itertools.cycle(batches)
        self.stamps = []

    def __iter__(self):
        return self

    def __next__(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())
        return next(self.batches)

    def seconds_a_step(self):
        return (self.stamps[-1] - self.stamps[WARM]) / (len(self.stamps) - 1 - WARM)


def build(recipe):
    return Trainer(recipe, load_teachers(recipe, {}), Processes(find_device(recipe.engine.device)), Log(None))


def our_loop(trainer, batches):
    """The loop of the package, without evaluation and checkpoints but with its logs and checks."""
    stamped = Stamped(batches)
    trainer.context.feeds.training = lambda group, step: stamped
    trainer.hooks = [hook for hook in trainer.hooks if isinstance(hook, Reporting)]
    trainer.run()
    return stamped.seconds_a_step()


def bare_loop(context, batches, steps):
    """What one writes in an afternoon for this one case: no names, no settings, no metrics."""
    stamped = Stamped(batches)
    task, device, optimizer = context.task, context.processes.device, context.optimizer
    network, size = task.network, context.stages[0].groups[0].partition.image_size
    parameters = list(network.parameters())
    assert all(group.view_size == size for group in context.stages[0].groups)
    statistics_of = {key: (value.mean, value.std) for key, value in task.normalizers.by_name().items()}
    for _, batch in zip(range(steps), stamped, strict=False):
        images = batch.images.to(device).float() / 255
        with torch.autocast(device.type, context.autocast, enabled=context.autocast is not None):
            targets = {name: teacher(images) for name, teacher in task.teachers.items()}
            student = network.student(images, batch.draws.to(device))
            predictions = {name: head(student) for name, head in network.heads.items()}
        loss = 0.0
        for (name, kind), (mean, std) in statistics_of.items():
            target = (targets[name].of(kind) - mean) / std
            prediction = predictions[name].of(kind).float()
            cosine = (1 - F.cosine_similarity(prediction, target, dim=-1)).mean()
            loss = loss + (cosine if kind == "summary" else 0.9 * cosine + 0.1 * F.smooth_l1_loss(prediction, target))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return stamped.seconds_a_step()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="*", help="changes to the quickstart's recipe")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        common = [f"stages.0.steps={options.steps}", "evaluate.every=null", "engine.log_every=20", f"out={folder}/run"]
        recipe = Recipe.load(str(QUICKSTART), *common, *options.words)
        trainer = build(recipe)
        context, group = trainer.context, trainer.context.stages[0].groups[0]
        batches = list(itertools.islice(context.feeds.training(group, 0), 8))
        pairs = [(batch.to(context.processes.device), group.partition) for batch in batches]
        calibrate(context.task, pairs, recipe.normalize, lambda sums: None, context.autocast)
        bare, ours = [], []
        for _ in range(options.rounds):
            bare.append(bare_loop(context, batches, options.steps))
            ours.append(our_loop(trainer, batches))
    size = batches[0].images.shape[0]
    ratios = [b / o for b, o in zip(bare, ours, strict=True)]
    rows = {"bare loop": [size / s for s in bare], "amradio": [size / s for s in ours]}
    for name, speeds in rows.items():
        print(f"{name:10s} {statistics.median(speeds):8.1f} images/s   (from {min(speeds):.1f} to {max(speeds):.1f})")
    print(f"amradio / bare: {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f}), {options.rounds} rounds")
    if options.json:
        found = {"images_per_second": rows, "ratio": ratios, "steps": options.steps, "environment": environment()}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
