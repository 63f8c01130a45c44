"""What `engine.channels_last` saves: forward and backward of timm students in both memory formats, in turns, in CPU time.

    OMP_NUM_THREADS=1 python benchmarks/memory_format.py [--rounds 5] [--json benchmarks/results/memory_format.json]

Float32, batches of 32, one thread. The ratio is that of one round, so that a machine that is shared slows both formats alike.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from amradio.environment import environment
from amradio.students import TimmSettings

MODELS = ("mobilenetv4_conv_small", "tf_efficientnet_lite0", "resnet18", "convnext_atto")
SIZES = (64, 96)
BATCH = 32
FORMATS = (torch.contiguous_format, torch.channels_last)


def seconds(model: torch.nn.Module, images: torch.Tensor) -> float:
    """CPU time of one forward and backward."""
    started = time.process_time()
    features = model(images)
    (features.summary.square().mean() + features.spatial.square().mean()).backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - started


def measure(name: str, size: int, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, size, size)
    models = [TimmSettings(model=name).build(1).train().to(memory_format=memory_format) for memory_format in FORMATS]
    for model in models:
        seconds(model, images)
    measured = [[seconds(model, images) for model in models] for _ in range(rounds)]
    ratios = [last / plain for plain, last in measured]
    speeds = [BATCH / min(column) for column in zip(*measured, strict=True)]
    return {
        "model": name,
        "image_size": size,
        "images_per_second": [round(speed, 1) for speed in speeds],
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in MODELS:
        for size in SIZES:
            rows.append(measure(name, size, options.rounds))
            print(rows[-1], flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
