"""What every evaluation is: a plain object that is fed by `predict` and says one row of numbers a model."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import pydantic
import torch
from torch import Tensor

from ..config import Settings
from ..errors import UserError, nearest
from ..features import Features
from ..model import Model
from ..teachers.base import Teacher
from .cache import FeatureCache
from .predictors import Predict, View, predictors
from .progress import Progress, silent

Positive = Annotated[int, pydantic.Field(gt=0)]
Rows = Mapping[str, Mapping[str, float]]

__all__ = ["Bench", "Evaluation", "EvaluationSettings", "Metric", "Positive", "Predict", "Result", "Rows", "View", "measure"]


class Metric(NamedTuple):
    """One column."""

    name: str
    """As in the rows."""
    unit: Literal["%", "cos", ""] = "%"
    """%: 0 to 100, gaps are in points; cos: -1 to 1; otherwise a plain number."""
    better: Literal["higher", "lower"] | None = "higher"
    """Which is better; None where neither is."""
    headline: bool = True
    """Whether it stands in the table; the machine-readable results have all."""


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
    notes: Sequence[str] = ()
    """Plain sentences for the reader: broken images, warnings."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the machine-readable results hold; JSON."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All settings of the evaluation; filled in by `measure`."""
    seconds: float = 0.0
    """How long it took; filled in by `measure`."""


class Bench:
    """What is measured (student, heads, teachers) and what all evaluations share: device, precision, features that were computed before."""

    def __init__(
        self,
        model: Model | None,
        teachers: Mapping[str, Teacher],
        *,
        image_size: int | None = None,
        autocast: torch.dtype | None = None,
        num_workers: int = 0,
        progress: Progress = silent,
    ):
        """model and teachers lie on one device already.

        image_size: px of the student's view where an evaluation names none; None for the size at which it was trained last.
        autocast: precision of all models, None for the one that they have. num_workers: processes that read images.
        """
        self.model, self.teachers = model, dict(teachers)
        self.image_size, self.autocast = image_size, autocast
        self.num_workers, self.progress = num_workers, progress
        self.cache = FeatureCache()

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        models = [*([self.model] if self.model is not None else []), *self.teachers.values()]
        tensors = (tensor for model in models for tensor in (*model.parameters(), *model.buffers()))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def default_size(self) -> int:
        """px of the student's view where nobody names one: that of the suite, else of its training, else 224."""
        return self.image_size or (self.model.config.image_size if self.model is not None else None) or 224

    def predict(self, view: View = "crop", image_size: int | None = None) -> Predict:
        """`student`, `student/<head>`, `teacher/<name>`: see `predictors`."""
        return predictors(self.model, self.teachers, image_size or self.image_size, view, self.autocast)


class Evaluation(Protocol):
    """One evaluation, ready to run."""

    def check(self, predict: Predict, bench: Bench) -> None:
        """Raises UserError where it suits none of the models of `predict`, as far as that is known without computing anything."""

    def run(self, predict: Predict, bench: Bench) -> Result:
        """Measures every model of `predict` that it suits.

        bench: for what is more than features of images: text encoders, mask decoders, other sizes. Raises UserError where it suits none.
        """
        ...


class EvaluationSettings(Settings):
    """What is common to all evaluations; each kind adds `type`, its own keys and `build`."""

    view: ClassVar[View] = "crop"
    """How images become a model's input: `crop` for recognition, `whole` for maps."""

    image_size: Positive | None = None
    """px of the student's view (its short side); null for the size at which the student was trained last."""
    models: list[str] | None = None
    """Rows to measure: student, student/HEAD, teacher/NAME; null for all that the evaluation suits."""

    def build(self) -> Evaluation:
        """The evaluation; raises UserError where its data are missing."""
        raise NotImplementedError


def measure(settings: EvaluationSettings, evaluation: Evaluation, bench: Bench) -> Result:
    """Runs an evaluation (built from `settings`) on a bench. Raises UserError for an unknown row of `models`."""
    begun = time.perf_counter()
    result = evaluation.run(chosen(settings, bench), bench)
    return replace(result, settings=settings.model_dump(mode="json"), seconds=time.perf_counter() - begun)


def chosen(settings: EvaluationSettings, bench: Bench) -> Predict:
    """The rows of `models`, all where it names none. Raises UserError for an unknown one."""
    predict = bench.predict(settings.view, settings.image_size)
    if settings.models is None:
        return predict
    unknown = [name for name in settings.models if name not in predict]
    if unknown:
        raise UserError(*(f"models: there is no row '{name}'; {nearest(name, predict)}" for name in unknown))
    return {name: predict[name] for name in settings.models}


def summary_of(features: Features) -> Tensor:
    """[B, D]: the summary; of a model that has none (SAM) the mean over its map, as AM-RADIO's table 1 has it."""
    if features.summary is not None:
        return features.summary
    assert features.spatial is not None
    return features.spatial.mean((1, 2))
