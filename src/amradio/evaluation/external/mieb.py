"""MIEB, the benchmark of image embeddings of the library mteb, on students, heads and teachers, with the teachers' text encoders."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...libraries import first_line, need
from ...teachers.base import Teacher
from ..base import Bench, Evaluation, Metric, Predict, Predictors, Result, summary_of
from ..reading import encode


class Mieb(Evaluation):
    """The main score of each task in mteb: the evaluation `mieb`. tasks: `AbsTask`s of mteb."""

    def __init__(self, tasks: Sequence[Any], batch_size: int):
        self.tasks, self.batch_size = tasks, batch_size

    def check(self, predict: Predictors, bench: Bench) -> None:
        """Raises UserError where no task suits a row."""
        if not any(_suits(task, name, bench) for task in self.tasks for name in predict):
            raise UserError("tasks: all have texts, and no row is in the space of a text encoder; add a teacher of type clip or siglip")

    def run(self, predict: Predict, bench: Bench) -> Result:
        """Main scores in %; a row without a text encoder has none of tasks with texts. Raises UserError where a task cannot be run."""
        mteb = need("mteb", "mieb")
        rows: dict[str, dict[str, float]] = {name: {} for name in predict}
        for task in bench.progress(self.tasks, "tasks of MIEB", len(self.tasks)):
            for name in (name for name in predict if _suits(task, name, bench)):
                model = _Encoder(predict, name, bench)
                options = {"batch_size": self.batch_size, "show_progress_bar": False}
                try:
                    with warnings.catch_warnings(action="ignore"):  # of its own libraries
                        result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, encode_kwargs=options, co2_tracker=False)
                except Exception as error:  # whatever its tasks and the hub raise
                    advice = "its data come from the hub: connect, or leave the task out"
                    raise UserError(f"tasks: {task.metadata.name}: {first_line(error)}; {advice}") from None
                rows[name][_identifier(task)] = 100 * float(result.task_results[0].get_score())
        metrics = [Metric(_identifier(task), task.metadata.name) for task in self.tasks]
        return Result(
            metrics, {name: row for name, row in rows.items() if row}, {"tasks": len(self.tasks)}, notes=(f"mteb {mteb.__version__}",)
        )


class _Encoder:
    """A row as a model of mteb (its `EncoderProtocol`)."""

    def __init__(self, predict: Predict, name: str, bench: Bench):
        self.row, self.teacher, self.bench = {name: predict[name]}, _reader(name, bench), bench
        kinds = ["image", "text"] if self.teacher is not None else ["image"]
        meta = need("mteb", "mieb").models.ModelMeta
        self.mteb_model_meta = meta.create_empty({"name": f"amradio/{name.replace('/', '-')}", "revision": "1", "modalities": kinds})

    def encode(self, inputs: Any, **about: Any) -> Tensor:
        """Embeddings float32 [N, D] on the CPU of a loader's batches of images, of texts, or the sums of both where there are both."""
        del about
        return torch.cat([sum(self._parts(batch), torch.zeros(())) for batch in inputs])

    def _parts(self, batch: Any) -> list[Tensor]:
        parts: list[Tensor] = []
        if "image" in batch:
            images = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in batch["image"]]
            taken = encode(self.row, images, self.bench.device, lambda features: {"summary": summary_of(features)})
            parts += [features["summary"].float().cpu() for features in taken.values()]
        if "text" in batch and self.teacher is not None:
            parts.append(self.teacher.encode_text(list(batch["text"])).float().cpu())
        return parts

    def similarity(self, first: Any, second: Any) -> Tensor:
        """Cosines [N, M] of [N, D] and [M, D]."""
        return need("mteb", "mieb").similarity_functions.cos_sim(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Tensor:
        """Cosines [N] of [N, D] and [N, D]."""
        return need("mteb", "mieb").similarity_functions.pairwise_cos_sim(first, second)


def _reader(name: str, bench: Bench) -> Teacher | None:
    """The teacher whose text encoder shares a space with the row's summary; None where there is none."""
    teacher = bench.teachers.get(name.partition("/")[2])
    return teacher if teacher is not None and teacher.has_text else None


def _suits(task: Any, name: str, bench: Bench) -> bool:
    kinds = set(task.metadata.modalities)
    return kinds <= ({"image", "text"} if _reader(name, bench) is not None else {"image"})


def _identifier(task: Any) -> str:
    return re.sub(r"\W+", "_", task.metadata.name).strip("_").lower()
