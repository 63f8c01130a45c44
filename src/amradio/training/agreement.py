"""Agreement: how near each head is to its teacher on held-out images."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..batch import Batch
from ..distillation.metrics import measure, with_norm_ratio
from ..distillation.task import Distillation
from ..distillation.views import Partition

Agreement = dict[str, dict[str, float]]


@torch.no_grad()
def agreement(
    task: Distillation, batches: Iterable[Batch], partition: Partition, autocast: torch.dtype | None, gather: Callable[[Any], list[Any]]
) -> Agreement:
    """`{"clip/summary": {"standardized_cosine": ..., "cosine": ..., "constant_cosine": ..., "norm_ratio": ...}}`, over all images.

    batches: of the data room, this process's share, which may be empty; gather: the value of every process. Changes neither weights nor
    statistics; all teachers of the partition are measured.
    """
    was_training = task.training
    task.eval()
    sums: dict[str, Tensor] = {}
    count = torch.zeros((), dtype=torch.float64, device=_device(task))
    for batch in batches:
        for name, value in _measure(task, batch.to(_device(task)), partition, autocast).items():
            sums[name] = sums.get(name, torch.zeros_like(count)) + value.double().sum()
        count += batch.images.shape[0]
    task.train(was_training)
    local_sums = {name: value.item() for name, value in sums.items()}
    everyone = gather((count.item(), local_sums))  # by name, as a process whose share has no image knows none
    total = sum(number for number, _ in everyone)
    names = list(dict.fromkeys(name for _, process_sums in everyone for name in process_sums))
    means = [sum(process_sums.get(name, 0.0) for _, process_sums in everyone) / total for name in names]
    rows: Agreement = {}
    for name, value in zip(names, means, strict=True):
        feature, measure = name.rsplit("/", 1)
        rows.setdefault(feature, {})[measure] = value
    return {feature: with_norm_ratio(row) for feature, row in rows.items()}


def _measure(task: Distillation, batch: Batch, partition: Partition, autocast: torch.dtype | None) -> dict[str, Tensor]:
    with torch.autocast(batch.images.device.type, autocast, enabled=autocast is not None):
        prepared = task.prepare(batch, partition)
        predictions = task.predict(prepared.views.student, None, partition)
    measured: dict[str, Tensor] = {}
    for pair in task.pairs(predictions, prepared):
        values = measure(pair, task.normalizers.of(pair.teacher, pair.kind))
        measured |= {f"{pair.name}/{name}": value for name, value in values.items()}
    return measured


def _device(task: Distillation) -> torch.device:
    return next(task.parameters()).device
