"""`amradio quickstart`: the whole job in minutes, offline and without a GPU."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..console import note, print_text
from ..engine.monitor import TooSlowError
from ..evaluation.base import Result
from ..evaluation.suite import Suite
from ..model import load
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..training import load_teachers
from ..words import only_keys
from .distill import distill
from .evaluate import SCENES, agreement_of, evaluate_models, for_suite, write_json
from .report import write_own_report

RECIPE = "quickstart"
TRAINING_SECONDS = 230.0
"""Of the five minutes that the quickstart may take on two cores; start and evaluation take the rest."""
SECONDS_LEFT = 205.0
"""Of these, when the run begins again after its first steps have shown that it takes too long."""
FEWEST, UNIT = 200, 50
"""Steps of the shortest run, and of what a run is shortened by."""
SETS_STEPS = re.compile(r"stages(\.\d+(\.steps)?)?=")
"""Words that say how many steps there are."""
LEFT_OUT = ("agreement", "segmentation")
"""Evaluations for which a slow machine has no time within five minutes."""


def quickstart(*words: str, evaluations: str | Path = SCENES) -> Path:
    """Distils the three embedded teachers into one student on generated scenes, evaluates it beside them, and returns the run folder.

    Where the first steps show that this machine needs more than five minutes, the run begins again with fewer steps and says so, and
    the longest evaluations are left out; words that set the steps are followed whatever time they take.

    words: changes to the built-in recipe, e.g. `out=runs/mine`. evaluations: what is measured at the end; the built-in file takes
    about a minute. The results go into the run folder's evaluations/. Raises UserError as `distill` does.
    """
    only_keys(words, "quickstart")
    suite = Suite.load(str(evaluations))
    recipe = _distilled(words)
    folder = RunFolder(recipe.out)
    is_shortened = recipe.num_steps < Recipe.load(RECIPE, *words).num_steps
    left_out = [name for name in LEFT_OUT if is_shortened and name in suite.evaluations]
    kept = {name: settings for name, settings in suite.evaluations.items() if name not in left_out}
    suite = suite.model_copy(update={"evaluations": kept or suite.evaluations})
    teachers = load_teachers(for_suite(recipe, suite), {})
    print()
    model = load(folder.model)
    results = evaluate_models(model, teachers, suite, agreement_of(folder.path, model))
    file = folder.path / "evaluations" / f"step_{recipe.num_steps:09d}" / "scenes.json"
    write_json(results, file, {"path": str(folder.path), "teachers": {name: teacher.source for name, teacher in teachers.items()}})
    if recipe.engine.report:
        write_own_report(folder, lambda line: note(f"warning: {line}"))  # that of the training has no results of the evaluation
    print()
    for sentence in (*_verdict(results), *_shortened(recipe, left_out, folder.path), f"The model is in {folder.model}. Load it:"):
        print_text(sentence)
        print()
    print(f'    import amradio, torch\n    model = amradio.load("{folder.model}")\n')
    print(f'and `model(torch.rand(1, 3, 64, 64), heads=["{next(iter(recipe.teachers))}"])` gives its features.')
    page = f"; curves, results and pictures are in {folder.path / 'report.html'}" if recipe.engine.report else ""
    note(f"Next: amradio show {folder.path} IMAGES --out shown{page}")
    return folder.path


def _distilled(words: Sequence[str]) -> Recipe:
    """Runs or resumes the training; the recipe that was run, which has fewer steps where the planned ones took too long."""
    recipe = Recipe.load(RECIPE, *words)
    if any(SETS_STEPS.match(word) for word in words):
        distill(recipe)
        return recipe
    folder = RunFolder(recipe.out)
    steps = folder.num_steps()
    if steps is not None and steps < recipe.num_steps:  # it was shortened when it began
        recipe = Recipe.load(RECIPE, *_steps(steps), *words)
    try:
        distill(recipe, within=TRAINING_SECONDS if recipe.num_steps > FEWEST else None)
    except TooSlowError as slow:
        fits = max(FEWEST, int(slow.fits * SECONDS_LEFT / TRAINING_SECONDS) // UNIT * UNIT)
        print_text(
            f"{slow.estimate}: this machine is slow or busy. Starting again with {fits:,} steps in place of {recipe.num_steps:,}; scores "
            f"will be lower than in the README. For all steps: amradio quickstart stages.0.steps={recipe.num_steps} out=FOLDER"
        )
        with folder.lock() as lock:
            folder.discard(lock)
        recipe = Recipe.load(RECIPE, *_steps(fits), *words)
        distill(recipe)
    return recipe


def _steps(steps: int) -> tuple[str, ...]:
    """Words for a run of so many steps: one held-out evaluation at the end, a checkpoint in the middle."""
    return (f"stages.0.steps={steps}", f"evaluate.every={steps}", f"engine.checkpoint_every={max(1, steps // 2)}")


def _shortened(recipe: Recipe, left_out: Sequence[str], path: Path) -> list[str]:
    """What was left out of a shortened run, and the command that measures it."""
    if not left_out:
        return []
    return [
        f"The run had {recipe.num_steps:,} steps, so that it ended in about five minutes; {' and '.join(left_out)} were not measured: "
        f"amradio evaluate {path} measures all."
    ]


def _verdict(results: dict[str, Result]) -> list[str]:
    """One sentence on cost: the student with all its heads against all teachers one after another; none where it was not measured."""
    rows = results["throughput"].rows if "throughput" in results else {}
    heads = [row for name, row in rows.items() if name.startswith("student/")]
    teachers = [row for name, row in rows.items() if name.startswith("teacher/")]
    if not heads or not teachers:
        return []
    one, all_teachers = rows["student"], 1 / sum(1 / row["images_per_second"] for row in teachers)
    million = one["parameters_m"] + sum(row["parameters_m"] - one["parameters_m"] for row in heads)
    speed = 1 / (1 / one["images_per_second"] + sum(max(0.0, 1 / row["images_per_second"] - 1 / one["images_per_second"]) for row in heads))
    return [
        f"Cost: the student with all its heads has {million:.2f} M parameters and does {speed:,.0f} images/s; the {len(teachers)} teachers "
        f"together have {sum(row['parameters_m'] for row in teachers):.2f} M and do {all_teachers:,.0f}. The student costs "
        f"{all_teachers / speed:.2f} of its teachers.",
    ]
