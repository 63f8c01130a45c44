"""Settings of benchmarks that other libraries run: MIEB (mteb) and clip_benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pydantic

from ...config import Positive
from ...errors import UserError, shown
from ...files import read_text
from ...libraries import first_line, need
from ..base import EvaluationSettings

if TYPE_CHECKING:
    from .clip_benchmark import ClipBenchmark
    from .mieb import Mieb


class MiebSettings(EvaluationSettings):
    """Tasks of MIEB by the library mteb (`pip install mteb`), which fetches their data from the hub. Tasks with texts measure heads and
    teachers of text space, the others every row.
    """

    type: Literal["mieb"] = "mieb"
    benchmark: str = "MIEB(lite)"
    """Its name in mteb: MIEB(lite), MIEB(eng), MIEB(Img), ..."""
    tasks: list[str] | None = None
    """Names of tasks in mteb in place of the benchmark's; null for all of the benchmark's."""
    batch_size: Positive = 32
    """Images or texts at once."""

    def build(self) -> "Mieb":
        """Raises UserError where mteb is not installed, or has no such benchmark or task."""
        from .mieb import Mieb

        mteb = need("mteb", self.type)
        try:
            tasks = [mteb.get_task(name) for name in self.tasks] if self.tasks is not None else list(mteb.get_benchmark(self.benchmark))
        except KeyError as error:
            raise UserError(f"{'tasks' if self.tasks is not None else 'benchmark'}: {first_line(error)}") from None
        return Mieb(tasks, self.batch_size)


class ClipBenchmarkSettings(EvaluationSettings):
    """Zero-shot classification, or retrieval by captions, by the library clip_benchmark (`pip install clip-benchmark`), with its classes,
    prompts and metrics; rows are heads and teachers of text space.
    """

    type: Literal["clip_benchmark"] = "clip_benchmark"
    dataset: str
    """Its name in the library: `wds/imagenet1k` for shards, `cifar10` for torchvision's own layout, ..."""
    root: str
    """The folder of the data, or the address of shards on the hub; `{dataset}` and `{dataset_cleaned}` (with - for /) are its name."""
    split: str = "test"
    """As the library names it."""
    download: bool = False
    """Fetch what is missing, where the library can (torchvision's sets)."""
    batch_size: Positive = 64
    """Images at once."""
    recall: list[Positive] = pydantic.Field([1, 5, 10], min_length=1)
    """At how many ones that were retrieved the right one counts."""

    def build(self) -> "ClipBenchmark":
        """Raises UserError where clip_benchmark is not installed or a folder is missing."""
        from .clip_benchmark import ClipBenchmark

        name = self.dataset.removeprefix("wds/")
        need("clip_benchmark", self.type)
        task = need("clip_benchmark.datasets.builder", self.type).get_dataset_default_task(name)
        if task not in ("zeroshot_classification", "zeroshot_retrieval"):
            raise UserError(f"dataset: {self.dataset} is of the task {task}; sets of classification and of retrieval are measured")
        root = self.root.replace("{dataset}", name).replace("{dataset_cleaned}", name.replace("/", "-"))
        if "://" not in root and not self.download:
            files = (f"{self.split}/nshards.txt", *self._texts(Path(root))) if self.dataset.startswith("wds/") else ("",)
            missing = [shown(Path(root) / file) for file in files if not (Path(root) / file).exists()]
            if missing:
                advice = f"give the folder of {self.dataset} as clip_benchmark lays it out"
                raise UserError(f"root: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; {advice}")
        return ClipBenchmark(self, root)

    @staticmethod
    def _texts(root: Path) -> tuple[str, ...]:
        """Files that a folder of shards has beside them."""
        kind = root / "dataset_type.txt"
        is_retrieval = kind.is_file() and read_text(kind).strip().lower() == "retrieval"
        return () if is_retrieval else ("classnames.txt", "zeroshot_classification_templates.txt")
