"""Calibration: the statistics of the teachers' features, and the target spaces that are made of them."""

from collections.abc import Container, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ..affine import Affine
from ..batch import Batch
from ..engine.distributed import Processes
from ..features import Kind
from ..heads import final_linear
from ..network import Network
from .metrics import AgreementProtocol
from .normalizers import NormalizerSettings, NormalizeSettings
from .sphere import Sphere
from .statistics import Moments, Normalizer, set_statistics
from .task import Distillation
from .views import Partition


@torch.no_grad()
def calibrate(
    task: Distillation,
    batches: Iterable[tuple[Batch, Partition]],
    settings: NormalizeSettings,
    processes: Processes,
    autocast: torch.dtype | None,
    followers: Iterable[Network] = (),
) -> dict[tuple[str, Kind], int]:
    """Finds the statistics of every teacher and sets the normalizers; returns from how many samples (summaries or cells) each is.

    batches: with their partition, on the device. A teacher that is in several partitions gets one set of statistics, as its one head has
    one target space. Where a head had a target space already, its last layer is rewritten so that it predicts the same raw features as
    before.
    processes: their statistics are summed in float64, and all take the target spaces that the first one computes.
    autocast: the precision in which the teachers run in training; None for float32.
    followers: networks whose heads are rewritten in the same way (moving averages).
    """
    normalizers = task.normalizers.by_name()
    moments: dict[tuple[str, Kind], Moments] = {}
    summaries: dict[str, list[Tensor]] = {}
    for batch, partition in batches:
        with torch.autocast(batch.images.device.type, autocast, enabled=autocast is not None):
            prepared = task.prepare_parts(batch, partition)
        for name, features in (item for of_part in prepared for item in of_part.targets.items()):
            for kind, tensor in features.items():
                if (name, kind) in normalizers:
                    if (name, kind) not in moments:
                        moments[name, kind] = Moments(tensor.shape[-1], tensor.device, settings.of(kind).mixes_channels)
                    moments[name, kind].update(tensor)
                    if kind == "summary" and name in task.spheres:
                        summaries.setdefault(name, []).append(tensor.float().cpu())
    for (name, kind), moment in moments.items():
        processes.add_up(moment.sums)
        change = _set_target_space(normalizers[name, kind], settings.of(kind), moment, processes)
        if change is not None:
            for network in (task.network, *followers):
                change.fold(_last_layer(network, name, kind))
    for name, collected in summaries.items():
        to_target = normalizers[name, "summary"].affine.inverse()
        targets = [Affine(*(part.cpu() for part in to_target))(raw.double()) for raw in collected]
        cast(Sphere, task.spheres[name]).calibrate(targets, processes.add_up)
    return {key: int(moment.sums[-1]) for key, moment in moments.items()}


def _set_target_space(normalizer: Normalizer, settings: NormalizerSettings, moments: Moments, processes: Processes) -> Affine | None:
    """The map from the old target space to the new one, None where there was none."""
    before, was_calibrated = normalizer.affine.double(), bool(normalizer.calibrated)
    set_statistics(normalizer, settings, *moments.finish(), moments.covariance() if settings.mixes_channels else None)
    if settings.mixes_channels:  # eigenvectors may differ between machines
        for buffer in (normalizer.shift, normalizer.scale, normalizer.inverse):
            processes.copy_from_first(buffer)
    return before.relative_to(normalizer.affine) if was_calibrated else None


def mark_as_raw(task: Distillation, parts: Iterable[tuple[str, Kind]]) -> None:
    """Marks parts of heads (teacher, kind) whose outputs are in raw teacher space already, as in an exported model.

    Their normalizers then count as set, to the identity, so that the first calibration rewrites their last layers as any later one does.
    """
    for name, kind in parts:
        task.normalizers.of(name, kind).calibrated.fill_(True)


def fold_normalizers(task: Distillation, network: Network) -> None:
    """Rewrites the heads of `network` (a copy of the task's) so that they predict raw teacher features, in float64."""
    for (name, kind), normalizer in task.normalizers.by_name().items():
        normalizer.affine.double().fold(_last_layer(network, name, kind))


def agreement_protocol(task: Distillation, teachers: Container[str]) -> AgreementProtocol:
    """How the task compares heads with teachers: its grid, and (copies of) its statistics. teachers: those calibrated so far."""
    normalizers = {key: normalizer for key, normalizer in task.normalizers.by_name().items() if key[0] in teachers}
    statistics = {key: (normalizer.mean.clone(), normalizer.std.clone()) for key, normalizer in normalizers.items()}
    return AgreementProtocol(task.objective.grid, statistics)


def _last_layer(network: Network, name: str, kind: Kind) -> nn.Linear:
    part = network.head(name).part(kind)
    assert part is not None
    return final_linear(part)
