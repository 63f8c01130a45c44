"""`amradio vlm`: a vision-language model on a student, trained or resumed; and its export for transformers alone."""

import importlib.util
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from ..console import outlive_console, print_text
from ..devices import find_device
from ..downstream.vlm.settings import VlmRecipe
from ..engine.distributed import Processes, failures_of_peers
from ..engine.log import Log
from ..errors import UserError
from ..files import gone_on_failure, user_path
from ..interruption import RunStoppedError
from ..libraries import need

NEEDED = ("transformers", "trl", "peft", "datasets", "accelerate")


def train_vlm(recipe: VlmRecipe) -> Path:
    """Trains the vision-language model of a recipe and returns the run folder.

    The same call resumes a run that was stopped. Raises UserError with all problems at once, before anything is written, where the
    recipe cannot be run here; where a signal stops the run, RunStoppedError after the checkpoint.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"vision-language models are trained with {', '.join(missing)}, not installed here: pip install 'amradio[vlm]'")
    from ..downstream.vlm.run import VlmFolder, VlmRun

    if recipe.engine.threads:
        torch.set_num_threads(min(recipe.engine.threads, os.cpu_count() or 1))
    device = find_device(recipe.engine.device, "engine.device")
    with outlive_console(), failures_of_peers(), closing(Processes(device)) as processes:
        folder = VlmFolder(recipe.out)
        with folder.lock() as lock:
            processes.first_does(lambda: lock.take() if folder.is_run else None)
            problems = folder.check(recipe) + recipe.engine.missing_extras()
            if problems:
                raise UserError(*problems, on_all_processes=True)
            run = VlmRun(recipe, processes, Log(aloud=processes.is_first))
            run.begin(lock)
            run.run()
            if run.stop.was_followed:
                raise RunStoppedError(max(number or 0 for number in processes.gather(run.stop.number)))
    return folder.path


def paths_of_export(words: Sequence[str]) -> tuple[str, str]:
    """(model, new folder) of the words `RUN out=FOLDER`; raises UserError where they are others."""
    paths = [word for word in words if not word.startswith("out=")]
    out = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    if len(paths) != 1 or len(out) != 1:
        raise UserError(f"vlm export: found {' '.join(words)}; write one model and one new folder: amradio vlm export runs/vlm out=FOLDER")
    return paths[0], out[0]


def export_vlm(path: str | Path, out: str | Path) -> Path:
    """Writes a vision-language model for programs without this package: a LLaVA folder with transformers' RadioModel as its tower.

    Args:
        path: a run folder of `amradio vlm train`, or its model folder.
        out: a new folder.

    Returns `out`, which is read back and compared. Raises UserError where there is no model, `out` is there, or RadioModel has no place
    for the student.
    """
    need("transformers", str(path))
    from ..downstream.vlm.files import load_vlm, write_vlm
    from ..downstream.vlm.plain import check_target, plain, prefix_tokens

    folder = user_path(out, "out")
    check_target(folder)
    exported = plain(load_vlm(path))
    with gone_on_failure(folder):
        write_vlm(
            exported, folder, f"# LLaVA with transformers' RadioModel\n\nFrom `{path}`, by `amradio vlm export`.", needs_amradio=False
        )
        load_vlm(folder)
    print_text(f"{folder}: LLaVA with transformers' RadioModel; images become squares of one size")
    count = prefix_tokens(exported)
    if count:
        print_text(
            f"the language model also gets the student's {count} summaries and registers, which it has not seen in training: "
            "measure it before you use it"
        )
    return folder
