"""`amradio quickstart`: the whole job in minutes, offline and without a GPU."""

from pathlib import Path

from ..console import print_text
from ..evaluation.base import Result
from ..evaluation.suite import Suite
from ..model import load
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..training import load_teachers
from ..words import only_keys
from .distill import distill
from .evaluate import SCENES, agreement_of, evaluate_models, for_suite, write_json

RECIPE = "quickstart"
TRAINING_SECONDS = 240.0
"""Of the five minutes that the quickstart may take on two cores; the evaluation takes the rest."""


def quickstart(*words: str, evaluations: str | Path = SCENES) -> Path:
    """Distils the three embedded teachers into one student on generated scenes, evaluates it beside them, and returns the run folder.

    words: changes to the built-in recipe, e.g. `out=runs/mine`. evaluations: what is measured at the end; the built-in file takes
    about a minute. The results go into the run folder's evaluations/. Raises UserError as `distill` does.
    """
    only_keys(words, "quickstart")
    recipe, suite = Recipe.load(RECIPE, *words), Suite.load(str(evaluations))
    folder = RunFolder(distill(recipe, within=TRAINING_SECONDS))
    teachers = load_teachers(for_suite(recipe, suite), {})
    print()
    model = load(folder.model)
    results = evaluate_models(model, teachers, suite, agreement_of(folder.path, model))
    file = folder.path / "evaluations" / f"step_{recipe.num_steps:09d}" / "scenes.json"
    write_json(results, file, {"path": str(folder.path), "teachers": {name: teacher.source for name, teacher in teachers.items()}})
    print()
    for sentence in (*_verdict(results), f"The model is in {folder.model}. Load it:"):
        print_text(sentence)
        print()
    print(f'    import amradio, torch\n    model = amradio.load("{folder.model}")\n')
    print(f'and `model(torch.rand(1, 3, 64, 64), heads=["{next(iter(recipe.teachers))}"])` gives its features.')
    return folder.path


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
