"""The cost of a model: time of a call, peak memory, multiply-accumulates."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .features import Features

WARM_UP = 2
LEAST_CALLS = 5


@torch.inference_mode()
def time_calls(call: Callable[[Tensor], Features], images: Tensor, seconds: float) -> dict[str, float]:
    """`images_per_second`, `latency_ms` (median of a call), `latency_p95_ms`, on CUDA `peak_memory_mb`, over calls of `seconds` in all."""
    is_cuda = images.is_cuda
    for _ in range(WARM_UP):
        call(images)
    if is_cuda:
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
    times: list[float] = []
    while len(times) < LEAST_CALLS or sum(times) < seconds:
        start = time.perf_counter()
        call(images)
        if is_cuda:
            torch.cuda.synchronize(images.device)
        times.append(time.perf_counter() - start)
    times.sort()
    median = times[len(times) // 2]
    measured = {
        "images_per_second": len(images) / median,
        "latency_ms": 1e3 * median,
        "latency_p95_ms": 1e3 * times[min(len(times) - 1, int(0.95 * len(times)))],
    }
    return measured | ({"peak_memory_mb": torch.cuda.max_memory_allocated(images.device) / 1e6} if is_cuda else {})


def macs(call: Callable[[Tensor], Features], images: Tensor) -> float:
    """Multiply-accumulates of one call: matrix products, convolutions and attention, as torch counts them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call(images)
    return counter.get_total_flops() / 2
