"""The interface of evaluations: plain objects that measure every model of `predict` and return a table, one row a model."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ..config import Pixels, Positive, Settings
from ..distillation.metrics import UNCALIBRATED, AgreementProtocol
from ..errors import UserError, nearest
from ..features import Features
from ..model import Model
from ..teachers.base import Teacher
from .cache import FeatureCache
from .inputs import Counts, describe
from .predictors import Framing, Predict, Predictor, Predictors, Sizes, inputs_of, predictors
from .progress import Progress, silent
from .sharing import Share

if TYPE_CHECKING:  # transformers' LLaVA takes seconds to import
    from ..downstream.vlm.assembly import Vlm

Rows = Mapping[str, Mapping[str, float]]

__all__ = [
    "Bench",
    "Evaluation",
    "EvaluationSettings",
    "Framing",
    "Metric",
    "Positive",
    "Predict",
    "Predictors",
    "Result",
    "Rows",
    "Sizes",
    "measure",
]


class Metric(NamedTuple):
    """One column."""

    name: str
    """As in the rows and in JSON: an identifier."""
    title: str
    """As printed above its column."""
    unit: Literal["%", "cos", ""] = "%"
    """%: 0 to 100, gaps are in points; cos: -1 to 1; otherwise a plain number."""
    better: Literal["higher", "lower"] | None = "higher"
    """Which is better; None where neither is."""
    headline: bool = True
    """Whether the printed table has it; the machine-readable results have all."""

    def prefixed(self, kind: str) -> "Metric":
        """The same measure of one kind of feature: `summary_norm_ratio`, printed as `summary norm ratio`."""
        return self._replace(name=f"{kind}_{self.name}", title=f"{kind} {self.title}")


@dataclass(frozen=True)
class Result:
    """What one evaluation found."""

    metrics: Sequence[Metric]
    """The columns, in the order in which they are shown."""
    rows: Rows
    """{name of the model: {metric: value}}; a model that an evaluation does not suit has no row, or no value in a column."""
    counts: Mapping[str, int]
    """Of what the numbers are means: images, classes, masks, ..."""
    fingerprint: str = ""
    """Of the data: the same images and labels in the same order give the same one; empty where there are no data."""
    floors: Mapping[str, float] = field(default_factory=dict)
    """{metric: what a trivial answer scores}."""
    row_floors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """{row: {metric: floor}} where floors differ between models."""
    floor: str = ""
    """What the trivial answer is, in words: `raw pixels`; empty where there is no floor."""
    inputs: Mapping[str, Counts] = field(default_factory=dict)
    """{row: {(height, width) px: images}} that its model received; filled in by `measure` where the evaluation does not."""
    notes: Sequence[str] = ()
    """Plain sentences for the reader: broken images, warnings."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the machine-readable results hold; JSON."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All settings of the evaluation; filled in by `measure`."""
    seconds: float = 0.0
    """How long it took; filled in by `measure`."""


def below_floor(result: Result, metric: Metric) -> list[str]:
    """The rows whose value is not better than the floor of `metric`."""
    if metric.better is None:
        return []
    sign = 1 if metric.better == "higher" else -1
    floors = {row: result.row_floors.get(row, {}).get(metric.name, result.floors.get(metric.name)) for row in result.rows}
    return [
        row
        for row, floor in floors.items()
        if floor is not None and metric.name in result.rows[row] and sign * result.rows[row][metric.name] <= sign * floor
    ]


def floor_warning(result: Result, among: str = "") -> str:
    """One sentence on the rows that are not better than a floor in a headline metric, empty where there is none.

    among: how the names of the rows that count begin.
    """
    warnings: list[str] = []
    for metric in result.metrics:
        measured = [row for row, values in result.rows.items() if metric.name in values and row.startswith(among)]
        below = sorted(row for row in below_floor(result, metric) if row.startswith(among))
        if metric.headline and below:
            warnings.append(f"{metric.title}: {'all rows' if len(below) == len(measured) > 1 else ', '.join(below)}")
    floor = result.floor or "the floor"
    return f"not better than {floor}, so these models have not learnt such images: {'; '.join(warnings)}" if warnings else ""


class Bench:
    """What is measured (student, heads, teachers) and what all evaluations share: device, precision, features that were computed before.

    Attributes: `share`: what this process does of the images; all of them unless it is set.
    """

    def __init__(
        self,
        model: Model | None,
        teachers: Mapping[str, Teacher],
        *,
        image_size: int | None = None,
        autocast: torch.dtype | None = None,
        num_workers: int | None = 0,
        progress: Progress = silent,
        agreement: AgreementProtocol = UNCALIBRATED,
    ):
        """Keeps what is measured; no model runs.

        Args:
            model: the student with its heads, None where only teachers are measured.
            teachers: by the names of their heads, on the same device as the model.
            image_size: px of the views where an evaluation names none; None for the protocol's, else the size that the student prefers.
            autocast: precision of all models, None for that of their weights.
            num_workers: processes that read images; 0 reads in this one, None takes one for each core but one.
            progress: shows how far a loop is.
            agreement: how the run that made the model compares heads with teachers.
        """
        self.model, self.teachers = model, dict(teachers)
        self.image_size, self.autocast = image_size, autocast
        self.num_workers, self.progress, self.agreement = num_workers, progress, agreement
        self.side_by_side = False
        """Whether models encode images at the same time on a CPU, each with a share of torch's threads."""
        self.share = Share()
        self.vlm: Vlm | None = None
        """The vision-language model that is measured, whose tower is `model`; None where PATH is none."""
        self.cache = FeatureCache()

    def alone(self) -> "Bench":
        """The same models for a process that measures everything itself; nothing is remembered of what was computed."""
        bench = copy.copy(self)
        bench.share, bench.cache = Share(), FeatureCache()
        return bench

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        models = [*([self.model] if self.model is not None else []), *self.teachers.values()]
        tensors = (tensor for model in models for tensor in chain(model.parameters(), model.buffers()))  # asked for often: no list of all
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def default_size(self) -> int:
        """px of the student's view where nobody names one: that of the suite, else of its training, else 224."""
        return self.image_size or (self.model.config.image_size if self.model is not None else None) or 224

    def size_of_head(self, name: str) -> int:
        """px at which a head was trained last; `default_size` where the suite names one or config.json does not state it."""
        head = self.model.config.heads.get(name) if self.model is not None and not self.image_size else None
        return (head.image_size if head is not None else None) or self.default_size

    def predict(self, view: Framing = "crop", sizes: Sizes = None) -> Predictors:
        """All rows: `student`, `student/<head>`, `teacher/<name>`. For the harness, which hands them to an evaluation (`chosen`).

        Args:
            view: how images become a model's input.
            sizes: px of the short side of the views; None for that of the suite, else each model's own.
        """

        def build(sizes: Sizes) -> dict[str, Predictor]:
            return predictors(self.model, self.teachers, sizes, view, self.autocast)

        return Predictors(build, sizes or self.image_size)


class Evaluation(Protocol):
    """One evaluation, ready to run."""

    is_shared: ClassVar[bool] = False
    """Whether `run` shares its images out over several processes (`Bench.share`); else the first one measures and the others wait."""

    def check(self, predict: Predictors, bench: Bench) -> None:
        """Raises UserError where it suits none of the models of `predict`, as far as that is known without computing anything."""

    def run(self, predict: Predictors, bench: Bench) -> Result:
        """Measures every model of `predict` that it suits. Raises UserError where it suits none.

        Args:
            predict: the rows to measure, in the view and at the size of the settings; `predict.at(size)` are the same rows at another size.
            bench: what is more than features of images: device, processes that read, cache, text encoders, mask decoders.
        """
        ...


class EvaluationSettings(Settings):
    """What is common to all evaluations; each kind adds `type`, its own keys and `build`."""

    view: ClassVar[Framing] = "crop"
    """How images become a model's input: `crop` for recognition, `whole` for maps."""

    image_size: Pixels | None = None
    """px of the views (their short side); null for the suite's, else the protocol's own where it has one, else the student's (see
    [evaluations.md](evaluations.md#input-sizes))."""
    models: list[str] | None = None
    """Rows to measure: student, student/HEAD, teacher/NAME; null for all that the evaluation suits."""

    def beside(self, path: str) -> Self:  # noqa: ARG002 - for those that read more than the model
        """The same for the model in `path`, a folder, a file or a name on the hub."""
        return self

    def written(self) -> Mapping[str, str]:
        """{key: path} of the files that it writes."""
        return {}

    def build(self) -> Evaluation:
        """The evaluation; raises UserError where its data are missing."""
        raise NotImplementedError

    def rows(self, bench: Bench) -> Predictors:
        """The rows of `models`, all where it names none. Raises UserError for an unknown one."""
        predict = bench.predict(self.view, self.image_size or bench.image_size or self.protocol_sizes(bench))
        if self.models is None:
            return predict
        unknown = [name for name in self.models if name not in predict]
        if unknown:
            raise UserError(*(f"models: there is no row '{name}'; {nearest(name, predict)}" for name in unknown))
        return predict.only(self.models)

    def protocol_sizes(self, bench: Bench) -> Sizes:  # noqa: ARG002 - for those that have some
        """px of the views where neither the evaluation nor the suite names a size; None for the size that the student prefers."""
        return None


def measure(settings: EvaluationSettings, evaluation: Evaluation, bench: Bench) -> Result:
    """Runs an evaluation (built from `settings`) on a bench. Raises UserError for an unknown row of `models`."""
    if not evaluation.is_shared and not bench.share.is_alone:
        return bench.share.first_does(lambda: measure(settings, evaluation, bench.alone()))
    start = time.perf_counter()
    predict = settings.rows(bench)
    result = evaluation.run(predict, bench)
    inputs = result.inputs or {row: sizes for row, sizes in inputs_of(predict).items() if row in result.rows}
    inputs = bench.share.added(inputs)
    notes = (*result.notes, *_size_notes(settings, bench, inputs))
    seconds = time.perf_counter() - start
    return replace(result, settings=settings.model_dump(mode="json"), seconds=seconds, inputs=inputs, notes=notes)


def _size_notes(settings: EvaluationSettings, bench: Bench, inputs: Mapping[str, Counts]) -> list[str]:
    """Notes on heads that are measured at another size than they were trained at, where the user named none."""
    if bench.model is None or settings.image_size or bench.image_size:
        return []
    rows_by_size: dict[tuple[int, str], list[str]] = {}
    for name, head in bench.model.config.heads.items():
        px = describe(inputs.get(f"student/{name}", {})).removesuffix("+")
        if head.image_size is not None and px.isdigit() and int(px) != head.image_size:
            rows_by_size.setdefault((head.image_size, px), []).append(f"student/{name}")
    return [f"trained at {size} px and measured at {px} px: {', '.join(rows)}" for (size, px), rows in rows_by_size.items()]


def summary_of(features: Features) -> Tensor:
    """[B, D]: the summary; of a model that has none (SAM) the mean over its map, as AM-RADIO's table 1 has it."""
    if features.summary is not None:
        return features.summary
    assert features.spatial is not None
    return features.spatial.mean((1, 2))
