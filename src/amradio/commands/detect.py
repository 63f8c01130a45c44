"""`amradio detect train`: a detector on a student, trained or resumed."""

import os
from contextlib import closing
from pathlib import Path

import torch

from ..console import outlive_console
from ..devices import find_device
from ..downstream.detection.run import DetectionFolder, DetectionRun
from ..downstream.detection.settings import DetectionRecipe
from ..engine.distributed import Processes, failures_of_peers
from ..engine.log import Log
from ..errors import UserError
from ..interruption import RunStoppedError


def train_detector(recipe: DetectionRecipe) -> Path:
    """Trains the detector of a recipe on its student and returns the run folder.

    The same call resumes a run that was stopped, exactly. Under `torchrun` the processes share out each step's images. Raises UserError
    with all problems at once, before anything is written, where the recipe cannot be run here; where a signal stops the run,
    RunStoppedError after the checkpoint.
    """
    if recipe.engine.threads:
        torch.set_num_threads(min(recipe.engine.threads, os.cpu_count() or 1))
    device = find_device(recipe.engine.device, "engine.device")
    with outlive_console(), failures_of_peers(), closing(Processes(device)) as processes:
        folder = DetectionFolder(recipe.out)
        with folder.lock() as lock:
            processes.first_does(lambda: lock.take() if folder.is_run else None)
            problems = folder.check(recipe)
            if problems:
                raise UserError(*problems, on_all_processes=True)
            run = DetectionRun(recipe, processes, Log(aloud=processes.is_first))
            run.begin(lock)
            run.run()
            if run.stop.was_followed:
                raise RunStoppedError(max(number or 0 for number in processes.gather(run.stop.number)))
    return folder.path
