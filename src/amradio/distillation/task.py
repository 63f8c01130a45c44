"""The task: a batch of images -> the loss of the student's heads against their teachers, and what to report of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import Settings
from ..features import KINDS, Features, Kind, resize_grid
from ..heads import fold_affine
from ..images import resize, to_float
from ..network import Network
from ..teachers.base import Teacher
from .balance import Balance
from .losses import Loss
from .metrics import compare, with_norm_ratio
from .normalizers import NormalizeSettings
from .statistics import Moments, Normalizer, set_statistics

Part = Callable[[str], AbstractContextManager[None]]


class Partition(NamedTuple):
    """A group of teachers that see the same images at the same student size."""

    name: str
    teachers: tuple[str, ...]
    image_size: int
    weight: float = 1.0


class StepOutput(NamedTuple):
    """What the loop sees of a batch; all tensors stay on the device."""

    loss: Tensor
    """float32 [], to be minimised."""
    metrics: dict[str, Tensor]
    """float32 [] each, by name: `clip/summary/loss`, and where measured `.../standardised_cosine`, `.../norm_ratio`, `.../cosine`,
    `.../constant_cosine` (see `metrics`)."""


class Pair(NamedTuple):
    """A head's prediction and its target, both in target space and on one grid."""

    teacher: str
    kind: Kind
    prediction: Tensor
    target: Tensor

    @property
    def name(self) -> str:
        """`clip/summary`."""
        return f"{self.teacher}/{self.kind}"


class Objective(NamedTuple):
    """How predictions are compared with targets."""

    losses: Mapping[Kind, Loss]
    balance: Balance
    grid: str = "larger"


class Distillation(nn.Module):
    """One student learns from several teachers (AM-RADIO, sections 3.2 and 3.3).

    Owns the network and the normalisers; teachers are held, not owned: they are in no state dict, no optimizer and no `.train()`.
    """

    def __init__(self, network: Network, teachers: Mapping[str, Teacher], objective: Objective, part: Part | None = None):
        """part: names a piece of work for the clock, e.g. `with part("teachers")`."""
        super().__init__()
        self.network = network
        self._teachers = dict(teachers)
        self.objective = objective
        self.part: Part = part or _untimed
        self.normalizers = nn.ModuleDict({name: _normalizers(head, teachers[name]) for name, head in network.heads.items()})

    @property
    def teachers(self) -> dict[str, Teacher]:
        """The frozen teachers by name."""
        return self._teachers

    def forward(
        self,
        images: Tensor,
        draws: Tensor | None,
        partition: Partition,
        measure: bool = False,
        targets: Mapping[str, Features] | None = None,
    ) -> StepOutput:
        """The loss of one partition's images.

        images: uint8 [B, 3, H, W] on the device; draws: float32 [B, 8] uniform in [0, 1); measure: report cosines and norm ratios as well.
        targets: what `targets` says of these images, where that is known already.
        """
        if targets is None:
            with self.part("teachers"):
                targets = self.targets(images, partition)
        with self.part("student"):
            view = resize(to_float(images), (partition.image_size, partition.image_size))
            predictions = self.network(view, draws, partition.teachers)
            with torch.autocast(images.device.type, enabled=False):
                return self._compare(predictions, targets, partition, measure)

    def _compare(
        self, predictions: Mapping[str, Features], targets: Mapping[str, Features], partition: Partition, measure: bool
    ) -> StepOutput:
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for pair in self.pairs(predictions, targets):
            losses[pair.name] = self.objective.losses[pair.kind](pair.prediction, pair.target).mean()
            metrics[f"{pair.name}/loss"] = losses[pair.name].detach()
            if measure:
                measured = cosines(pair, self.normalizer(pair.teacher, pair.kind))
                means = with_norm_ratio({name: value.mean() for name, value in measured.items()})
                metrics |= {f"{pair.name}/{name}": value for name, value in means.items()}
        loss = self.objective.balance(losses) * partition.weight + self._untouched(partition)
        return StepOutput(loss, {"loss": loss.detach()} | metrics)

    def targets(self, images: Tensor, partition: Partition) -> dict[str, Features]:
        """What the partition's teachers say of uint8 images [B, 3, H, W], raw. Teachers of one input size share the resized images.

        A teacher that takes many sizes gets the one nearest to the student's, however large the images are.
        """
        floats = to_float(images)
        resized: dict[tuple[int, int], Tensor] = {}
        targets = {}
        for name in partition.teachers:
            teacher = self._teachers[name]
            size = teacher.size_for(partition.image_size, partition.image_size)
            if size not in resized:
                resized[size] = resize(floats, size)
            targets[name] = teacher(resized[size])
        return targets

    def pairs(self, predictions: Mapping[str, Features], targets: Mapping[str, Features]) -> Iterator[Pair]:
        """Each head's prediction with its target, in target space, maps on the common grid."""
        for name, target in targets.items():
            for kind in KINDS:
                prediction = getattr(predictions[name], kind)
                if prediction is None:
                    continue
                wanted = self.normalizer(name, kind).to_target(getattr(target, kind))
                if kind == "spatial":
                    prediction, wanted = _common_grid(prediction, wanted, self.objective.grid)
                yield Pair(name, kind, prediction.float(), wanted)

    def normalizer(self, teacher: str, kind: Kind) -> Normalizer:
        """The normaliser of one teacher's kind of feature."""
        found = self.normalizers[teacher][kind]  # type: ignore[index]
        assert isinstance(found, Normalizer)
        return found

    def views(self, images: Tensor, partition: Partition) -> dict[str, Tensor]:
        """The images as the student and each teacher see them: float [B, 3, h, w] in [0, 1] by name."""
        floats = to_float(images)
        sizes = {"student": (partition.image_size, partition.image_size)}
        sizes |= {name: self._teachers[name].size_for(partition.image_size, partition.image_size) for name in partition.teachers}
        return {name: resize(floats, size) for name, size in sizes.items()}

    def _untouched(self, partition: Partition) -> Tensor | float:
        """Zero, but with a gradient to heads of teachers outside the partition, so that all processes hold the same gradients."""
        others = [p for name, head in self.network.heads.items() if name not in partition.teachers for p in head.parameters()]
        return sum((parameter.sum() * 0 for parameter in others), start=0.0) if torch.is_grad_enabled() else 0.0


def _untimed(name: str) -> AbstractContextManager[None]:  # noqa: ARG001 - the signature of a clock's part
    return nullcontext()


def _normalizers(head: nn.Module, teacher: Teacher) -> nn.ModuleDict:
    kinds = [kind for kind in KINDS if getattr(head, kind) is not None]
    return nn.ModuleDict({kind: Normalizer(getattr(teacher, f"{kind}_dim")) for kind in kinds})


def _common_grid(prediction: Tensor, target: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Both maps [B, h, w, D] on the larger (AM-RADIO) or smaller (RADIOv2.5) of their grids."""
    grids = [(x.shape[1], x.shape[2]) for x in (prediction, target)]
    grid = (max if rule == "larger" else min)(grids, key=lambda g: g[0] * g[1])
    return resize_grid(prediction, grid), resize_grid(target, grid)


def cosines(pair: Pair, normalizer: Normalizer) -> dict[str, Tensor]:
    """What `metrics.compare` measures of a pair, per sample, float32 [B]."""
    return compare(normalizer.to_raw(pair.prediction), normalizer.to_raw(pair.target), normalizer.mean, normalizer.std)


@torch.no_grad()
def calibrate(
    task: Distillation,
    batches: Iterable[tuple[Tensor, Partition]],
    settings: NormalizeSettings,
    add_up: Callable[[Tensor], None],
    autocast: torch.dtype | None,
    followers: Iterable[Network] = (),
) -> None:
    """Finds the statistics of every teacher over `batches` (uint8 images and their partition) and sets the normalisers.

    A teacher that is in several partitions gets one set of statistics, as its one head has one target space. Where a head had a target
    space already, its last layer is rewritten so that it says the same as before in raw teacher space; so are the heads of `followers`.
    add_up: sums a float64 tensor over all processes, in place. autocast: the precision in which the teachers run in training.
    """
    moments: dict[tuple[str, Kind], Moments] = {}
    for images, partition in batches:
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            targets = task.targets(images, partition)
        for name, features in targets.items():
            for kind in KINDS:
                if kind in task.normalizers[name]:  # type: ignore[operator]
                    found = getattr(features, kind)
                    moments.setdefault((name, kind), Moments(found.shape[-1], found.device)).update(found)
    for (name, kind), moment in moments.items():
        add_up(moment.sums)
        change = _set_target_space(task.normalizer(name, kind), getattr(settings, kind), moment)
        if change is not None:
            for network in (task.network, *followers):
                fold_affine(getattr(network.heads[name], kind), *change)


def _set_target_space(normalizer: Normalizer, settings: Settings, moment: Moments) -> tuple[Tensor, Tensor] | None:
    """The scale and shift from the old target space to the new one, None where there was none."""
    shift, scale, was_calibrated = normalizer.shift.double(), normalizer.scale.double(), bool(normalizer.calibrated)
    set_statistics(normalizer, settings, *moment.finish())
    if not was_calibrated:
        return None
    new_shift, new_scale = normalizer.shift.double(), normalizer.scale.double()
    return scale / new_scale, (shift - new_shift) / new_scale


def speak_raw(task: Distillation, parts: Iterable[tuple[str, Kind]]) -> None:
    """Says of parts of heads (teacher, kind) that they speak raw teacher space, as those of a finished model do.

    Their normalisers then count as set, to the identity, so that the first calibration rewrites their last layers as any later one does.
    """
    for name, kind in parts:
        task.normalizer(name, kind).calibrated.fill_(True)


def fold_normalizers(task: Distillation, network: Network) -> None:
    """Rewrites the heads of `network` (a copy of the task's) so that they speak raw teacher space, in float64."""
    for name, kinds in task.normalizers.items():
        for kind in kinds:  # type: ignore[attr-defined]
            normalizer = task.normalizer(name, kind)
            fold_affine(getattr(network.heads[name], kind), normalizer.scale.double(), normalizer.shift.double())
