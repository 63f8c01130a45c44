#!/usr/bin/env python
"""Which target space and loss of maps make the best student, by short runs of the quickstart's recipe over seeds.

    python benchmarks/target_spaces.py --runs runs/target_spaces --out benchmarks/results/target_spaces

Every run is evaluated as `amradio evaluate` does: the linear probe on the backbone's map, the probe on the heads' maps, and masks of the
SAM head through SAM's own decoder. Scenes of the evaluation are those of seeds 1 to 3, on which hyper-parameters are chosen; the
numbers of the README come from other seeds. Runs that are there already are not repeated.
"""

import argparse
import json
import statistics
from pathlib import Path

from amradio.commands.distill import distill
from amradio.commands.evaluate import evaluate
from amradio.environment import environment
from amradio.recipe import Recipe

VARIANTS = {
    "raw, 0.9 cosine + 0.1 smooth L1 (AM-RADIO)": ("normalize.spatial=none", "loss.spatial=match"),
    "per channel, 0.9 cosine + 0.1 smooth L1": ("normalize.spatial=per_channel", "loss.spatial=match"),
    "per channel, MSE (PHI-S, table 13)": ("normalize.spatial=per_channel", "loss.spatial=mse"),
}
EVALUATIONS = """
evaluations:
  segmentation:
    type: linear_segmentation
    train: {type: scenes, length: 384, seed: 3}
    test: {type: scenes, length: 192, seed: 1}
    schedule: {type: short, steps: 200}
    models: [student, student/clip, student/dino, student/sam]
  masks:
    type: promptable_segmentation
    data: {type: scenes, length: 96, seed: 1}
    bins: [10, 20]
    models: [student/sam]
  agreement:
    type: agreement
    data: {type: scenes, length: 192, seed: 1}
  zero-shot:
    type: zero_shot
    data: {type: scenes, length: 512, seed: 1}
    templates: ["a photo of a {} object", "a picture of a {} object", "a {} object"]
    models: [student/clip]
"""


def numbers(results: dict[str, dict]) -> dict[str, float]:
    """One number a column of the table: `evaluation/row/metric`, of headline metrics."""
    found = {}
    for name, result in results.items():
        for metric in result["metrics"]:
            if metric["headline"]:
                found |= {
                    f"{name}/{row}/{metric['name']}": values[metric["name"]]
                    for row, values in result["rows"].items()
                    if metric["name"] in values
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="receives OUT.json and OUT.md")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    suite = given.runs / "evaluations.yaml"
    suite.write_text(EVALUATIONS, encoding="utf-8")
    table: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for seed in given.seeds:
        for number, (name, words) in enumerate(VARIANTS.items()):
            out = given.runs / f"{number}_{seed}"
            file = out / "target_spaces.json"
            if not file.is_file():
                common = (f"stages.0.steps={given.steps}", f"seed={seed}", f"data.train.seed={100 + seed}", "evaluate.every=null")
                distill(Recipe.load("quickstart", *common, *words, f"out={out}"))
                evaluate(out, str(suite), json_file=file)
            table[name].append(numbers(json.loads(file.read_text(encoding="utf-8"))["results"]))
    columns = list(next(iter(table.values()))[0])
    lines = [
        f"{given.steps} steps, seeds {given.seeds}: mean and standard deviation.",
        "",
        f"| measure | {' | '.join(table)} |",
        "|---|" + "--:|" * len(table),
    ]
    for column in columns:
        cells = [[run[column] for run in runs] for runs in table.values()]
        lines.append(f"| {column} | {' | '.join(f'{statistics.mean(c):.4g} ± {statistics.pstdev(c):.2g}' for c in cells)} |")
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"steps": given.steps, "seeds": given.seeds, "runs": table, "environment": environment()}
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
