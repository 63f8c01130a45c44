"""`amradio vlm`: a vision-language model on a student, trained or resumed; and its export for transformers alone."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..console import print_text
from ..downstream.vlm.settings import VlmRecipe
from ..errors import UserError
from ..files import gone_on_failure, user_path
from ..libraries import need
from .downstream_run import carry_out

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

    return carry_out(recipe, VlmFolder(recipe.out), VlmRun)


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

    Returns `out`, which is read back. Raises UserError where there is no model, `out` is there, or RadioModel has no place
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
