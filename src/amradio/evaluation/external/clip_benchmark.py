"""Data sets of the library clip_benchmark: zero-shot classification and retrieval of heads and teachers of text space."""

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout

from ...errors import UserError
from ...libraries import first_line, need
from ..base import Bench, Evaluation, Metric, Predictors, Result
from ..text_classifier import taught, texted
from .clip_model import ClipModel, Loader, Texts
from .settings import ClipBenchmarkSettings


class ClipBenchmark(Evaluation):
    """The metrics of one data set: the evaluation `clip_benchmark`."""

    def __init__(self, settings: ClipBenchmarkSettings, root: str):
        """root: with the name of the data set in it."""
        self.settings, self.root = settings, root

    def check(self, predict: Predictors, bench: Bench) -> None:
        """Raises UserError where no row is in the space of a text encoder."""
        texted(predict, bench, None)

    def run(self, predict: Predictors, bench: Bench) -> Result:
        """Metrics in % of every row in text space. Raises UserError where the library cannot read the data."""
        rows: dict[str, dict[str, float]] = {}
        for teacher, calls in texted(predict, bench, None).values():
            for name in taught(calls, bench, "summary"):
                try:
                    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
                        scores = self._measure(ClipModel(predict[name], teacher, bench))
                except Exception as error:  # whatever its readers raise
                    raise UserError(f"{self.settings.dataset}: {first_line(error)}; look into {self.root}") from None
                numbers = {key.replace("@", "").replace("acc", "top"): 100 * float(value) for key, value in scores.items()}
                rows[name] = {key: value for key, value in numbers.items() if value == value}  # top-5 of four classes is no number
        names = next(iter(rows.values()))
        return Result([Metric(key, key.replace("_", " ")) for key in names], rows, {"rows": len(rows)})

    def _measure(self, model: ClipModel) -> Mapping[str, float]:
        """As the library's command does: {`acc1`, ...} or {`image_retrieval_recall@5`, ...}."""
        library = need("clip_benchmark.datasets.builder", "clip_benchmark")
        settings, name = self.settings, self.settings.dataset.removeprefix("wds/")
        task = library.get_dataset_default_task(name)
        data = library.build_dataset(settings.dataset, self.root, model.prepare, settings.split, settings.download, task=task)
        if name != settings.dataset:
            for kind in ("pkl", "pickle", "pyd", "pth"):  # it decodes all files of a sample, and these would be executed
                need("webdataset.autodecode", "clip_benchmark").decoders.pop(kind, None)
        loader = Loader(data, settings.batch_size, library.get_dataset_collate_fn(name))
        common = {"device": model.bench.device.type, "amp": False}
        metric = need(f"clip_benchmark.metrics.{task}", "clip_benchmark")
        if task == "zeroshot_retrieval":
            return metric.evaluate(model, loader, Texts, recall_k_list=settings.recall, **common)
        metric.accuracy = lambda logits, target, topk: [  # its own (1.6.2) fails with numpy 2.4
            float((logits.topk(k, dim=1).indices == target[:, None]).any(1).float().mean()) for k in topk
        ]
        return metric.evaluate(model, loader, Texts, data.classes, data.templates, **common)
