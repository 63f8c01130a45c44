"""What `amradio detect train` and `amradio vlm train` share: a run on a frozen or trained student, begun or resumed."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ..console import outlive_console
from ..devices import find_device
from ..engine.distributed import Processes, failures_of_peers
from ..engine.log import Log
from ..errors import UserError
from ..interruption import RunStoppedError


def carry_out(recipe: Any, folder: Any, build: Callable[[Any, Processes, Log], Any]) -> Path:
    """Begins or resumes the run of `recipe` in `folder`, carries it out, and returns the folder's path.

    build: (recipe, processes, log) -> the run, with `begin(lock)`, `run()` and `stop`. Raises UserError with all problems at once, before
    anything is written; where a signal stops the run, RunStoppedError after the checkpoint.
    """
    if recipe.engine.threads:
        torch.set_num_threads(min(recipe.engine.threads, os.cpu_count() or 1))
    device = find_device(recipe.engine.device, "engine.device")
    with outlive_console(), failures_of_peers(), closing(Processes(device)) as processes, folder.lock() as lock:
        processes.first_does(lambda: lock.take() if folder.is_run else None)
        problems = folder.check(recipe)
        if problems:
            raise UserError(*problems, on_all_processes=True)
        run = build(recipe, processes, Log(aloud=processes.is_first))
        run.begin(lock)
        run.run()
        if run.stop.was_followed:
            raise RunStoppedError(max(number or 0 for number in processes.gather(run.stop.number)))
    return folder.path
