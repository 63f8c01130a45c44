"""What the ways of running a ViT cost: windows against none, a pack against one by one, the position table against the whole.

    OMP_NUM_THREADS=1 python benchmarks/modes.py [--size tiny] [--device cpu] [--repeats 5]

The alternatives of one row are timed in turn, so that a change in the machine's load meets all of them; the least time of each counts.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence

import torch

from amradio.students.vit_settings import VitSettings

SMALL = ((96, 96), (112, 64), (64, 64), (80, 128)) * 4
LARGE = ((224, 224), (224, 160), (320, 224), (160, 160)) * 2


def least(calls: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Least milliseconds of each call, in turn `repeats` times after one for warming up."""
    found = [float("inf")] * len(calls)
    for turn in range(repeats + 1):
        for number, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                found[number] = min(found[number], (time.perf_counter() - start) * 1e3)
    return found


def with_windows(vit: torch.nn.Module, images: torch.Tensor, size: int | None) -> Callable[[], object]:
    def call() -> object:
        vit.set_windows(size)
        found = vit(images)
        vit.set_windows(None)
        return found

    return call


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    vit = VitSettings(size=options.size).build(4).eval().requires_grad_(False).to(options.device)
    print(f"vit {options.size}, {options.device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print(f"ms, the least of {options.repeats}")
    for side in (512, 1024):
        images = torch.rand(1, 3, side, side, device=options.device)
        calls = [with_windows(vit, images, size) for size in (None, 16, 8)]
        calls.append(lambda side=side: vit.patch_generator.positions((side // 16, side // 16), None))
        whole, sixteen, eight, table = least(calls, options.repeats, options.device)
        print(f"{side} px: all global {whole:.1f}, windows of 16 {sixteen:.1f}, of 8 {eight:.1f}; positions {table:.2f}")
    for name, sizes in (("16 images of 64 to 128 px", SMALL), ("8 images of 160 to 320 px", LARGE)):
        several = [torch.rand(3, *size, device=options.device) for size in sizes]
        calls = [lambda several=several: [vit(image[None]) for image in several], lambda several=several: vit.pack(several)]
        alone, packed = least(calls, options.repeats, options.device)
        print(f"{name}: one by one {alone:.1f}, packed {packed:.1f}")


if __name__ == "__main__":
    main()
