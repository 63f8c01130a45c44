"""Agreement of heads with their teachers, over a list of student sizes: does the student change its mind with the resolution?

The mode switch of AM-RADIO (figure 5): a student trained at separate sizes may agree with a teacher at one size and not at the next.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from torch import Tensor

from ...config import Pixels, Positive, UserPath
from ...distillation.alignment import GridRule, align
from ...distillation.losses import CosineSettings, MatchSettings
from ...distillation.metrics import MeanAndStd, compare, with_norm_ratio
from ...distillation.statistics import SMALLEST_STD, Moments
from ...drawing.lines import Line, draw_lines
from ...errors import UserError
from ...features import KINDS, Kind
from ...files import user_path
from ...labelled.base import ImageSet
from ...labelled.classification import AnyImages
from ..base import Bench, Evaluation, EvaluationSettings, Framing, Metric, Predict, Predictors, Result, Sizes
from ..predictors import inputs_of
from ..progress import Progress
from ..reading import Broken, batched, no_image, num_windows, read_image_windows
from ..sharing import Share
from .cka import Cka
from .statistics import spread_cells

COLLAPSE = 0.7
"""A size whose agreement is below this share of the best size's is warned of."""
LEARNT = 0.1
"""Below this agreement there is nothing that could collapse."""
MEASURES = (
    Metric("standardized_cosine", "standardized cosine", "cos"),
    Metric("norm_ratio", "norm ratio", "", None),
    Metric("cosine", "cosine", "cos"),
    Metric("constant_cosine", "constant cosine", "cos", None, headline=False),
    Metric("fidelity", "fidelity", "", headline=False),
    Metric("cka", "CKA", "cos", headline=False),
    Metric("loss", "loss", "", "lower", headline=False),
)
CALIBRATION, THESE_IMAGES = "calibration of the run", "images of this evaluation"
"""Where the mean and the deviation of each channel come from, with which features are standardized."""


class AgreementSettings(EvaluationSettings):
    """How near each head is to its teacher: standardized cosine, norm ratio (how much predictions vary around the mean against the teacher;
    1 is right), raw cosine beside that of a constant, fidelity (variance of the teacher / mean squared error), linear CKA, AM-RADIO's loss.
    """

    view: ClassVar[Framing] = "square"

    type: Literal["agreement"] = "agreement"
    data: AnyImages
    """Any images."""
    image_sizes: Annotated[list[Pixels], pydantic.Field(min_length=1)] | None = None
    """px of the student's view, one measurement each; teachers always see what they see at `image_size`. null for `image_size` alone, and
    without one for the size at which each head was trained last."""
    cells_per_image: Positive = 16
    """Cells of each map that CKA is measured on."""
    plot: UserPath | None = None
    """A PNG file of the standardized cosine against the size; null for none."""

    def protocol_sizes(self, bench: Bench) -> Sizes:
        """Head and teacher at the size at which the head was trained last."""
        return {f"{who}/{name}": bench.size_of_head(name) for name in bench.teachers for who in ("student", "teacher")}

    def written(self) -> Mapping[str, str]:
        """The plot."""
        return {} if self.plot is None else {"plot": self.plot}

    def build(self) -> "AgreementBySize":
        """Opens the data; raises UserError where they are missing."""
        sizes = self.image_sizes or ([self.image_size] if self.image_size else None)
        return AgreementBySize(self.data.build(), sizes, self.cells_per_image, user_path(self.plot) if self.plot else None)


class AgreementBySize(Evaluation):
    """The evaluation `agreement`: predictions of heads against features of their teachers, at some sizes of the student's view."""

    is_shared = True

    def __init__(self, images: ImageSet, image_sizes: Sequence[int] | None, cells: int, plot: Path | None):
        """image_sizes: px; None for the size at which each head was trained. cells: of each map, for CKA. plot: a PNG file to write."""
        self.images, self.image_sizes, self.cells, self.plot = images, image_sizes, cells, plot

    def check(self, predict: Predict, bench: Bench) -> None:
        """Raises UserError where no head has its teacher beside it."""
        _heads(predict, bench)

    def run(self, predict: Predictors, bench: Bench) -> Result:
        """One row a head, at the first size; all sizes are in the details under `by_size`."""
        heads = _heads(predict, bench)
        sizes = {name: list(dict.fromkeys(self.image_sizes or [bench.size_of_head(name)])) for name in heads}
        students = {size: predict.at(size) for size in dict.fromkeys(size for chosen in sizes.values() for size in chosen)}
        broken = Broken()
        statistics = self._statistics(heads, predict, bench, broken)
        comparisons = self._compare(bench, broken, sizes, predict, students, statistics)
        by_size = {f"student/{name}": {size: _row(comparisons, name, size) for size in sizes[name]} for name in heads}
        if self.plot is not None:
            bench.share.first_does(lambda: self._draw(by_size))
        rows = {row: next(iter(values.values())) for row, values in by_size.items()}
        calibrated = bench.agreement.statistics.keys()
        origins = {f"{name}/{kind}": CALIBRATION if (name, kind) in calibrated else THESE_IMAGES for name, kind in statistics}
        return Result(
            metrics=[metric.prefixed(kind) for kind in KINDS for metric in MEASURES],
            rows=rows,
            counts={"images": len(self.images), "sizes": len(students), "broken": len(broken.reasons)},
            fingerprint=self.images.fingerprint(),
            floors={f"{kind}_standardized_cosine": 0.0 for kind in KINDS},
            row_floors={
                row: {f"{kind}_cosine": values[f"{kind}_constant_cosine"] for kind in KINDS if f"{kind}_constant_cosine" in values}
                for row, values in rows.items()
            },
            floor="a constant prediction",
            inputs={f"student/{name}": inputs_of(students[sizes[name][0]])[f"student/{name}"] for name in heads},
            notes=(*broken.note(), _statistics_note(origins), *_constants(rows), *collapses(by_size)),
            details={
                "by_size": {row: {str(size): row_of for size, row_of in values.items()} for row, values in by_size.items()},
                "statistics": origins,
                "grid": bench.agreement.grid,
            },
        )

    def _over_images(self, bench: Bench, broken: Broken, title: str, take: Callable[[Tensor], None]) -> None:
        """Every batch [B, 3, H, W] of the images of this process to `take`. Raises UserError where not one image can be read."""
        broken.tell(self.images.notes())

        def work(numbers: range) -> dict[int, tuple[int, dict[str, str]]]:
            done = {}
            progress: Progress = lambda items, text, total: bench.progress(items, f"{title}: {text}", total)  # noqa: E731
            for window in read_image_windows(self.images, numbers, bench.num_workers, progress):
                count = 0
                for images in window.batches:
                    count += len(images)
                    for _, batch in batched([image for _, image in images], bench.device):
                        take(batch)
                done[window.number] = count, window.reasons
            return done

        windows = bench.share.collect(work, num_windows(self.images))
        broken.reasons |= {key: reason for _, reasons in windows for key, reason in reasons.items()}
        if not any(count for count, _ in windows):
            raise no_image(self.images, broken)

    def _statistics(self, heads: Sequence[str], predict: Predict, bench: Bench, broken: Broken) -> Mapping[tuple[str, Kind], MeanAndStd]:
        """(mean, std) of every channel of the teachers: as the run calibrated them, else over all images."""
        calibrated = bench.agreement.statistics
        compared: list[tuple[str, Kind]] = [(name, kind) for name in heads for kind in KINDS if _has(bench, name, kind)]
        missing = [key for key in compared if key not in calibrated]
        moments = {(name, kind): Moments(bench.teachers[name].dim(kind) or 0, bench.device) for name, kind in missing}

        def take(images: Tensor) -> None:
            for name in dict.fromkeys(name for name, _ in missing):
                for kind, features in predict[f"teacher/{name}"](images).items():
                    if (name, kind) in moments:
                        moments[name, kind].update(features)

        if missing:
            self._over_images(bench, broken, "statistics", take)
        for part in moments.values():
            part.sums = bench.share.add_up(part.sums)
        pairs = {key: calibrated[key] if key in calibrated else moments[key].finish() for key in compared}
        return {key: (mean.to(bench.device), std.to(bench.device)) for key, (mean, std) in pairs.items()}

    def _compare(
        self,
        bench: Bench,
        broken: Broken,
        sizes: Mapping[str, Sequence[int]],
        predict: Predict,
        students: Mapping[int, Predict],
        statistics: Mapping[tuple[str, Kind], MeanAndStd],
    ) -> "dict[tuple[str, Kind, int], Comparison]":
        grid = bench.agreement.grid
        comparisons: dict[tuple[str, Kind, int], Comparison] = {
            (name, kind, size): Comparison(kind, pair, self.cells, grid)
            for (name, kind), pair in statistics.items()
            for size in sizes[name]
        }

        def take(images: Tensor) -> None:
            for name, sizes_of_head in sizes.items():
                teacher = predict[f"teacher/{name}"](images)
                for size in sizes_of_head:
                    for kind, prediction in students[size][f"student/{name}"](images).items():
                        target = teacher.of(kind)
                        if target is not None:
                            comparisons[name, kind, size].update(prediction, target)

        self._over_images(bench, broken, "agreement", take)
        for comparison in comparisons.values():
            comparison.add_up(bench.share)
        return comparisons

    def _draw(self, by_size: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
        assert self.plot is not None
        lines = []
        for row, sizes in by_size.items():
            for kind in KINDS:
                key = f"{kind}_standardized_cosine"
                points = [(float(size), values[key]) for size, values in sorted(sizes.items()) if key in values]
                if points:
                    lines.append(Line(f"{row.removeprefix('student/')} {kind}", points))
        draw_lines(lines, self.plot, "standardized cosine against px of the student's view")


class Comparison:
    """Sums over images of how a head's predictions compare with its teacher's features, for one kind and size."""

    def __init__(self, kind: Kind, statistics: MeanAndStd, cells: int, grid: GridRule = "larger"):
        """statistics: of the teacher, [D] each. cells: of each map, for CKA. grid: which of two grids maps are compared on."""
        self.kind: Kind = kind
        mean, std = statistics
        self.mean = mean.float()
        self.std = torch.where(std < SMALLEST_STD, torch.ones_like(std), std).float()
        self.cells = cells
        self.grid: GridRule = grid
        self.loss = (CosineSettings() if kind == "summary" else MatchSettings()).build()  # AM-RADIO, section 3.3
        self.sums: dict[str, Tensor] = {}
        self.squared_error = torch.zeros((), dtype=torch.float64, device=self.mean.device)
        self.variance = float(std.double().square().sum())
        self.num_images = self.num_vectors = 0
        self.cka = Cka(len(mean), len(mean), self.mean.device)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction, target: [B, D] or [B, H, W, D] in raw teacher space; maps may differ in their grids."""
        if self.kind == "spatial":
            prediction, target = align(prediction, target, self.grid)
        measured = compare(prediction, target, self.mean, self.std) | {"loss": self.loss(prediction, target)}
        for name, values in measured.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(self.squared_error)) + values.double().sum()
        self.squared_error += (prediction.double() - target.double()).square().sum()
        self.num_images += len(target)
        self.num_vectors += target[..., 0].numel()
        self.cka.update(self._some(prediction) - self.mean, self._some(target) - self.mean)

    def add_up(self, share: Share) -> None:
        """Puts the sums of all processes together; one that had no image has none. All processes must call it."""
        if share.is_alone:
            return
        counts = torch.tensor([self.num_images, self.num_vectors, self.cka.count], dtype=torch.float64)
        self.num_images, self.num_vectors, num_rows = (int(count) for count in share.add_up(counts))
        names = share.first_does(lambda: list(self.sums))  # the first process has the first images
        zero = torch.zeros_like(self.squared_error)
        self.sums = {name: share.add_up(self.sums.get(name, zero)) for name in names}
        self.squared_error = share.add_up(self.squared_error)
        self.cka.add_up(share.add_up, num_rows)

    def _some(self, features: Tensor) -> Tensor:
        """[N, D]: all summaries, or evenly spaced cells of the maps."""
        return features if self.kind == "summary" else spread_cells(features, self.cells).flatten(0, 1)

    def values(self) -> dict[str, float]:
        """By the names of `MEASURES`."""
        means = with_norm_ratio({name: float(total) / self.num_images for name, total in self.sums.items()})
        fidelity = self.variance / max(float(self.squared_error) / self.num_vectors, 1e-30)
        values = means | {"fidelity": fidelity, "cka": self.cka.value()}
        return {metric.name: values[metric.name] for metric in MEASURES}


def _heads(predict: Predict, bench: Bench) -> list[str]:
    """The names of the heads that have their teacher beside them; UserError where there is none."""
    heads = [name for name in bench.teachers if f"student/{name}" in predict and f"teacher/{name}" in predict]
    if not heads:
        raise UserError("no head of the student has its teacher here; name the teachers under `teachers`")
    return heads


def _has(bench: Bench, name: str, kind: Kind) -> bool:
    """Whether both the head and its teacher have this kind of feature."""
    return bench.model is not None and bench.model.network.head(name).part(kind) is not None and bench.teachers[name].dim(kind) is not None


def collapses(by_size: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[str]:
    """A warning for every head and kind whose standardized cosine at some size falls far below that of its best size."""
    warnings = []
    for row, sizes in by_size.items():
        for kind in KINDS:
            key = f"{kind}_standardized_cosine"
            values = {size: row_of[key] for size, row_of in sizes.items() if key in row_of}
            low = sorted(
                size for size, value in values.items() if value < COLLAPSE * max(values.values()) and max(values.values()) > LEARNT
            )
            if low:
                best = max(values, key=lambda size: values[size])
                at = ", ".join(f"{size} px ({values[size]:.2f})" for size in low)
                warnings.append(
                    f"warning: {row} {kind} collapses at {at}, against {values[best]:.2f} at {best} px: the student switches modes there; "
                    "train all teachers at these sizes"
                )
    return warnings


def _statistics_note(origins: Mapping[str, str]) -> str:
    """Where the statistics come from with which features are standardized, once for all features where they agree."""
    names = {origin: [name for name, other in origins.items() if other == origin] for origin in dict.fromkeys(origins.values())}
    parts = [origin if len(names) == 1 else f"{origin} ({', '.join(features)})" for origin, features in names.items()]
    return f"standardized with statistics of the {' and the '.join(parts)}"


def _constants(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The raw cosines that a constant prediction reaches, to compare the heads' with."""
    cosines = [
        f"{row} {kind} {values[key]:.3f}" for row, values in rows.items() for kind in KINDS if (key := f"{kind}_constant_cosine") in values
    ]
    return [f"raw cosine of a constant prediction: {', '.join(cosines)}"]


def _row(comparisons: "Mapping[tuple[str, Kind, int], Comparison]", name: str, size: int) -> dict[str, float]:
    """The values of a head at one size, by kind and measure."""
    return {
        f"{kind}_{key}": value
        for kind in KINDS
        if (name, kind, size) in comparisons
        for key, value in comparisons[name, kind, size].values().items()
    }
