"""Throughput: images a second of any model on the device at hand."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


@torch.inference_mode()
def images_per_second(predict: Callable[[Tensor], object], images: Tensor, seconds: float = 1.0) -> float:
    """Median images/s of `predict` on one batch [B, 3, H, W], after two calls to warm up, over calls of `seconds` in all (at least 5)."""
    for _ in range(2):
        predict(images)
    _wait(images)
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        begun = time.perf_counter()
        predict(images)
        _wait(images)
        times.append(time.perf_counter() - begun)
    return images.shape[0] / statistics.median(times)


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
