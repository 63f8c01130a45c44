"""What a run is made of: the teachers of a recipe, and the context that all parts of a run share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..devices import autocast_dtype, find_device
from ..distillation.task import Distillation
from ..engine.distributed import Processes
from ..engine.ema import Ema
from ..engine.log import Clock, Log
from ..engine.loop import Stage
from ..errors import UserError
from ..features import KINDS
from ..interruption import Stop
from ..network import Network
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..teachers.base import Teacher
from .schedule import Feeds

Teachers = Mapping[str, Teacher]


def load_teachers(recipe: Recipe, own: Teachers, say: Callable[[str], None] = lambda _: None) -> dict[str, Teacher]:
    """The frozen teachers on the CPU.

    Those whose precision is `auto` get that of the run. own: objects of the user's, by name, in the places of teachers of type `own`.
    say: is told of each teacher before it is loaded.
    Raises UserError with what all of them lack.
    """
    teachers, problems, autocast = {}, [], autocast_dtype(recipe.engine.precision, find_device(recipe.engine.device))
    for number, (name, settings) in enumerate(recipe.teachers.items()):
        say(f"loading teacher {number + 1} of {len(recipe.teachers)}: {name}")
        try:
            teachers[name] = own[name] if name in own else settings.at(autocast).build()
        except UserError as error:
            problems += [f"teachers.{name}: {problem}" for problem in error.problems]
            continue
        lacks_all = all(getattr(teachers[name], f"{kind}_dim") is None or not getattr(settings, f"{kind}_weight") for kind in KINDS)
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
    task: Distillation
    ema: Ema[Network] | None
    stages: list[Stage]
    feeds: Feeds
    clock: Clock
    stop: Stop
    autocast: torch.dtype | None
