"""Throughput, latency, size and work of student, heads and teachers on the device at hand."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from torch import nn

from ..config import Pixels, Positive
from ..cost import LEAST_CALLS, macs, time_calls
from .base import Bench, Evaluation, EvaluationSettings, Framing, Metric, Predictors, Result
from .predictors import Predictor, inputs_of

METRICS = (
    Metric("images_per_second", "images/s", ""),
    Metric("latency_ms", "latency ms", "", "lower"),
    Metric("latency_p95_ms", "p95 ms", "", "lower", headline=False),
    Metric("parameters_m", "M parameters", "", "lower"),
    Metric("gmacs", "GMACs", "", "lower"),
    Metric("peak_memory_mb", "peak MB", "", "lower"),
)


class ThroughputSettings(EvaluationSettings):
    """Images/s, latency, parameters, GMACs and (on a GPU) peak memory of every model, each at its legal size nearest to `image_sizes`."""

    view: ClassVar[Framing] = "whole"

    type: Literal["throughput"] = "throughput"
    image_sizes: Annotated[list[Pixels], pydantic.Field(min_length=1)] | None = None
    """px of square images; null for `image_size`."""
    batch_sizes: list[Positive] = pydantic.Field([1, 32], min_length=1)
    """Images a call; the first also gives the latency."""
    seconds: Annotated[float, pydantic.Field(gt=0, le=3600)] = 1.0
    """How long each of them is called (at least five times)."""

    def build(self) -> "Throughput":
        """Never fails."""
        return Throughput(self.image_sizes or (self.image_size and [self.image_size]) or None, self.batch_sizes, self.seconds)


class Throughput(Evaluation):
    """Images per second, latency, parameters and work of each model: the evaluation `throughput`."""

    def __init__(self, image_sizes: Sequence[int] | None, batch_sizes: Sequence[int], seconds: float):
        self.image_sizes, self.batch_sizes, self.seconds = image_sizes, batch_sizes, seconds

    def run(self, predict: Predictors, bench: Bench) -> Result:
        """The table's columns are of the first size: images/s of the largest batch, latency of the first; all are in the details."""
        sizes = list(self.image_sizes or [bench.default_size])
        details: dict[str, dict[str, Any]] = {}
        measured: dict[int, Predictors] = {}
        for size in sizes:
            measured[size] = predict.at(size)
            for name, call in measured[size].items():
                details.setdefault(name, {})[str(size)] = self._measure(call, _part(bench, name), size, bench.device)
        rows = {name: self._row(by_size[str(sizes[0])]) for name, by_size in details.items()}
        notes = [
            f"throughput at {sizes[0]} px, {max(self.batch_sizes)} images a call; latency of {self.batch_sizes[0]}; "
            "a head includes the student"
        ]
        return Result(
            metrics=METRICS if bench.device.type == "cuda" else METRICS[:-1],
            rows=rows,
            counts={"calls_at_least": LEAST_CALLS, "threads": torch.get_num_threads()},
            inputs=inputs_of(measured[sizes[0]]),
            notes=notes,
            details=details,
        )

    def _measure(self, call: Predictor, parts: Sequence[nn.Module], size: int, device: torch.device) -> dict[str, Any]:
        draws = torch.Generator().manual_seed(0)
        images = torch.rand(max(self.batch_sizes), 3, size, size, generator=draws).to(device)
        view = call.joint.prepare(images)
        measured: dict[str, Any] = {
            "input": list(view.shape[-2:]),
            "parameters_m": sum(p.numel() for part in parts for p in part.parameters()) / 1e6,
            "gmacs": macs(call.fresh, view[:1]) / 1e9,
        }
        for batch in self.batch_sizes:
            measured[f"batch_{batch}"] = time_calls(call.fresh, view[:batch], self.seconds)
        return measured

    def _row(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Of one size, by the names of `METRICS`: latency of the first batch size, images/s and memory of the largest."""
        first, largest = measured[f"batch_{self.batch_sizes[0]}"], measured[f"batch_{max(self.batch_sizes)}"]
        values = {**measured, **largest, **{key: first[key] for key in ("latency_ms", "latency_p95_ms")}}
        return {metric.name: values[metric.name] for metric in METRICS if metric.name in values}


def _part(bench: Bench, name: str) -> list[nn.Module]:
    """The modules that a row needs."""
    kind, _, rest = name.partition("/")
    if kind == "teacher":
        return [bench.teachers[rest]]
    assert bench.model is not None
    return [bench.model.network.student, *([bench.model.network.heads[rest]] if rest else [])]
