"""Agreement of heads with their teachers, over a list of student sizes: does the student change its mind with the resolution?

The mode switch of AM-RADIO (figure 5): a student trained at separate sizes may agree with a teacher at one size and not at the next.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from torch import Tensor

from ...config import Pixels, Positive, UserPath
from ...data.labelled.base import ImageSet
from ...data.labelled.classification import AnyImages, spread
from ...distillation.losses import CosineSettings, MatchSettings
from ...distillation.metrics import compare, with_norm_ratio
from ...distillation.statistics import SMALLEST_STD, Moments
from ...drawing.lines import Line, draw_lines
from ...errors import UserError
from ...features import KINDS, Features, Kind, resize_grid
from ...files import user_path
from ..base import Bench, Evaluation, EvaluationSettings, Metric, Predict, Result, Sizes, View
from ..predictors import inputs_of
from ..reading import Broken, batched, readable, windows
from .cka import Cka

Statistics = Mapping[tuple[str, Kind], tuple[Tensor, Tensor]]
"""(mean, std) [D] in float64 of each teacher's kind of feature."""
COLLAPSE = 0.7
"""A size whose agreement is below this share of the best size's is warned of."""
LEARNT = 0.1
"""Below this agreement there is nothing that could collapse."""
MEASURES = (
    Metric("std cosine", "cos"),
    Metric("norm ratio", "", None),
    Metric("cosine", "cos"),
    Metric("constant cosine", "cos", None, headline=False),
    Metric("fidelity", "", headline=False),
    Metric("CKA", "cos", headline=False),
    Metric("loss", "", "lower", headline=False),
)


class AgreementSettings(EvaluationSettings):
    """How near each head is to its teacher: standardised cosine, norm ratio (how much predictions vary around the mean against the teacher;
    1 is right), raw cosine beside that of a constant, fidelity (variance of the teacher / mean squared error), linear CKA, AM-RADIO's loss.
    """

    view: ClassVar[View] = "square"

    type: Literal["agreement"] = "agreement"
    data: AnyImages
    """Any images."""
    image_sizes: Annotated[list[Pixels], pydantic.Field(min_length=1)] | None = None
    """px of the student's view, one measurement each; teachers always see what they see at `image_size`. null for `image_size` alone, and
    without one for the size at which each head was trained last."""
    cells_per_image: Positive = 16
    """Cells of each map that CKA is measured on."""
    plot: UserPath | None = None
    """A PNG file of the standardised cosine against the size; null for none."""

    def protocol_sizes(self, bench: Bench) -> Sizes:
        """Head and teacher at the size at which the head was trained last."""
        return {f"{who}/{name}": bench.size_of_head(name) for name in bench.teachers for who in ("student", "teacher")}

    def build(self) -> "AgreementBySize":
        """Opens the data; raises UserError where they are missing."""
        sizes = self.image_sizes or ([self.image_size] if self.image_size else None)
        return AgreementBySize(self.data.build(), sizes, self.cells_per_image, user_path(self.plot) if self.plot else None)


class AgreementBySize(Evaluation):
    """See `AgreementSettings`."""

    def __init__(self, images: ImageSet, image_sizes: Sequence[int] | None, cells: int, plot: Path | None):
        self.images, self.image_sizes, self.cells, self.plot = images, image_sizes, cells, plot

    def check(self, predict: Predict, bench: Bench) -> None:
        """See the base."""
        _heads(predict, bench)

    def run(self, predict: Predict, bench: Bench) -> Result:
        """One row a head, at the first size; all sizes are in the details under `by size`."""
        heads = _heads(predict, bench)
        sizes = {name: list(dict.fromkeys(self.image_sizes or [bench.size_of_head(name)])) for name in heads}
        students = {size: bench.predict("square", size) for size in dict.fromkeys(size for each in sizes.values() for size in each)}
        broken = Broken()
        statistics = self._statistics(heads, predict, bench, broken)
        found = self._compare(sizes, predict, students, statistics, bench)
        by_size = {f"student/{name}": {size: _row(found, name, size) for size in sizes[name]} for name in heads}
        if self.plot is not None:
            self._draw(by_size)
        rows = {row: next(iter(values.values())) for row, values in by_size.items()}
        return Result(
            metrics=[metric._replace(name=f"{kind} {metric.name}") for kind in KINDS for metric in MEASURES],
            rows=rows,
            counts={"images": len(self.images), "sizes": len(students), "broken": len(broken.reasons)},
            fingerprint=self.images.fingerprint(),
            floors={f"{kind} std cosine": 0.0 for kind in KINDS},
            row_floors={
                row: {f"{kind} cosine": values[f"{kind} constant cosine"] for kind in KINDS if f"{kind} constant cosine" in values}
                for row, values in rows.items()
            },
            floor="a constant prediction",
            inputs={f"student/{name}": inputs_of(students[sizes[name][0]])[f"student/{name}"] for name in heads},
            notes=(*broken.note(), *_constants(rows), *collapses(by_size)),
            details={"by size": {row: {str(size): each for size, each in sizes_.items()} for row, sizes_ in by_size.items()}},
        )

    def _batches(self, bench: Bench, broken: Broken, title: str) -> Iterator[Tensor]:
        read = bench.progress(readable(self.images, broken, bench.num_workers), f"{title}: {self.images.describe()}", len(self.images))
        return (batch for window in windows(read) for _, batch in batched([image for _, image in window], bench.device))

    def _statistics(self, heads: Sequence[str], predict: Predict, bench: Bench, broken: Broken) -> Statistics:
        """(mean, std) of every channel of the teachers over all images."""
        moments: dict[tuple[str, Kind], Moments] = {}
        for images in self._batches(bench, broken, "statistics"):
            for name in heads:
                for kind, found in _kinds(predict[f"teacher/{name}"](images)).items():
                    moments.setdefault((name, kind), Moments(found.shape[-1], found.device)).update(found)
        return {key: moment.finish() for key, moment in moments.items()}

    def _compare(
        self,
        sizes: Mapping[str, Sequence[int]],
        predict: Predict,
        students: Mapping[int, Predict],
        statistics: Statistics,
        bench: Bench,
    ) -> "dict[tuple[str, Kind, int], Comparison]":
        comparisons: dict[tuple[str, Kind, int], Comparison] = {}
        for images in self._batches(bench, Broken(), "agreement"):
            for name, own in sizes.items():
                targets = _kinds(predict[f"teacher/{name}"](images))
                for size in own:
                    for kind, prediction in _kinds(students[size][f"student/{name}"](images)).items():
                        if kind in targets:
                            key = (name, kind, size)
                            if key not in comparisons:
                                comparisons[key] = Comparison(kind, statistics[name, kind], self.cells)
                            comparisons[key].update(prediction, targets[kind])
        return comparisons

    def _draw(self, by_size: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
        assert self.plot is not None
        lines = []
        for row, sizes in by_size.items():
            for kind in KINDS:
                key = f"{kind} std cosine"
                points = [(float(size), values[key]) for size, values in sorted(sizes.items()) if key in values]
                if points:
                    lines.append(Line(f"{row.removeprefix('student/')} {kind}", points))
        draw_lines(lines, self.plot, "standardised cosine against px of the student's view")


class Comparison:
    """Sums over images of what a head says and what its teacher says, for one kind and size."""

    def __init__(self, kind: Kind, statistics: tuple[Tensor, Tensor], cells: int):
        """statistics: (mean, std) [D] of the teacher; cells: of each map that CKA looks at."""
        self.kind: Kind = kind
        self.mean, self.std = (tensor.float() for tensor in statistics)
        self.cells = cells
        self.loss = (CosineSettings() if kind == "summary" else MatchSettings()).build()  # AM-RADIO, section 3.3
        self.sums: dict[str, Tensor | float] = {}
        self.squared_error = torch.zeros((), dtype=torch.float64, device=self.mean.device)
        self.num_images = self.num_vectors = 0
        self.cka: Cka | None = None

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction, target: [B, D] or [B, H, W, D] in teacher space; maps are compared on the teacher's grid."""
        if self.kind == "spatial":
            prediction = resize_grid(prediction, (target.shape[1], target.shape[2]))
        scale = torch.where(self.std < SMALLEST_STD, torch.ones_like(self.std), self.std)
        measured = compare(prediction, target, self.mean, scale) | {"loss": self.loss(prediction, target)}
        for name, each in measured.items():
            self.sums[name] = self.sums.get(name, 0.0) + each.double().sum()
        self.squared_error += (prediction.double() - target.double()).square().sum()
        self.num_images += len(target)
        self.num_vectors += target[..., 0].numel()
        x, y = (self._some(each) for each in (prediction, target))
        self.cka = self.cka or Cka(x.shape[1], y.shape[1], x.device)
        self.cka.update(x - self.mean, y - self.mean)

    def _some(self, features: Tensor) -> Tensor:
        if self.kind == "summary":
            return features
        cells = features.flatten(1, 2)
        return cells[:, spread(cells.shape[1], self.cells)].flatten(0, 1)

    def values(self) -> dict[str, float]:
        """By the names of `MEASURES`."""
        assert self.cka is not None
        means = with_norm_ratio({name: float(total) / self.num_images for name, total in self.sums.items()})
        fidelity = float(self.std.double().square().sum()) / max(float(self.squared_error) / self.num_vectors, 1e-30)
        return {
            "std cosine": means["standardised_cosine"],
            "norm ratio": means["norm_ratio"],
            "cosine": means["cosine"],
            "constant cosine": means["constant_cosine"],
            "fidelity": fidelity,
            "CKA": self.cka.value(),
            "loss": means["loss"],
        }


def _heads(predict: Predict, bench: Bench) -> list[str]:
    """Those that stand beside their teacher."""
    found = [name for name in bench.teachers if f"student/{name}" in predict and f"teacher/{name}" in predict]
    if not found:
        raise UserError("no head of the student has its teacher here; name the teachers under `teachers`")
    return found


def collapses(by_size: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[str]:
    """A warning for every head and kind whose standardised cosine at some size falls far below that of its best size."""
    found = []
    for row, sizes in by_size.items():
        for kind in KINDS:
            values = {size: each[key] for size, each in sizes.items() if (key := f"{kind} std cosine") in each}
            low = sorted(
                size for size, value in values.items() if value < COLLAPSE * max(values.values()) and max(values.values()) > LEARNT
            )
            if low:
                best = max(values, key=lambda size: values[size])
                at = ", ".join(f"{size} px ({values[size]:.2f})" for size in low)
                found.append(
                    f"warning: {row} {kind} collapses at {at}, against {values[best]:.2f} at {best} px: the student switches modes there; "
                    "train all teachers at these sizes"
                )
    return found


def _constants(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What raw cosines are to be measured against."""
    found = [
        f"{row} {kind} {values[key]:.3f}" for row, values in rows.items() for kind in KINDS if (key := f"{kind} constant cosine") in values
    ]
    return [f"raw cosine of a constant prediction: {', '.join(found)}"]


def _row(found: "Mapping[tuple[str, Kind, int], Comparison]", name: str, size: int) -> dict[str, float]:
    return {
        f"{kind} {key}": value for kind in KINDS if (name, kind, size) in found for key, value in found[name, kind, size].values().items()
    }


def _kinds(features: Features) -> dict[Kind, Tensor]:
    return {kind: value for kind in KINDS if (value := getattr(features, kind)) is not None}
