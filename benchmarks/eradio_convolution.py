"""E-RADIO's forward pass with its largest convolutions as products of matrices, against torch's convolutions throughout, in one run.

    OMP_NUM_THREADS=1 python benchmarks/eradio_convolution.py [--sizes base large] [--rounds 5] [--json FILE]

Both ways take turns on one model with random weights, float32 on a CPU without gradients. A ratio above 1 is faster than torch's.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import torch

from amradio.environment import environment
from amradio.students.eradio_convolution import Convolution
from amradio.students.eradio_settings import EradioSettings

WAYS = {"torch": lambda *_: False, "matrices": Convolution._takes_matrices}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["base", "large"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        torch.manual_seed(0)
        model = EradioSettings.model_validate({"size": size}).build(1).eval()
        for pixels in (224, 384, 512):
            rows += [{"size": size, "pixels": pixels, "batch": batch, **compare(model, pixels, batch, options.rounds)} for batch in (1, 4)]
            for row in rows[-2:]:
                print(
                    f"{size:8s} {pixels} px, batch {row['batch']}: {row['median']:.2f} (from {row['min']:.2f} to {row['max']:.2f})",
                    flush=True,
                )
    if options.json:
        result = {"rows": rows, "threads": torch.get_num_threads(), "environment": environment()}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def compare(model: torch.nn.Module, pixels: int, batch: int, rounds: int) -> dict:
    """Seconds of each way and round, the median ratio and its range."""
    images = torch.rand(batch, 3, pixels, pixels)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in sorted(WAYS, reverse=number % 2 == 1):
            with mock.patch.object(Convolution, "_takes_matrices", WAYS[way]):
                begun = time.perf_counter()
                model(images)
                seconds[way].append(time.perf_counter() - begun)
    ratios = [slow / fast for slow, fast in zip(seconds["torch"][1:], seconds["matrices"][1:], strict=True)]
    return {"seconds": seconds, "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


if __name__ == "__main__":
    main()
