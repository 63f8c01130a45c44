"""The network that is trained and handed over: one student and a head per teacher."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Literal, NamedTuple, Self, cast

import pydantic
import torch
from torch import Tensor, nn

from .config import Pixels, Settings, Width
from .errors import UserError, brief, shown
from .features import Features, Kind
from .heads import AnyHead, Head, StudentShape
from .heads.names import head_name_problem as find_problem
from .licences import Ancestor, of_teachers, united
from .memory import gib, machine_memory
from .students import AnyStudent
from .students.base import Aggregation, PackedImages, Student, block_numbers
from .students.map_normalizers import BlockNormalizer, Normalizers, Rotation
from .students.settings import AllSettings

Slot = Annotated[int, pydantic.Field(ge=0, lt=1024)]
"""Which of a student's summaries."""
Measured = Annotated[float, pydantic.Field(allow_inf_nan=True)]
"""A result, which may be no number where a model failed."""
WEIGHT_BYTES, TRAINED_BYTES = 4, 16
"""Bytes of a parameter in float32: alone, and with its gradient and AdamW's two averages."""


def head_name_problem(name: str) -> str | None:
    """As `heads.names.head_name_problem`, and also what the installed torch keeps for itself beyond the list there."""
    kept = "torch keeps this name for itself" if hasattr(nn.ModuleDict(), name) else None
    return kept if kept and name != "backbone" else find_problem(name)


class HeadPart(Settings):
    """One kind of one head."""

    head: AnyHead
    """The layers."""
    dim: Width
    """Channels of the teacher's feature."""


class HeadConfig(Settings):
    """The head of one teacher."""

    summary: HeadPart | None = None
    spatial: HeadPart | None = None
    slot: Slot = 0
    """Which of the student's summaries it reads."""
    image_size: Pixels | None = None
    """Pixels of the student's view at which it was trained last, where that is known."""
    teacher: dict[str, str | int | float | None] = pydantic.Field(default_factory=dict)
    """What the model card says of the teacher: kind, source, licence."""

    def part(self, kind: Kind) -> HeadPart | None:
        """The layers of one kind, None where it is not predicted."""
        return self.summary if kind == "summary" else self.spatial


RENAMED_MEASURES = {"standardised_cosine": "standardized_cosine"}
"""Measures of agreement as earlier versions wrote them -> as they are named now."""


def with_current_names(rows: object) -> object:
    """Rows of agreement `{feature: {measure: value}}` of a file of any version, under the names of today; anything else as it is."""
    if not isinstance(rows, dict):
        return rows
    return {
        feature: {RENAMED_MEASURES.get(name, name): value for name, value in row.items()} if isinstance(row, dict) else row
        for feature, row in rows.items()
    }


Agreement = Annotated[dict[str, dict[str, Measured]], pydantic.BeforeValidator(with_current_names)]
"""Held-out agreement by feature (`clip/summary`), then by measure (see `distillation.metrics`)."""


class TrainingFacts(Settings):
    """What is known of a model's training; it goes into the card of whatever the model is exported to."""

    step: Annotated[int, pydantic.Field(ge=0, lt=2**53)]
    """Optimizer updates so far."""
    num_steps: Annotated[int, pydantic.Field(ge=0, lt=2**53)]
    """Of the whole run."""
    data: str
    """What it was trained on, in words."""
    agreement: Agreement = pydantic.Field(default_factory=dict)
    """Held-out agreement with each teacher."""
    evaluated: Annotated[int, pydantic.Field(ge=0, lt=2**53)] | None = None
    """The step at which the agreement was measured; null where that is not known."""
    target_spaces: dict[Kind, str] = pydantic.Field(default_factory=dict)
    """The normalizer of each kind of feature (`normalize` of the recipe), whose inverse is folded into the heads."""
    recipe: str | None = None
    """The resolved recipe as YAML."""


class NetworkConfig(Settings):
    """What `config.json` of a model folder says, and all that is needed to build the network."""

    format: Literal["amradio"] = "amradio"
    version: Annotated[int, pydantic.Field(ge=1, le=1)] = 1
    student: AnyStudent
    num_summaries: Annotated[int, pydantic.Field(ge=1, le=1024)]
    heads: dict[str, HeadConfig] = pydantic.Field(default_factory=dict)
    image_size: Pixels | None = None
    """Pixels to prefer: those at which most heads were trained last (`Recipe`)."""
    summary_slots: list[Slot] | None = None
    """Which of the student's summaries make the backbone's summary, in this order; null for all. (Published models leave out SAM's.)"""
    rotates: bool = False
    """Whether the map is centred and rotated before anything reads it (`rotation`; RADIOv2.5-H-norm)."""
    normalizes_blocks: Literal["shared", "each"] | None = None
    """Whether the maps after single blocks are normalised (`block_normalizer`; RADIOv2.5-H-norm), and whether all share one rotation."""
    training: TrainingFacts | None = None
    """How it was trained, where that is known."""
    distilled_from: list[Ancestor] = pydantic.Field(default_factory=list)
    """All models that this one was distilled from or began with, and their licences, whatever heads were kept; those of the heads are
    among them."""
    origin: str | None = None
    """Name and format of the foreign file that the model was read from, where it was."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [f"heads.{shown(name[:60])}: {problem}" for name in self.heads if (problem := head_name_problem(name))]
        count = 1 if self.student.shares_summary else self.num_summaries
        problems += [
            f"heads.{name}.slot: {head.slot} of {count} summaries, which count from 0; give one that is there"
            for name, head in self.heads.items()
            if head.summary is not None and head.slot >= count
        ]
        slots = self.summary_slots
        if slots is not None and (not slots or len(slots) > count or not all(0 <= slot < count for slot in slots)):
            problems.append(f"summary_slots: {brief(slots)} of {count} summaries, which count from 0; name each that is there at most once")
        if problems:
            raise ValueError("; ".join(problems))
        stated = of_teachers({name: head.teacher for name, head in self.heads.items()})
        object.__setattr__(self, "distilled_from", united(self.distilled_from, stated))  # settings are frozen
        return self

    def descended(self, *ancestors: Iterable[Ancestor]) -> "NetworkConfig":
        """The same network, distilled from these as well."""
        return self.model_copy(update={"distilled_from": united(self.distilled_from, *ancestors)})

    def sizes_of_heads(self) -> str | None:
        """`clip and dino at 432 px, sam at 1024 px` where heads were trained at several sizes, else None."""
        by_size: dict[int, list[str]] = {}
        for name, head in self.heads.items():
            if head.image_size is not None:
                by_size.setdefault(head.image_size, []).append(name)
        return ", ".join(f"{' and '.join(names)} at {size} px" for size, names in sorted(by_size.items())) if len(by_size) > 1 else None

    def build(self, custom_student: Student | None = None) -> "Network":
        """A network with fresh weights (or started from those that the student's settings name).

        custom_student: the student of type `custom`, an object of the user's; UserError where there is none, or it does not suit.
        """
        self.check_memory()
        student = self.student.build(self.num_summaries) if custom_student is None else self._check(custom_student)
        heads = {name: _build_head(head, student) for name, head in self.heads.items()}
        rotation = Rotation(student.spatial_dim) if self.rotates else None
        depth, shares = len(student.blocks_in_order()), self.normalizes_blocks == "shared"
        between = BlockNormalizer(depth, student.spatial_dim, shares) if self.normalizes_blocks else None
        return Network(student, heads, self.summary_slots, Normalizers(rotation, between))

    def check_memory(self, bytes_each: int = WEIGHT_BYTES) -> None:
        """Raises UserError where the parameters need more memory than this machine has; builds them without memory to count them.

        bytes_each: `WEIGHT_BYTES` or `TRAINED_BYTES`. Of types `timm` and `custom`, whose settings do not tell it, only heads count.
        """
        fresh = self.without_start().student
        with torch.device("meta"):
            student: Student | _Widths = _Widths() if fresh.type in ("timm", "custom") else fresh.build(self.num_summaries)
            heads = [_build_head(head, student) for head in self.heads.values()]
        parts = [*heads, *([student] if isinstance(student, Student) else [])]
        count = sum(tensor.numel() for part in parts for tensor in (*part.parameters(), *part.buffers()))
        if count * bytes_each > machine_memory():
            parts_of = "weights" if bytes_each == WEIGHT_BYTES else "weights, gradients and the optimizer's averages"
            raise UserError(
                f"student and heads: {count / 1e6:,.0f} M parameters, whose {parts_of} need {gib(count * bytes_each)}; this machine has "
                f"{gib(machine_memory())}; take a smaller student (student.size, dim, depth, max_image_size) or smaller heads (hidden_dim)"
            )

    def _check(self, custom_student: Student) -> Student:
        problems: list[str] = []
        if self.student.type != "custom":
            problems.append(f"student: an object was passed, but the student is of type '{self.student.type}'; drop one of both")
        elif not isinstance(custom_student, Student):
            problems.append(
                f"student: found {type(custom_student).__name__}; wrap a module as amradio.students.CustomStudent(module, patch_size=...)"
            )
        elif custom_student.num_summaries != (1 if self.student.shares_summary else self.num_summaries):
            wanted = "1 (student.summaries: shared)" if self.student.shares_summary else f"{self.num_summaries}, one per teacher"
            problems.append(f"student: the object has {custom_student.num_summaries} summaries, the recipe wants {wanted}")
        if problems:
            raise UserError(*problems)
        return custom_student

    def without_start(self) -> "NetworkConfig":
        """The same network, to be filled from its own weights and from nothing else."""
        fresh: dict[str, object] = {"train": AllSettings()}
        if "start_from" in type(self.student).model_fields:
            fresh["start_from"] = None
        return self.model_copy(update={"student": self.student.model_copy(update=fresh)})


class _Widths(NamedTuple):
    """Channels and blocks of a student that is not built, for an estimate."""

    summary_dim: int = 1024
    spatial_dim: int = 1024
    num_blocks: int = 24


def _build_head(config: HeadConfig, student: Student | _Widths) -> Head:
    dims = student.summary_dim, student.spatial_dim
    shapes = [StudentShape(other, student.num_blocks) for other in reversed(dims)]
    summary = config.summary and config.summary.head.build(dims[0], config.summary.dim, shapes[0])
    spatial = config.spatial and config.spatial.head.build(dims[1], config.spatial.dim, shapes[1])
    return Head(summary, spatial, config.slot, student.summary_dim)


class Network(nn.Module):
    """A student and its heads, by the name of their teacher."""

    def __init__(
        self, student: Student, heads: dict[str, Head], summary_slots: Sequence[int] | None = None, normalizers: Normalizers | None = None
    ):
        """summary_slots: which summaries make the backbone's; None for all."""
        super().__init__()
        self.student = student
        self.heads = nn.ModuleDict(heads)
        self.summary_slots = tuple(range(student.num_summaries)) if summary_slots is None else tuple(summary_slots)
        self.rotation, self.block_normalizer = normalizers or Normalizers()

    def head(self, name: str) -> Head:
        """The head of one teacher; KeyError where there is none."""
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def with_heads(self, names: Iterable[str], student: Student | None = None) -> "Network":
        """A network of the same modules (not copies) with these heads alone. student: takes the student's place."""
        heads = {name: self.head(name) for name in names}
        return Network(student or self.student, heads, self.summary_slots, Normalizers(self.rotation, self.block_normalizer))

    @property
    def summary_dim(self) -> int:
        """Channels of the backbone's summary."""
        return len(self.summary_slots) * self.student.summary_dim

    @property
    def spatial_dim(self) -> int:
        """Channels of the backbone's map."""
        return self.student.spatial_dim

    def forward(self, images: Tensor, draws: Tensor | None = None, heads: Iterable[str] = ()) -> dict[str, Features]:
        """Features of the backbone and of the named heads.

        images: [B, 3, H, W], RGB in [0, 1]; draws: [B, 8] uniform in [0, 1), the random numbers of a training step.
        Returns `backbone` (summary [B, summary_dim], spatial [B, H', W', spatial_dim]) and one entry a head.
        """
        names = tuple(heads)
        self.student.take_draws(draws)
        with torch.no_grad() if self.student.frozen else nullcontext():
            features, blocks = self.student.forward_blocks(images, draws) if self.reads_blocks(names) else (self.student(images, draws), ())
        return self._answer(features, blocks, names)

    def reads_blocks(self, names: Iterable[str]) -> bool:
        """Whether one of these heads reads the features after each block of the student."""
        return any(self.head(name).reads_blocks for name in names)

    def intermediates(
        self, images: Tensor, indices: int | Sequence[int] | None, aggregation: Aggregation, prefix: bool
    ) -> list[Features] | list[tuple[Features, Tensor]]:
        """As of `Student.intermediates`, normalised where the model does that; summaries are those of `summary_slots`."""
        outputs = self.student.intermediates(images, indices, aggregation, prefix)
        wanted = block_numbers(indices, len(self.student.blocks_in_order()))
        if prefix:
            pairs = cast(list[tuple[Features, Tensor]], outputs)
            numbered = zip(wanted, pairs, strict=True)
            return [(self._between(features, number, wanted, aggregation), tokens) for number, (features, tokens) in numbered]
        numbered = zip(wanted, cast(list[Features], outputs), strict=True)
        return [self._between(features, number, wanted, aggregation) for number, features in numbered]

    def _between(self, features: Features, number: int, wanted: Sequence[int], aggregation: Aggregation) -> Features:
        if self.block_normalizer is not None:
            before = max((other for other in wanted if other < number), default=-1)
            blocks = range(before + 1, number + 1) if aggregation == "dense" else (number,)
            features = features._replace(spatial=self.block_normalizer(features.spatial, blocks))
        return self.choose(features)

    def forward_packed(self, groups: PackedImages, heads: Iterable[str] = ()) -> list[dict[str, Features]]:
        """`forward` for each group of images of one size in one pass of the student. Raises UserError where it takes one size at a time."""
        names = tuple(heads)
        with torch.no_grad() if self.student.frozen else nullcontext():
            outputs = self.student.forward_packed(groups, self.reads_blocks(names))
        return [self._answer(features, blocks, names) for features, blocks in outputs]

    def pack(self, images: Sequence[Tensor], heads: Iterable[str] = ()) -> list[dict[str, Features]]:
        """`forward` for images [3, H, W] of several legal sizes in one pass of the student: for each what it is alone, with B = 1.

        Heads run once for every size. Images go one by one where a head reads the student's blocks. Raises UserError where the student
        takes one size at a time.
        """
        heads = tuple(heads)
        if self.reads_blocks(heads):
            return [self(image[None], None, heads) for image in images]
        outputs = self.student.pack(images)
        answers: dict[int, dict[str, Features]] = {}
        for size in dict.fromkeys(image.shape for image in images):
            members = [number for number, image in enumerate(images) if image.shape == size]
            answer = self._answer(_joined([outputs[number] for number in members]), (), heads)
            for row, number in enumerate(members):
                answers[number] = {name: _one(features, row) for name, features in answer.items()}
        return [answers[number] for number in range(len(images))]

    def _answer(self, features: Features, blocks: Sequence[Features], heads: Iterable[str]) -> dict[str, Features]:
        if self.rotation is not None:
            features = features._replace(spatial=self.rotation(features.spatial))
        return {"backbone": self.choose(features)} | {name: self.heads[name](features, blocks) for name in heads}

    def choose(self, features: Features) -> Features:
        """The student's features with the summaries of `summary_slots` alone."""
        if features.summary is None or self.summary_slots == tuple(range(self.student.num_summaries)):
            return features
        parts = features.summary.split(self.student.summary_dim, 1)
        return features._replace(summary=torch.cat([parts[slot] for slot in self.summary_slots], 1))


def _joined(parts: Sequence[Features]) -> Features:
    """Batches of one size as one."""
    return Features(*(torch.cat(kinds) if kinds[0] is not None else None for kinds in zip(*parts, strict=True)))


def _one(features: Features, number: int) -> Features:
    """One image of a batch, as a batch of one."""
    return Features(*(None if kind is None else kind[number : number + 1] for kind in features))


def load_exactly(module: nn.Module, weights: dict[str, Tensor], where: str, name: Callable[[str], str] = str) -> None:
    """Fills `module` from `weights`; it takes their dtype where all of them share one of half precision, and stays as it is otherwise.

    name: spells a key of the module as the file does, for messages. Raises UserError that names every missing, left-over and misshapen
    key (at most 10 each).
    """
    problems = misfits(module.state_dict(), {key: tensor.shape for key, tensor in weights.items()}, where, name)
    if problems:
        raise UserError(*problems)
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if dtypes in ({torch.float16}, {torch.bfloat16}):
        cast_weights(module, dtypes.pop())
    with torch.no_grad():
        module.load_state_dict(weights)


def misfits(expected: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], where: str, name: Callable[[str], str] = str) -> list[str]:
    """Why tensors of these shapes do not fill `expected`: missing, left-over and misshapen keys, a sentence each (at most 10 keys)."""
    missing = [name(key) for key in expected if key not in shapes]
    extra = [name(key) for key in shapes if key not in expected]
    both = [key for key in expected if key in shapes and tuple(shapes[key]) != tuple(expected[key].shape)]
    wrong = [f"{name(key)} is {list(shapes[key])}, not {list(expected[key].shape)}" for key in both]
    return [
        f"{where}: {what}: {', '.join(keys[:10])}{f' and {len(keys) - 10} more' if len(keys) > 10 else ''}"
        for what, keys in (("missing", missing), ("not known", extra), ("wrong shape", wrong))
        if keys
    ]


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts, in place, what a file would hold; mean and std of the images are not in it and keep their precision."""
    apart = {key for key, _ in module.named_buffers()} - module.state_dict().keys()
    kept = {key: module.get_buffer(key) for key in apart}
    module.to(dtype)
    for key, buffer in kept.items():
        owner, _, last = key.rpartition(".")
        module.get_submodule(owner).register_buffer(last, buffer, persistent=False)
