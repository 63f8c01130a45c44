"""The recipe: the whole run as one tree of settings, composed of each room's own."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

import pydantic

from .config import Factor, ImageSides, Natural, Positive, Seed, Settings, UserPath, defaults, one_of, sides_of, size_text, validate
from .data import AnySource, DataSettings
from .distillation.balance import AnyBalance, FixedSettings
from .distillation.losses import LossSettings
from .distillation.normalizers import NormalizeSettings
from .distillation.regularization import RegularizeSettings
from .engine.settings import EngineSettings, OptimizerSettings
from .errors import UserError, nearest, shown
from .features import KINDS, Kind
from .heads import AnyHead, HeadSettings, MlpHeadSettings
from .heads.names import head_name_problem
from .later import Later
from .memory import gib, machine_memory
from .students import STUDENTS
from .students.model import ModelStudentSettings
from .students.settings import TrainedSettings
from .teachers import AnyTeacher
from .teachers.settings import TeacherSettings
from .words import read_words

if TYPE_CHECKING:
    AnyStart = TrainedSettings
else:
    AnyStart = one_of((*STUDENTS, ModelStudentSettings))


class SizeSettings(Settings):
    """One size of a partition's images; a bare size stands for `{size: SIZE}`."""

    size: ImageSides
    """Pixels at which the student sees the images: the side of a square, or [height, width]."""
    weight: Annotated[float, pydantic.Field(gt=0, le=1e6)] = 1.0
    """How often it is drawn, beside the weights of the other sizes."""
    teachers: dict[str, ImageSides] = pydantic.Field(default_factory=dict)
    """Pixels at which single teachers see the images beside it, by name; the others take their legal size nearest to `size`."""


AnySize = Annotated[
    SizeSettings,
    pydantic.BeforeValidator(
        lambda value: value if isinstance(value, (dict, Settings)) else {"size": value}, json_schema_input_type=SizeSettings | ImageSides
    ),
]
"""Also a bare size."""


class PartitionSettings(Settings):
    """A group of teachers that see the same images at the same student size and batch size."""

    image_size: ImageSides = 224
    """Pixels at which the student sees the images: the side of a square, or [height, width]. 224 is what most teachers were trained at."""
    image_sizes: Annotated[list[AnySize], pydantic.Field(min_length=1, max_length=100)] | None = None
    """Sizes of which one is drawn for each step of training, for all images of the batch (for each image with `packed`):
    `[128, [128, 256], {size: 192, weight: 2}]`; null for `image_size` alone. Held-out images are seen at `image_size`, which is one of
    them."""
    shift: Annotated[int, pydantic.Field(ge=0, le=1000)] = 0
    """Patches of the student by which its view is shifted over the image at most, at random; teachers' views are shifted as far, each
    independently, and maps are compared where both show the image (C-RADIOv4). At most a quarter of the view; 0 for none."""
    mosaic: list[str] = pydantic.Field(default_factory=list)
    """Names of teachers of one large size (SAM) that see several images side by side in one canvas, as many as fit at the student's size,
    in place of each image enlarged (RADIOv2.5). Their `summary_weight` must be 0."""
    packed: bool = False
    """Each image has its own size of `image_sizes`, and a ViT sees the images of a batch in one sequence of tokens without padding (NaViT);
    the loss of an image is the mean over its own cells."""
    batch_size: Positive = 256
    """Images a step, over all processes together."""
    teachers: Annotated[list[str], pydantic.Field(min_length=1)] | None = None
    """Names of the teachers; null for all."""
    weight: Annotated[float, pydantic.Field(gt=0, le=1e6)] = 1.0
    """Weight of this partition's loss in the step."""
    view_size: ImageSides | None = None
    """Pixels at which crops are read: the side of a square, or [height, width]; null for the largest size that a model of the partition
    takes, so that none sees blown-up pixels. What is cut out has the aspect of the student's size in any case."""
    source: AnySource | None = None
    """Images of this partition; null for data.train."""

    @property
    def sizes(self) -> list[SizeSettings]:
        """The sizes of training."""
        return self.image_sizes or [SizeSettings(size=self.image_size)]

    def problems(self, teachers: Mapping[str, TeacherSettings]) -> list[str]:
        """What the keys say against one another, a sentence each that begins with a key. teachers: those of the recipe, by name."""
        names = self.teachers or teachers
        problems = [f"teachers: there is no teacher '{name}'; {nearest(name, teachers)}" for name in names if name not in teachers]
        sizes = [sides_of(size.size) for size in self.sizes]
        listed = ", ".join(map(size_text, sizes))
        if len(set(sizes)) < len(sizes):
            problems.append(
                f"image_sizes: a size stands twice in {listed}; give it once, with a larger weight where it is to be drawn more often"
            )
        if sides_of(self.image_size) not in sizes:
            held_out = size_text(sides_of(self.image_size))
            problems.append(f"image_size: held-out images are seen at {held_out} px, which are not in image_sizes; take one of {listed}")
        return (
            problems
            + self._problems_of_pack()
            + [
                f"image_sizes.{number}.teachers.{name}: the partition has no such teacher; {nearest(name, names)}"
                for number, size in enumerate(self.sizes)
                for name in size.teachers
                if name not in names
            ]
            + [f"mosaic: {problem}" for name in self.mosaic for problem in self._problems_of_mosaic(name, teachers)]
        )

    def _problems_of_pack(self) -> list[str]:
        if not self.packed:
            return []
        problems = ["packed: all images have one size; give several in image_sizes"] if len(self.sizes) < 2 else []
        if self.mosaic:
            problems.append("packed: a mosaic has images of one size, and here each image has its own; leave one of both out")
        return problems

    def _problems_of_mosaic(self, name: str, teachers: Mapping[str, TeacherSettings]) -> Iterator[str]:
        names = self.teachers or teachers
        if name not in names:
            yield f"the partition has no teacher '{name}'; {nearest(name, names)}"
        elif name in teachers and teachers[name].summary_weight:
            yield f"the summary of a canvas is that of several images, not of one; set teachers.{name}.summary_weight=0"
        if self.mosaic.count(name) > 1:
            yield f"'{name}' stands twice; name it once"


class StageSettings(Settings):
    """Some steps on one set of partitions."""

    steps: Positive = 100_000
    """Optimizer updates. The papers' stages are 300,000 at a batch of 1024."""
    frozen_steps: Natural = 0
    """Steps at the start in which heads alone are trained and the student keeps its weights (PHI-S: 5,000 in each stage)."""
    restart: bool = False
    """The optimizer forgets its averages when the stage begins. (Warm-up and cosine of the learning rate begin anew in any case.)"""
    rate_factor: Factor = 1.0
    """Factor of the learning rate in this stage."""
    partitions: list[PartitionSettings] = pydantic.Field(default_factory=lambda: [PartitionSettings()], min_length=1)


class HeadPair(Settings):
    """The layers of a head per kind."""

    summary: AnyHead = MlpHeadSettings()
    """On one summary token."""
    spatial: AnyHead = MlpHeadSettings()
    """On every cell of the map."""

    @pydantic.model_validator(mode="after")
    def _reads_its_kind(self) -> Self:
        for kind in KINDS:
            head = self.of(kind)
            if kind not in head.kinds:
                kinds, type_name = " and ".join(head.kinds), head.model_dump()["type"]
                raise ValueError(f"{kind}: a head of type '{type_name}' with these settings reads {kinds} features only")
        return self

    def of(self, kind: Kind) -> HeadSettings:
        """The layers of one kind."""
        return self.summary if kind == "summary" else self.spatial


class HeadsSettings(HeadPair):
    """The heads of all teachers, and those that differ."""

    by_teacher: dict[str, HeadPair] = pydantic.Field(default_factory=dict)
    """Heads of single teachers, by name."""


def _in_file(name: str, cls: type[Settings]) -> Any:
    """The content of the evaluation file that a text names."""
    return read_words([name], defaults(cls), "evaluation")


class EvaluateSettings(Settings):
    """What is measured during the run: agreement with the teachers on held-out images (data.val or data.hold_out), and a suite."""

    every: Positive | None = 1000
    """Steps between evaluations, also at step 0 and at the end; null for none."""
    batches: Positive = 8
    """Held-out batches at most."""
    suite: Annotated[Any, Later("amradio.evaluation.suite:Suite", _in_file)] = None
    """Evaluations as `amradio evaluate` runs them: what stands in an evaluation file (see [evaluations.md](evaluations.md)), or the path of
    one. Measured with averaged weights and heads in raw teacher space; not counted as training time."""
    suite_every: Positive | None = None
    """Steps between two runs of the suite, also at step 0 and at the end; null for `every`."""


class Recipe(Settings):
    """The whole run. Only data, teachers, student and out are required."""

    data: DataSettings
    teachers: Annotated[dict[str, AnyTeacher], pydantic.Field(min_length=1)]
    student: AnyStart
    out: UserPath
    """The run folder. The same command resumes what is there."""
    heads: HeadsSettings = HeadsSettings()
    loss: LossSettings = LossSettings()
    normalize: NormalizeSettings = NormalizeSettings()
    balance: AnyBalance = FixedSettings()
    """How the losses of teachers and kinds become one number."""
    regularize: RegularizeSettings = RegularizeSettings()
    stages: list[StageSettings] = pydantic.Field(default_factory=lambda: [StageSettings()], min_length=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    engine: EngineSettings = EngineSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    seed: Seed = 0
    """Of weights, crops, order and every other draw."""

    @classmethod
    def load(cls, *words: str) -> "Recipe":
        """Reads a recipe from words, merged left to right.

        Args:
            words: YAML files, names of shipped recipes, run folders (for their config.yaml) and `key=value`.

        Raises UserError with every problem at once, each with its key and the nearest name.
        """
        try:
            recipe = validate(cls, read_words(words, defaults(cls), "recipe"))
        except UserError as error:
            if any("=" not in word for word in words):
                raise
            hint = "; a recipe has it: amradio distill RECIPE ... (`amradio recipes` lists those that come with amradio)"
            hinted = [problem + hint * problem.endswith("is required and missing") for problem in error.problems]
            raise UserError(*hinted) from None
        problems = recipe.contradictions()
        if problems:
            raise UserError(*problems)
        return recipe

    def contradictions(self) -> list[str]:
        """What the keys say against one another, one sentence each."""
        problems = []
        for name in self.teachers:
            problem = None if name.isidentifier() else "a teacher's name is a word of letters, digits and _"
            problem = problem or head_name_problem(name)
            if problem:
                problems.append(f"teachers.{shown(name[:60])}: {problem}; give the teacher another name")
        for key, partition in self.partitions():
            problems += [f"{key}.{problem}" for problem in partition.problems(self.teachers)]
        problems += [
            f"heads.by_teacher.{name}: there is no teacher '{name}'; {nearest(name, self.teachers)}"
            for name in self.heads.by_teacher
            if name not in self.teachers
        ]
        problems += [
            f"teachers.{name}: it is in no partition, so nothing would be learnt from it; name it in one, or drop it"
            for name in self.teachers
            if not any(partition.teachers is None or name in partition.teachers for _, partition in self.partitions())
        ]
        if all(t.summary_weight == 0 and t.spatial_weight == 0 for t in self.teachers.values()):
            problems.append("teachers: every summary_weight and spatial_weight is 0; give one teacher a weight")
        return (
            problems
            + self._contradictions_of_stages()
            + self._contradictions_of_regularization()
            + self._contradictions_of_loss()
            + self._contradictions_of_suite()
        )

    def _contradictions_of_regularization(self) -> list[str]:
        settings, problems = self.regularize, []
        if self.student.train.type != "all":
            part = f"student.train '{self.student.train.type}' trains a part"
            problems += [
                f"regularize.{key}: it changes all weights, and {part}; leave one of both out"
                for key, is_on in (("spectral", settings.spectral), ("weight_noise", settings.weight_noise))
                if is_on
            ]
        if settings.windows is not None:
            problems += [
                f"{key}.packed: a pack has no windows; leave it or regularize.windows out"
                for key, partition in self.partitions()
                if partition.packed
            ]
        if settings.self_distillation is not None and self.engine.ema is None:
            problems.append("regularize.self_distillation: it compares with averaged weights, and there are none; set engine.ema")
        return problems

    def _contradictions_of_stages(self) -> list[str]:
        problems = [
            f"stages.{number}.frozen_steps: {stage.frozen_steps:,} of {stage.steps:,} steps; give at most as many as the stage has"
            for number, stage in enumerate(self.stages)
            if stage.frozen_steps > stage.steps
        ]
        if self.stages[0].restart:
            problems.append("stages.0.restart: the optimizer has no averages to forget before the first stage; leave it out")
        return problems

    def _contradictions_of_loss(self) -> list[str]:
        if not self.loss.compares_samples:
            return []
        what = "loss.summary compares the images of a step with one another"
        problems = [
            f"{key}.batch_size: {what}, and there is only 1; raise it" for key, settings in self.partitions() if settings.batch_size < 2
        ]
        if self.engine.accumulate > 1:
            problems.append(f"engine.accumulate: {what}, and {self.engine.accumulate} pieces would take them apart; set it to 1")
        return problems

    def _contradictions_of_suite(self) -> list[str]:
        settings = self.evaluate
        if settings.suite is None:
            return ["evaluate.suite_every: there is no suite; give evaluate.suite, or leave it out"] if settings.suite_every else []
        problems = [
            f"evaluate.suite.evaluations.{name}: a file gets this name; take letters, digits, _, - and spaces, and not 'held_out'"
            for name in settings.suite.evaluations
            if not re.fullmatch(r"\w[\w -]*", name) or name == "held_out"
        ]
        if settings.suite_every is None and settings.every is None:
            problems.append("evaluate.suite: it would never run, as evaluate.every is null; give evaluate.suite_every")
        if settings.suite.device not in ("auto", self.engine.device):
            problems.append("evaluate.suite.device: the models are on the device of the run (engine.device); leave it out")
        return problems

    def partitions(self) -> list[tuple[str, PartitionSettings]]:
        """Every partition of every stage, by key."""
        return [
            (f"stages.{s}.partitions.{p}", partition) for s, stage in enumerate(self.stages) for p, partition in enumerate(stage.partitions)
        ]

    def memory_problems(self, world_size: int) -> list[str]:
        """Batches that this machine's memory cannot hold, one sentence each: two of uint8 in loading, one of float32 in the step.

        Args:
            world_size: processes that share out each batch, 1 or more.
        """
        problems = []
        for key, settings in self.partitions():
            images = math.ceil(settings.batch_size / world_size)
            sizes = [sides_of(size.size) for size in settings.sizes]
            largest = max(height * width for height, width in sizes)
            view = max((sides_of(settings.view_size or (1, 1)), *sizes), key=math.prod)
            seen = math.ceil(images / self.engine.accumulate)
            needed = images * math.prod(view) * 3 * 2 + seen * largest * 3 * 4
            if needed > machine_memory():
                problems.append(
                    f"{key}: {images:,} images of {size_text(view)} px a process need {gib(needed)}, this machine has "
                    f"{gib(machine_memory())}; take a smaller batch_size, image_size or view_size, or more processes"
                )
        return problems

    @property
    def student_is_random(self) -> bool:
        """Whether the student begins with no weights from elsewhere."""
        return self.student.type not in ("custom", "model") and self.student.model_dump().get("start_from") is None

    @property
    def num_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return sum(stage.steps for stage in self.stages)

    def sources(self) -> dict[str, Any]:
        """The settings of every data source that the run reads, by key."""
        sources = {"data.train": self.data.train} | ({"data.val": self.data.val} if self.data.val else {})
        return sources | {f"{key}.source": partition.source for key, partition in self.partitions() if partition.source}

    def weights(self) -> dict[str, float]:
        """The weight of each loss, by its name (`clip/summary`)."""
        return {f"{name}/{kind}": settings.weight(kind) for name, settings in self.teachers.items() for kind in KINDS}
