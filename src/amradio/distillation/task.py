"""The task: a batch of images -> the loss of the student's heads against their teachers, and named numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..features import KINDS, Features, Kind
from ..network import Network
from ..teachers.base import Teacher
from .alignment import GridRule, Pair, align_regions
from .metrics import measure as measure_pair
from .metrics import with_norm_ratio
from .parts import Comparison, Part, comparisons, parts_of
from .pointwise import Gather, Loss, LossContext, ungathered
from .self_distillation import SelfDistillation
from .sphere import Sphere
from .statistics import HeadNormalizers
from .targets import OnlineTeachers, Targets
from .views import Partition, View, ViewMaker, Views
from .weighting import Balance, StepLosses

Timer = Callable[[str], AbstractContextManager[None]]
"""Times a named piece of work: `with timer("teachers"): ...`."""


class StepOutput(NamedTuple):
    """The result for a batch; all tensors stay on the device."""

    loss: Tensor
    """float32 [], to be minimized."""
    metrics: dict[str, Tensor]
    """float32 [] each, by name: `clip/summary/loss`, and where measured `clip/summary/` + each measure of `distillation.metrics`."""


class Prepared(NamedTuple):
    """What is computed of a batch before the student runs; none of it depends on the student's weights."""

    views: Views
    targets: Mapping[str, Features]
    """Raw features of the partition's teachers."""


class Objective(NamedTuple):
    """How predictions are compared with targets."""

    losses: Mapping[Kind, Loss]
    balance: Balance
    grid: GridRule = "larger"
    mixed: frozenset[Kind] = frozenset()
    """Kinds whose target space mixes channels."""
    needs_sphere: bool = False
    """Whether the loss of summaries needs the calibrated directions of the targets."""
    gather: Gather = ungathered
    """Brings together the rows of all processes."""
    token_exponent: float = 0.0
    """Maps weigh as their share of valid cells to this power."""


class Distillation(nn.Module):
    """One student that learns from several teachers (AM-RADIO, sections 3.2 and 3.3).

    Owns the network and the normalizers. Teachers are held, not owned (see `OnlineTeachers`).
    """

    def __init__(self, network: Network, teachers: Mapping[str, Teacher], objective: Objective, timer: Timer | None = None):
        """teachers: by name, frozen, on one device; one for every head of `network`."""
        super().__init__()
        self.network = network
        self.objective = objective
        self.timer: Timer = timer or (lambda _: nullcontext())
        self.online = OnlineTeachers(teachers)
        self.targets: Targets = self.online
        self.views = ViewMaker(teachers, network.student.patch_size)
        dims = {name: _dims(network, name, teachers[name]) for name in network.heads}
        self.normalizers = HeadNormalizers(dims, objective.mixed)
        on_sphere = {name: kinds["summary"] for name, kinds in dims.items() if "summary" in kinds and objective.needs_sphere}
        self.spheres = nn.ModuleDict({name: Sphere(dim) for name, dim in on_sphere.items()})
        self.balance = objective.balance
        self.self_distillation: SelfDistillation | None = None
        """Compares the student with its moving average in training; None for no such loss."""

    @property
    def teachers(self) -> dict[str, Teacher]:
        """The frozen teachers by name."""
        return self.online.teachers

    def prepare(self, batch: Batch, partition: Partition) -> Prepared:
        """The views of a batch on the device, and the features of the partition's teachers."""
        views = self.views.of(batch.images, partition, batch.draws)
        return Prepared(views, self.targets(batch, views))

    def predict(self, view: View, draws: Tensor | None, partition: Partition) -> dict[str, Features]:
        """Predictions of the partition's heads, in target space, by name.

        draws: float32 [B, 8] uniform in [0, 1), random numbers of a training step; None in evaluation.
        """
        if partition.windowing is None:
            return self.network(view.images, draws, partition.teachers)
        self.network.student.set_windows(*partition.windowing)
        try:
            return self.network(view.images, draws, partition.teachers)
        finally:
            self.network.student.set_windows(None)

    def prepare_parts(self, batch: Batch, partition: Partition) -> list[Prepared]:
        """`prepare` for the images of each size, in the order of `parts_of`."""
        return [self.prepare(part.batch, part.partition) for part in parts_of(batch, partition)]

    def forward(self, batch: Batch, partition: Partition, measure: bool = False, prepared: Sequence[Prepared] | None = None) -> StepOutput:
        """The loss of one partition's images, the mean over them; that of a map is the mean over its cells, however many it has.

        batch: on the device. measure: report cosines and norm ratios as well. prepared: by `prepare_parts`, where it is there already.
        """
        if prepared is None:
            with self.timer("teachers"):
                prepared = self.prepare_parts(batch, partition)
        with self.timer("student"):
            parts = parts_of(batch, partition)
            views = [of_part.views.student for of_part in prepared]
            predictions = self._predict_parts(parts, views)
            with torch.autocast(batch.images.device.type, enabled=False):
                pairs = [self.pairs(*of_part) for of_part in zip(predictions, prepared, strict=True)]
                output = self._compare(comparisons(parts, pairs), partition, batch.draws, measure)
            if self.self_distillation is not None and self.training and not self.network.student.frozen:
                mesa = torch.zeros_like(output.loss)
                for part, view, predicted in zip(parts, views, predictions, strict=True):
                    spatial = predicted["backbone"].spatial
                    assert spatial is not None
                    share = len(part.batch.keys) / len(batch.keys)
                    mesa = mesa + self.self_distillation(spatial, view.images, part.batch.draws) * share
                loss = output.loss + mesa * (self.self_distillation.weight * partition.weight)
                output = StepOutput(loss, output.metrics | {"loss": loss.detach(), "self_distillation/loss": mesa.detach()})
            return output

    def _predict_parts(self, parts: Sequence[Part], views: Sequence[View]) -> list[dict[str, Features]]:
        if parts[0].rows is None:
            return [self.predict(views[0], parts[0].batch.draws, parts[0].partition)]
        groups = [(view.images, part.batch.draws) for part, view in zip(parts, views, strict=True)]
        return self.network.forward_packed(groups, parts[0].partition.teachers)

    def _compare(self, compared: Iterator[Comparison], partition: Partition, draws: Tensor, measure: bool) -> StepOutput:
        samples: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for comparison in compared:
            pair = comparison.first
            samples[pair.name] = comparison.by_sample(self._losses_of)
            losses[pair.name] = samples[pair.name].mean()
            metrics[f"{pair.name}/loss"] = losses[pair.name].detach()
            if measure:
                normalizer = self.normalizers.of(pair.teacher, pair.kind)
                measured = [measure_pair(one, normalizer) for one, _ in comparison.pairs]
                joined = {name: torch.cat([values[name] for values in measured]) for name in measured[0]}
                means = with_norm_ratio({name: value.mean() for name, value in joined.items()})
                metrics |= {f"{pair.name}/{name}": value for name, value in means.items()}
        if measure:
            metrics |= {f"{name}/balance": factor for name, factor in self.balance.factors(set(losses)).items()}
        loss = self.balance(StepLosses(losses, samples, draws)) * partition.weight
        return StepOutput(loss, {"loss": loss.detach()} | metrics)

    def _losses_of(self, pair: Pair, partition: Partition) -> Tensor:
        """float32 [B]."""
        sphere = self.spheres[pair.teacher] if pair.kind == "summary" and pair.teacher in self.spheres else None
        context = LossContext(pair.valid, cast(Sphere | None, sphere), self.objective.gather)
        losses = self.objective.losses[pair.kind](pair.prediction, pair.target, context)
        if pair.kind == "spatial" and self.objective.token_exponent:
            losses = losses * partition.map_weight
            if pair.valid is not None:
                losses = losses * pair.valid.flatten(1).float().mean(1) ** self.objective.token_exponent
        return losses

    def pairs(self, predictions: Mapping[str, Features], prepared: Prepared) -> Iterator[Pair]:
        """Each prediction with its target, in target space, maps on one grid over the region that both views show."""
        views = prepared.views
        for name, features in prepared.targets.items():
            for kind, prediction in predictions[name].items():
                raw = features.of(kind)
                assert raw is not None, f"head {name} predicts a {kind} that its teacher does not have"
                target = self.normalizers.of(name, kind).to_target(raw)
                valid = None
                if kind == "spatial":
                    regions = views.student.region, views.teachers[name].region
                    prediction, target, valid = align_regions(prediction, target, self.objective.grid, regions)
                yield Pair(name, kind, prediction.float(), target, valid)

    def unused_parameters(self, partition: Partition) -> list[nn.Parameter]:
        """Parameters that no gradient of the partition's loss reaches: of heads and losses of teachers outside it, of a frozen student."""
        outside = {name: head for name, head in self.network.heads.items() if name not in partition.teachers}
        losses = {f"{name}/{kind}" for name in outside for kind in KINDS}
        body = (p for p in self.network.student.parameters() if p.requires_grad) if self.network.student.frozen else ()
        return [*body, *(p for head in outside.values() for p in head.parameters()), *self.balance.learnt(losses)]


def _dims(network: Network, name: str, teacher: Teacher) -> dict[Kind, int]:
    """Channels of each kind that the head predicts."""
    dims: dict[Kind, int] = {}
    for kind in KINDS:
        dim = teacher.dim(kind)
        if network.head(name).part(kind) is not None:
            assert dim is not None, f"head {name} predicts a {kind} that its teacher does not have"
            dims[kind] = dim
    return dims
