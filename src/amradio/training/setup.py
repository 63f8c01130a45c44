"""The parts of a run, built from a recipe: teachers, network, task, optimizer, and the context that all parts share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..data import OpenData
from ..devices import autocast_dtype, find_device
from ..distillation.calibration import mark_as_raw
from ..distillation.self_distillation import SelfDistillation
from ..distillation.task import Distillation, Objective
from ..engine.distributed import Processes
from ..engine.ema import Ema
from ..engine.log import Clock, Log
from ..engine.loop import is_due
from ..engine.optimizer import build_optimizer
from ..engine.parallel import Parallel, parallelize
from ..engine.rates import rate_factors
from ..errors import UserError
from ..features import KINDS
from ..interruption import Stop
from ..network import Network, NetworkConfig
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..students.drop_path import add_drop_path
from ..students.reparametrization import plain, plain_state, reparametrize, without_decay
from ..teachers.base import Teacher
from .initialization import InitialNetwork
from .schedule import Feeds, Stage, find_stages

Teachers = Mapping[str, Teacher]


def load_teachers(recipe: Recipe, custom_teachers: Teachers, say: Callable[[str], None] = lambda _: None) -> dict[str, Teacher]:
    """The frozen teachers on the CPU.

    Those whose precision is `auto` get that of the run. custom_teachers: objects passed by the user for teachers of type `custom`, by name.
    say: gets the name of each teacher before it is loaded.
    Raises UserError with what all of them lack.
    """
    teachers, problems, autocast = {}, [], autocast_dtype(recipe.engine.precision, find_device(recipe.engine.device, "engine.device"))
    for number, (name, settings) in enumerate(recipe.teachers.items()):
        say(f"loading teacher {number + 1} of {len(recipe.teachers)}: {name}")
        try:
            teachers[name] = custom_teachers[name] if name in custom_teachers else settings.at(autocast).build()
        except UserError as error:
            problems += [f"teachers.{name}: {problem}" for problem in error.problems]
            continue
        lacks_all = all(teachers[name].dim(kind) is None or not settings.weight(kind) for kind in KINDS)
        if lacks_all:
            problems.append(
                f"teachers.{name}: nothing to learn: it has no feature with a weight; set summary_weight or spatial_weight, or drop it"
            )
        teachers[name].requires_grad_(False).eval()
    if problems:
        raise UserError(*problems)
    return teachers


@dataclass
class Context:
    """What the parts of a run share."""

    recipe: Recipe
    processes: Processes
    log: Log
    folder: RunFolder
    config: NetworkConfig
    """Of the network that is trained."""
    task: Distillation
    """On the device."""
    parallel: Parallel
    """The task as the processes train it."""
    optimizer: torch.optim.Optimizer
    ema: Ema[Network] | None
    stages: list[Stage]
    feeds: Feeds
    clock: Clock
    stop: Stop
    autocast: torch.dtype | None
    """None for float32."""
    calibrated_stage: int | None = None
    """The number of the stage whose statistics are set; None before the first one's are measured."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.recipe.num_steps

    def is_due(self, step: int, period: int | None) -> bool:
        """Whether `step` is a multiple of the period or the run's end; never for None."""
        return is_due(step, period, self.num_steps)


def _objective(recipe: Recipe, network: Network, processes: Processes) -> Objective:
    learnt = {(name, kind) for name in network.heads for kind in KINDS if network.head(name).part(kind) is not None}
    weights = {name: weight for name, weight in recipe.weights().items() if tuple(name.split("/")) in learnt}
    return Objective(
        losses={kind: recipe.loss.of(kind).build() for kind in KINDS},
        balance=recipe.balance.build(weights),
        grid=recipe.loss.grid,
        mixed=recipe.normalize.mixed_kinds,
        needs_sphere=recipe.loss.summary.needs_sphere,
        gather=processes.gather_rows,
        token_exponent=recipe.loss.token_exponent,
    )


def _regularize(network: Network, recipe: Recipe) -> None:
    """Changes the student in place as `regularize` says. Raises UserError where it has nothing of the kind."""
    settings, problems = recipe.regularize, []
    parts: list[tuple[str, Callable[[], None]]] = []
    if settings.spectral or settings.weight_noise:
        key = "spectral" if settings.spectral else "weight_noise"
        parts.append((key, lambda: reparametrize(network.student, settings.spectral, settings.weight_noise)))
    if settings.drop_path:
        parts.append(("drop_path", lambda: add_drop_path(network.student, settings.drop_path)))
    for key, change in parts:
        try:
            change()
        except UserError as error:
            problems += [f"regularize.{key}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(*problems)


def build_context(recipe: Recipe, teachers: Teachers, initial: InitialNetwork, data: OpenData, processes: Processes, log: Log) -> Context:
    """Everything that a run needs, on this process's device.

    teachers: loaded, on the CPU; they are moved. initial: its network is moved and trained in place.
    """
    network, device = initial.network, processes.device
    if recipe.engine.channels_last:
        network.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    processes.share_batch_statistics(network)
    clock = Clock(device)
    objective = _objective(recipe, network, processes)
    moved = {name: teacher.to(device) for name, teacher in teachers.items()}
    task = Distillation(network, moved, objective, clock.part).to(device)
    mark_as_raw(task, initial.kept)
    autocast = autocast_dtype(recipe.engine.precision, device)
    # Seen: the fused kernel's backward on a CPU in bfloat16 halves the speed of a ViT-tiny step (317 -> 178 images/s a core).
    network.student.fuse_attention(not (device.type == "cpu" and autocast is torch.bfloat16))
    _regularize(network, recipe)
    factors = {f"network.{name}": factor for name, factor in rate_factors(network, recipe.optimizer).items()}
    averaged = network.with_heads(network.heads, plain(network.student))
    ema = Ema(averaged, recipe.engine.ema, plain_state) if recipe.engine.ema else None
    mesa = recipe.regularize.self_distillation
    task.self_distillation = SelfDistillation(ema.average, mesa.weight, mesa.max_shift) if ema and mesa else None
    one_pass = recipe.engine.accumulate == 1 and all(len(stage.partitions) == 1 for stage in recipe.stages)
    spared = network.student.no_decay() | initial.partly_trained | without_decay(network.student)
    return Context(
        recipe=recipe,
        processes=processes,
        log=log,
        folder=RunFolder(recipe.out, recipe.engine.keep),
        config=initial.config,
        task=task,
        parallel=parallelize(task, processes, one_pass),
        optimizer=build_optimizer(task, recipe.optimizer, {f"network.student.{name}" for name in spared}, factors),
        ema=ema,
        stages=list(find_stages(recipe, task.views)),
        feeds=Feeds(recipe, data, processes),
        clock=clock,
        stop=Stop(),
        autocast=autocast,
    )
