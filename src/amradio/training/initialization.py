"""Initializes a run's network: from scratch, from an existing model, or as it was recorded when the run began."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import cuda

from .. import formats
from ..config import sides_of
from ..errors import UserError
from ..features import KINDS, Kind
from ..formats import LoadedModel
from ..formats.base import peek
from ..formats.model_folder import ancestors_in
from ..licences import Ancestor, ancestor, licence_in
from ..names import recognise
from ..network import TRAINED_BYTES, WEIGHT_BYTES, HeadConfig, HeadPart, Network, NetworkConfig
from ..recipe import PartitionSettings, Recipe, StageSettings
from ..run_folder import NetworkRecord
from ..students.base import Student
from ..students.finetuning import train_rows
from ..students.model import ModelStudentSettings
from ..students.settings import StudentSettings
from ..teachers.base import Teacher
from .continuation import Plan, fill, plan


class InitialNetwork(NamedTuple):
    """A network that is ready to be trained."""

    record: NetworkRecord
    network: Network
    """On the CPU; what is not trained does not require gradients."""
    kept: tuple[tuple[str, Kind], ...] = ()
    """Parts of heads whose outputs are in raw teacher space already."""
    notes: tuple[str, ...] = ()
    """Where it comes from, a line each."""

    @property
    def config(self) -> NetworkConfig:
        """As config.json of the model folder will hold it."""
        return self.record.network

    @property
    def partly_trained(self) -> set[str]:
        """Names of the student's parameters of which only some rows are trained; decay would move the others."""
        student = self.network.student
        return set() if all(parameter.requires_grad for parameter in student.parameters()) else set(student.summary_rows)


def initialize(
    recipe: Recipe, teachers: Mapping[str, Teacher], record: NetworkRecord | None = None, student: Student | None = None
) -> InitialNetwork:
    """The network of a recipe with its initial weights.

    teachers: by name, for the dims of their features.
    record: of the run that is resumed; its weights are filled in from the checkpoint later.
    student: the user's object, where the recipe's student is a custom one.
    Raises UserError where the model to continue from cannot be read or does not fit, or the part to be trained does not exist.
    """
    settings = recipe.student
    if record is not None:
        return _resumed(record, settings.train, student)
    if isinstance(settings, ModelStudentSettings):
        if student is not None:
            raise UserError("student: an object was passed, but the student is of type 'model'; drop one of both")
        model = read_model(settings)
        return _from_model(model, _plan(recipe, model.config, teachers), settings.path, settings.train)
    config = network_config(recipe, teachers)
    on_cpu = recipe.engine.device == "cpu" or (recipe.engine.device == "auto" and not cuda.is_available())
    config.check_memory(TRAINED_BYTES if on_cpu else WEIGHT_BYTES)
    return _new(config, settings.train, student)


def network_config(recipe: Recipe, teachers: Mapping[str, Teacher]) -> NetworkConfig:
    """The student with one head per teacher, for every kind of feature that the teacher has and that has a weight."""
    if isinstance(recipe.student, ModelStudentSettings):
        return _plan(recipe, read_model(recipe.student).config, teachers).config
    assert isinstance(recipe.student, StudentSettings)
    heads: dict[str, HeadConfig] = {}
    slot = 0
    for name, head in _heads(recipe, teachers).items():
        heads[name] = head.model_copy(update={"slot": slot if head.summary else 0})
        slot += head.summary is not None and not recipe.student.shares_summary
    size = preferred_size(recipe.stages, heads)
    config = NetworkConfig(student=recipe.student, num_summaries=max(1, slot), heads=heads, image_size=size)
    return config.descended(*(teacher.ancestors for teacher in teachers.values()))


def read_model(settings: ModelStudentSettings) -> LoadedModel:
    """The model that a student continues from; raises UserError where there is none, or none that has these settings."""
    try:
        model = formats.read(settings.path, settings.align_corners)
    except UserError as error:
        raise UserError(*(f"student.path: {problem}" for problem in error.problems)) from None
    student = model.config.student
    given = {"align_corners": settings.align_corners is not None, "gradient_checkpointing": settings.gradient_checkpointing}
    unknown = [name for name, is_given in given.items() if is_given and name not in type(student).model_fields]
    if unknown:
        raise UserError(*(f"student.{name}: {settings.path} is of type '{student.type}', which has no such key" for name in unknown))
    if settings.gradient_checkpointing:
        student = student.model_copy(update={"gradient_checkpointing": True})
    return model._replace(config=model.config.model_copy(update={"student": student}))


def _plan(recipe: Recipe, model: NetworkConfig, teachers: Mapping[str, Teacher]) -> Plan:
    heads = _heads(recipe, teachers)
    planned = plan(model, heads, preferred_size(recipe.stages, heads))
    planned = planned._replace(config=planned.config.descended(*(teacher.ancestors for teacher in teachers.values())))
    new = {name for name, head in planned.config.heads.items() for kind in KINDS if head.part(kind) and (name, kind) not in planned.kept}
    idle = [name for name in recipe.heads.by_teacher if name not in new]
    if idle:
        fix = "leave the key out, or name the teacher otherwise to give it a new head"
        raise UserError(*(f"heads.by_teacher.{name}: the model's head '{name}' keeps its layers; {fix}" for name in idle))
    return planned


def _heads(recipe: Recipe, teachers: Mapping[str, Teacher]) -> dict[str, HeadConfig]:
    """A new head for each teacher; which summary it reads is not settled."""
    heads = {}
    for name, teacher in teachers.items():
        summary, spatial = (_part(recipe, name, teacher, kind) for kind in KINDS)
        card: dict[str, str | int | float | None] = {
            "type": recipe.teachers[name].type,
            "source": teacher.source,
            "licence": teacher.licence,
        }
        heads[name] = HeadConfig(summary=summary, spatial=spatial, teacher=card)
    preferred = preferred_size(recipe.stages, heads)
    for name in heads:
        sizes = _last_sizes(recipe.stages, name)
        heads[name] = heads[name].model_copy(update={"image_size": preferred if preferred in sizes else max(sizes)})
    return heads


def _part(recipe: Recipe, name: str, teacher: Teacher, kind: Kind) -> HeadPart | None:
    dim = teacher.dim(kind)
    if dim is None or recipe.teachers[name].weight(kind) == 0:
        return None
    return HeadPart(head=recipe.heads.by_teacher.get(name, recipe.heads).of(kind), dim=dim)


def short_side(partition: PartitionSettings) -> int:
    """px of the short side of a partition's images: what a model keeps of the size at which it was trained."""
    return min(sides_of(partition.image_size))


def preferred_size(stages: Sequence[StageSettings], heads: Mapping[str, HeadConfig]) -> int:
    """px (short side) of the last stage at which most summaries are taught, of several those at which most teachers are, of several the
    largest.

    The order of the partitions does not count. Summaries come first because recognition is what is measured at this size: for CLIP and
    DINOv2 at 432 px and SAM, which has no summary, at 1024 px it is 432.
    """
    taught: dict[int, set[str]] = {}
    for partition in stages[-1].partitions:
        taught.setdefault(short_side(partition), set()).update(partition.teachers or heads)
    return max(
        taught, key=lambda size: (sum(heads[name].summary is not None for name in taught[size] & heads.keys()), len(taught[size]), size)
    )


def _last_sizes(stages: Sequence[StageSettings], name: str) -> list[int]:
    """px of the partitions of a teacher in the last stage that it is in."""
    for stage in reversed(stages):
        sizes = [short_side(partition) for partition in stage.partitions if partition.teachers is None or name in partition.teachers]
        if sizes:
            return sizes
    return [short_side(stages[-1].partitions[0])]


def _new(config: NetworkConfig, train: Any, custom_student: Student | None) -> InitialNetwork:
    """New heads, and a student that is random or started from the weights that its settings name. train: one of `TRAINED`."""
    network = config.build(custom_student)
    started = network.student.started_from
    if started is None and custom_student is None and train.type != "all":
        raise UserError(f"student.train: '{train.type}' trains a part of weights that exist, and this student begins at random; take all")
    notes = (f"student begins with: {started}",) if started is not None else ()
    config = config.descended(_pretrained_ancestors(config.student))
    record = NetworkRecord(network=config.without_start(), new_summaries=list(range(config.num_summaries)))
    return InitialNetwork(record, network, notes=notes + _choose(network.student, train, record.new_summaries) + _sizes(config))


def _pretrained_ancestors(student: Any) -> list[Ancestor]:
    """The model whose weights a student begins with, and those that it was distilled from."""
    source = student.start_from if "start_from" in type(student).model_fields else None
    if source is None:
        return []
    source = student.model if source == "hub" else source
    name = recognise(source)
    folder = name.path if name.kind == "folder" else name.path.parent if name.kind == "file" else None
    if folder is None:
        return [ancestor("initial weights", source.removeprefix("hf-hub:").removeprefix("timm/"))]
    stated = peek(folder / "config.json") or {}
    return [ancestor("initial weights", source, licence_in(folder)), *ancestors_in(stated, f"{folder / 'config.json'}: ")]


def _from_model(model: LoadedModel, planned: Plan, source: str, train: Any) -> InitialNetwork:
    """Continues from a model as planned. source: its path."""
    network = planned.config.build()
    fill(network, model.network, planned)
    record = NetworkRecord(network=planned.config.without_start(), new_summaries=list(planned.new_summaries))
    chosen = _choose(network.student, train, record.new_summaries)
    notes = (f"student continues from {source}", *planned.notes, *chosen, *_sizes(planned.config))
    return InitialNetwork(record, network, planned.kept, notes)


def _resumed(record: NetworkRecord, train: Any, custom_student: Student | None) -> InitialNetwork:
    """The network of a run that is resumed, to be filled from its checkpoint."""
    network = record.network.build(custom_student)
    return InitialNetwork(record, network, notes=_choose(network.student, train, record.new_summaries) + _sizes(record.network))


def _sizes(config: NetworkConfig) -> tuple[str, ...]:
    """A line where heads are trained at several sizes."""
    sizes = config.sizes_of_heads()
    return (f"heads are trained {sizes}; {config.image_size} px is what the model prefers where no size is asked for",) if sizes else ()


def _choose(student: Student, train: Any, new_summaries: Sequence[int]) -> tuple[str, ...]:
    """Freezes what is not trained, in place; a line that says how much is, empty where all of it is."""
    total = sum(parameter.numel() for parameter in student.parameters())
    try:
        train.choose(student, student.blocks_in_order())
    except UserError as error:
        raise UserError(*(f"student.train.{problem}" for problem in error.problems)) from None
    if train.type == "all":
        return ()
    for name, count in student.summary_rows.items():
        train_rows(student.get_parameter(name), [slot * count + row for slot in new_summaries for row in range(count)])
    chosen = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return (
        f"student: {train.type} trains {chosen / 1e6:.2f} M parameters beside {total / 1e6:.2f} M, and {len(new_summaries)} new summaries",
    )
