#!/usr/bin/env python
"""What each choice of the method is worth, by short runs over three seeds on generated scenes, beside what the papers found.

    python benchmarks/ablations.py --runs runs/ablations [--groups NAME ...] && python tools/make_numbers.py
    python benchmarks/ablations.py --runs runs/ablations --steps 0

Each group asks one question: variants of the quickstart's recipe, and claims, which are what a paper says of them. The claims stand in this
file and were written before the runs. A gap counts where its mean over the seeds exceeds the spread of the unchanged recipe (sample
standard deviation over the same seeds): `reproduced` in the paper's direction, `not reproduced` against it, `within the spread` else.
Scenes of the evaluation are those of seeds 1 to 3, on which choices are made; the README's numbers come from other seeds. Runs that are
there already are not repeated; seeds come before variants, so that a stopped sweep leaves whole seeds; `--steps 0` runs nothing and
writes up what is there. The numbers go into benchmarks/results/ablations.json, from which `tools/make_numbers.py` writes the tables of
docs/ablations.md, and a picture a group into docs/images.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dots import Row, draw_rows

from amradio.commands.distill import distill
from amradio.commands.evaluate import evaluate
from amradio.environment import environment
from amradio.files import write_aside
from amradio.recipe import Recipe

ROOT = Path(__file__).parents[1]
BASE = (
    "stages.0.partitions.0.batch_size=16",
    "evaluate.every=null",
    "engine.log_every=50",
    "engine.checkpoint_every=100000",
    "engine.prepare_ahead=false",  # so that a run keeps to the threads that it is given
)
EVALUATIONS = """
device: cpu
precision: float32
evaluations:
  zero-shot:
    type: zero_shot
    data: {type: scenes, length: 512, seed: 1}
    templates: ["a photo of a {} object", "a picture of a {} object", "a {} object"]
    models: [student/clip]
  k-NN:
    type: knn
    database: {type: scenes, length: 1024, seed: 2}
    queries: {type: scenes, length: 512, seed: 1}
    k: [20]
    models: [student]
  segmentation:
    type: linear_segmentation
    train: {type: scenes, length: 192, seed: 3}
    test: {type: scenes, length: 96, seed: 1}
    schedule: {type: short, steps: 150}
    models: [student]
  masks:
    type: promptable_segmentation
    data: {type: scenes, length: 64, seed: 1}
    bins: [10, 20]
    models: [student/sam]
  agreement:
    type: agreement
    data: {type: scenes, length: 128, seed: 1}
    image_size: 64  # of the teachers, whatever the student sees
    image_sizes: [32, 64, 80, 96, 112, 128]
"""
ZERO_SHOT, KNN, MIOU, CLICK = "zero-shot, %", "20-NN, %", "mIoU, %", "one click, IoU %"
MAPS, SUMMARY = "maps, cosine at 64 px", "summary, cosine at 64 px"
MAPS_SMALL, MAPS_LARGE = "maps, cosine at 32 px", "maps, cosine at 128 px"
WORST = "maps, worst teacher and size from 64 px"
MODES = "maps, the worse of 32 and 128 px over the better, worst teacher"
MEASURES = (ZERO_SHOT, KNN, MIOU, CLICK, SUMMARY, MAPS, MAPS_SMALL, MAPS_LARGE, WORST, MODES)
ALWAYS = (ZERO_SHOT, KNN, MIOU, CLICK, MAPS)
"""Shown of every group, beside what its claims are about."""


class Claim(NamedTuple):
    """`better` beats `worse` in `measure`, says `source`."""

    measure: str
    better: str
    worse: str
    source: str


class Group(NamedTuple):
    """One question."""

    question: str
    variants: Mapping[str, Sequence[str]]
    """Words over the recipe, by name; `recipe` is the unchanged one and belongs to every group."""
    claims: Sequence[Claim]
    by_size: bool = False
    """Whether the maps of each head are compared at every size."""


NORMALIZERS = ("none", "global", "per_channel", "phi_s", "pca", "zca", "hadamard")
LOSSES = {"mse": "loss.spatial=mse", "match": "loss.spatial=match"}
TIMM = "{type: timm, model: test_vit, image_size: 64, summary: %s}"
PARTITION = "stages.0.partitions.0"
DINO_AT_64 = "{size: %d, teachers: {dino: 64}}"  # as clip and sam: a teacher's own change with the size would look like a student's
LOW, HIGH = f"image_size: 32, image_sizes: [{DINO_AT_64 % 32}], batch_size: 16", "image_size: 128, batch_size: 8"
SPLIT, TOGETHER = "clip and dino at 32, sam at 128 px", "all at 32 and 128 px"


def groups(steps: int) -> dict[str, Group]:
    """All groups; stages that a group sets have `steps`."""
    grid = {f"{n} + {name}": (f"normalize.spatial={n}", word) for n in NORMALIZERS for name, word in LOSSES.items()}
    phi_s = "PHI-S, table 13"
    return {
        "normalizer": Group(
            "Which target space, and which loss of maps in it? (`match` is AM-RADIO's 0.9 cosine + 0.1 smooth L1.)",
            grid,
            (
                Claim(MIOU, "none + match", "none + mse", f"{phi_s}: 48.2 against 42.4 on ADE20K"),
                Claim(ZERO_SHOT, "none + match", "none + mse", f"{phi_s}: 71.2 against 56.2"),
                Claim(
                    CLICK,
                    "none + mse",
                    "none + match",
                    f"{phi_s}: 71.9 against 69.5 on SAM-COCO: raw MSE favours SAM, whose scale is largest",
                ),
                Claim(MIOU, "phi_s + mse", "none + mse", f"{phi_s}: 48.6 against 42.4"),
                Claim(MIOU, "phi_s + mse", "per_channel + mse", f"{phi_s}: 48.6 against 47.9"),
                Claim(MIOU, "phi_s + mse", "pca + mse", f"{phi_s}: 48.6 against 47.6"),
                Claim(MIOU, "phi_s + mse", "zca + mse", f"{phi_s}: 48.6 against 47.8"),
                Claim(MIOU, "phi_s + mse", "hadamard + mse", f"{phi_s}: 48.6 against 47.8"),
                Claim(CLICK, "per_channel + mse", "phi_s + mse", f"{phi_s}: 70.2 against 69.9"),
                Claim(MIOU, "global + mse", "none + mse", f"{phi_s}: 47.9 against 42.4"),
            ),
        ),
        "balance": Group(
            "Does balancing the losses of the teachers help?",
            {"recipe": (), **{name: (f"balance={name}",) for name in ("adaloss", "uncertainty", "teacher_dropping")}},
            (
                Claim(ZERO_SHOT, "adaloss", "recipe", "AM-RADIO, section on balancing; PHI-S, table 13: 72.7 against 70.7"),
                Claim(MIOU, "recipe", "adaloss", "AM-RADIO: worst ADE20K of the schemes; PHI-S, table 13: 48.6 against 47.4"),
                Claim(MIOU, "recipe", "uncertainty", "AM-RADIO, table 4: none helps much"),
                Claim(MIOU, "teacher_dropping", "recipe", "UNIC: dropping at p = 0.5 balances teachers"),
            ),
        ),
        "teachers": Group(
            "Do two spatial teachers beat one?",
            {"recipe": (), "without sam": ("teachers.sam=null",), "without dino": ("teachers.dino=null",)},
            (
                Claim(MIOU, "recipe", "without dino", "AM-RADIO, table 3: both feature losses help"),
                Claim(MIOU, "recipe", "without sam", "AM-RADIO, table 3; RADIOv2.5, finding 5: all teachers help, SAM included"),
            ),
        ),
        "positions": Group(
            "Does cropping the position table in training (CPE) help at another resolution?",
            {"recipe": (), "cropped positions": ("student.viewport=true", "student.position_dropout=0.1")},
            (Claim(MAPS_LARGE, "cropped positions", "recipe", "AM-RADIO, table 5: CPE is what generalizes over resolutions"),),
        ),
        "summary": Group(
            "A class token or the mean of the map as summary? (timm's `test_vit` as student.)",
            {"class token": (f"student={TIMM % 'token'}",), "mean of the map": (f"student={TIMM % 'map'}",)},
            (
                Claim(SUMMARY, "mean of the map", "class token", "AM-RADIO, table 6: pooling improves the summary loss"),
                Claim(MAPS, "class token", "mean of the map", "AM-RADIO, table 6: pooling hurts the feature loss"),
            ),
        ),
        "sizes": Group(
            "One student size or two?",
            {"recipe": (), "64 and 96 px": (f"{PARTITION}.image_sizes=[64, 96]",)},
            (
                Claim(MAPS_LARGE, "64 and 96 px", "recipe", "RADIOv2.5, finding 2: two sizes with every teacher are enough for others"),
                Claim(WORST, "64 and 96 px", "recipe", "RADIOv2.5, figure 5"),
            ),
        ),
        "shift": Group(
            "Do independent shifts by whole patches (the shift-equivariant loss) help?",
            {"recipe": (), "shift of a patch": (f"{PARTITION}.shift=1",)},
            (
                Claim(MIOU, "shift of a patch", "recipe", "C-RADIOv4: fixed patterns of teachers are not copied; no number for it alone"),
                Claim(KNN, "shift of a patch", "recipe", "C-RADIOv4, as above"),
            ),
        ),
        "mosaic": Group(
            "A mosaic, or each image enlarged, for a teacher of one size larger than the student's? (Student at 32 and 64 px, SAM at 64.)",
            {
                "enlarged": (f"{PARTITION}.image_sizes=[32, 64]",),
                "mosaic": (f"{PARTITION}.image_sizes=[32, 64]", f"{PARTITION}.mosaic=[sam]"),
            },
            (
                Claim(CLICK, "mosaic", "enlarged", "RADIOv2.5, finding 3: cheaper and better than interpolating"),
                Claim(MAPS_SMALL, "mosaic", "enlarged", "RADIOv2.5, finding 3"),
            ),
        ),
        "modes": Group(
            "Does a teacher that is seen at one size only make the student switch modes between sizes? (Three times the steps.)",
            {
                SPLIT: (f"stages=[{{steps: {3 * steps}, partitions: [{{{LOW}, teachers: [clip, dino]}}, {{{HIGH}, teachers: [sam]}}]}}]",),
                TOGETHER: (f"stages=[{{steps: {3 * steps}, partitions: [{{{LOW}}}, {{{HIGH}, image_sizes: [{DINO_AT_64 % 128}]}}]}}]",),
            },
            (Claim(MODES, TOGETHER, SPLIT, "RADIOv2.5, finding 2 and figure 5"),),
            by_size=True,
        ),
    }


def measures(results: Mapping[str, Mapping]) -> dict[str, float]:
    """The numbers of the table out of those of `amradio evaluate`: shares in %, cosines as they are; those that were measured."""

    def value(name: str, row: str, metric: str) -> float | None:
        return results[name]["rows"].get(row, {}).get(metric) if name in results else None  # no head, no masks

    by_size = results["agreement"]["details"]["by_size"]
    maps = {(head, size): found["spatial_standardized_cosine"] for head, sizes in by_size.items() for size, found in sizes.items()}
    at = {size: statistics.mean(cosine for (_, s), cosine in maps.items() if s == size) for size in ("32", "64", "128")}
    numbers = {
        ZERO_SHOT: value("zero-shot", "student/clip", "top1"),
        KNN: value("k-NN", "student", "k20"),
        MIOU: value("segmentation", "student", "mean_iou"),
        CLICK: value("masks", "student/sam", "point"),
        SUMMARY: by_size["student/clip"]["64"]["summary_standardized_cosine"],
        MAPS: at["64"],
        MAPS_SMALL: at["32"],
        MAPS_LARGE: at["128"],
        WORST: min(cosine for (_, size), cosine in maps.items() if int(size) >= 64),
        MODES: min(min(pair) / max(pair) for pair in ((maps[head, "32"], maps[head, "128"]) for head in by_size)),
    }
    known = {name: number for name, number in numbers.items() if number is not None}
    return known | {f"{head} {size}": cosine for (head, size), cosine in maps.items()}


def runs(steps: int, seeds: Sequence[int], chosen: Sequence[str]) -> Iterator[tuple[int, str, str, Sequence[str]]]:
    """(seed, group, variant, words), seeds outermost; the unchanged recipe first, once."""
    every = groups(steps)
    for seed in seeds:
        yield seed, "recipe", "recipe", ()
        for name in chosen:
            for variant, words in every[name].variants.items():
                if words:
                    yield seed, name, variant, words


def measured(folder: Path, steps: int, seed: int, words: Sequence[str], suite: Path) -> dict[str, float]:
    """Distils and evaluates, unless that was done, and returns the numbers: those of `MEASURES` and, by `head size`, the cosine of maps."""
    file = folder / "measured.json"
    if not file.is_file():
        own = (f"seed={seed}", f"data.train.seed={100 + seed}", f"out={folder}")
        distill(Recipe.load("quickstart", *BASE, f"stages.0.steps={steps}", *own, *words))
        evaluate(folder, str(without_missing_heads(suite, words)), json_file=file)
    return measures(json.loads(file.read_text(encoding="utf-8"))["results"])


def without_missing_heads(suite: Path, words: Sequence[str]) -> Path:
    """The evaluations that a student without SAM's head can take; a file beside the other."""
    if "teachers.sam=null" not in words:
        return suite
    parts = EVALUATIONS.split("  masks:\n")
    other = suite.with_name("evaluations_without_sam.yaml")
    other.write_text(parts[0] + "  agreement:\n" + parts[1].split("  agreement:\n")[1], encoding="utf-8")
    return other


def verdict(better: Sequence[float], worse: Sequence[float], spread: float) -> str:
    """Of paired seeds. spread: of the unchanged recipe, in the same measure."""
    gap = statistics.mean(a - b for a, b in zip(better, worse, strict=True))
    if abs(gap) <= spread:
        return "within the spread"
    return "reproduced" if gap > 0 else "not reproduced"


Table = dict[str, dict[str, list[dict[str, float]]]]
"""Numbers by group, variant and seed; the unchanged recipe is the group and variant `recipe`."""


def of_group(table: Table, name: str, variants: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """The variants of a group that were measured with every seed, the unchanged recipe among them."""
    base = table["recipe"]["recipe"]
    found = {variant: base if variant == "recipe" else table.get(name, {}).get(variant, []) for variant in ("recipe", *variants)}
    return {variant: numbers for variant, numbers in found.items() if len(numbers) == len(base)}


def claims(table: Table, name: str, group: Group) -> Iterator[dict[str, Any]]:
    """Each claim with the gap that was measured, the recipe's spread in that measure, and the verdict."""
    found = of_group(table, name, tuple(group.variants))
    for claim in group.claims:
        stated = claim._asdict()
        if claim.better not in found or claim.worse not in found:
            yield stated | {"gap": None, "spread": None, "verdict": "not run"}
            continue
        better, worse, base = ([run[claim.measure] for run in found[variant]] for variant in (claim.better, claim.worse, "recipe"))
        spread = statistics.stdev(base) if len(base) > 1 else float("inf")
        gap = statistics.mean(better) - statistics.mean(worse)
        yield stated | {"gap": gap, "spread": spread, "verdict": verdict(better, worse, spread)}


def report(table: Table, steps: int) -> dict[str, dict[str, Any]]:
    """By group that was run: its question, the values of each seed by variant and measure, and its claims; the cosine of maps by variant,
    head and size where the group asks for it."""
    groups_run: dict[str, dict[str, Any]] = {}
    for name, group in groups(steps).items():
        found = of_group(table, name, tuple(group.variants))
        if len(found) < 2:
            continue
        shown = {*ALWAYS, *(claim.measure for claim in group.claims)}
        measured_here = [m for m in MEASURES if m in shown and any(m in run for numbers in found.values() for run in numbers)]
        rows = {v: {m: [run[m] for run in numbers if m in run] for m in measured_here} for v, numbers in found.items()}
        groups_run[name] = {"question": group.question, "rows": rows, "claims": list(claims(table, name, group))}
        if group.by_size:
            groups_run[name]["by_size"] = {variant: over_sizes(numbers) for variant, numbers in found.items()}
    return groups_run


def over_sizes(numbers: Sequence[Mapping[str, float]]) -> dict[str, dict[str, list[float]]]:
    """{head: {size in px: the cosine of its maps in each run}}."""
    cosines: dict[str, dict[str, list[float]]] = {}
    for name in (name for name in numbers[0] if name not in MEASURES):
        head, size = name.split()
        cosines.setdefault(head, {})[size] = [run[name] for run in numbers]
    return cosines


def draw(groups_run: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """A picture a group, with a panel for each measure that a claim names; where sizes are compared another with a panel for each head."""
    for name, group in groups_run.items():
        named = [m for m in MEASURES if any(claim["measure"] == m for claim in group["claims"])]
        panels = {m: [Row(variant, cells[m]) for variant, cells in group["rows"].items() if cells.get(m)] for m in named}
        draw_rows(panels, folder / f"ablation_{name}.png")
        if "by_size" in group:
            heads = list(group["by_size"]["recipe"])
            by_size = {
                f"map of {head}, cosine": [
                    Row(f"{variant}, {size} px", values)
                    for variant, cosines in group["by_size"].items()
                    for size, values in cosines[head].items()
                ]
                for head in heads
            }
            draw_rows(by_size, folder / f"ablation_{name}_by_size.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "ablations.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures of groups")
    parser.add_argument("--steps", type=int, default=400, help="of each run; 0 writes up what is there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", choices=list(groups(1)), default=list(groups(1)))
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    suite = given.runs / "evaluations.yaml"
    suite.write_text(EVALUATIONS, encoding="utf-8")
    settled = given.runs / "steps.json"
    steps = json.loads(settled.read_text(encoding="utf-8")) if settled.is_file() else given.steps
    if given.steps not in (0, steps):
        parser.error(f"--steps: the runs in {given.runs} have {steps} steps; take as many, or another folder")
    settled.write_text(json.dumps(steps), encoding="utf-8")
    table: Table = {}
    for seed, group, variant, words in runs(steps, given.seeds, given.groups):
        folder = given.runs / f"{group}_{variant}_{seed}".replace(" ", "_").replace("+", "with")
        if given.steps or (folder / "measured.json").is_file():
            numbers = measured(folder, steps, seed, words, suite)
            table.setdefault(group, {}).setdefault(variant, []).append(numbers)
            print(f"seed {seed} {group}: {variant}  " + "  ".join(f"{m} {numbers[m]:.3g}" for m in MEASURES if m in numbers), flush=True)
    groups_run = report(table, steps)
    content = {"steps": steps, "seeds": given.seeds, "groups": groups_run, "environment": environment()}
    write_aside(given.json, (json.dumps(content, indent=1) + "\n").encode())
    draw(groups_run, given.pictures)


if __name__ == "__main__":
    main()
