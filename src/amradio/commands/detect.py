"""`amradio detect train`: a detector on a student, trained or resumed."""

from pathlib import Path

from ..downstream.detection.run import DetectionFolder, DetectionRun
from ..downstream.detection.settings import DetectionRecipe
from .downstream_run import carry_out


def train_detector(recipe: DetectionRecipe) -> Path:
    """Trains the detector of a recipe on its student and returns the run folder.

    The same call resumes a run that was stopped, exactly. Under `torchrun` the processes share out each step's images. Raises UserError
    with all problems at once, before anything is written, where the recipe cannot be run here; where a signal stops the run,
    RunStoppedError after the checkpoint.
    """
    return carry_out(recipe, DetectionFolder(recipe.out), DetectionRun)
