#!/usr/bin/env python
"""Writes the tables of numbers in README.md and docs/ from the committed files in benchmarks/results.

    python tools/make_numbers.py            # rewrites what stands between `<!-- numbers: NAME -->` and `<!-- /numbers -->`
    python tools/make_numbers.py --check    # says whether they are up to date

A number of these documents is changed by a new result, never by hand.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from written_documents import main

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n).*?(<!-- /numbers -->)", re.S)


def documents() -> list[Path]:
    """Those that may have such blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 0) -> str:
    """A table of Markdown: the first column and the last `texts` ones left, the others right."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1 - texts), *["---"] * texts], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(values: Mapping[str, float], key: str, form: str = ".1f") -> str:
    """A number, or `-` where it was not measured."""
    return format(values[key], form) if key in values else "-"


def quickstart() -> str:
    """The evaluation of the quickstart's student beside its teachers, and what a single teacher's row has to be compared with."""
    results = read("quickstart")["results"]
    columns = {
        "M parameters": ("throughput", "parameters_m", ".2f"),
        "zero-shot %": ("zero-shot", "top1", ".1f"),
        "20-NN %": ("k-NN", "k20", ".1f"),
        "segmentation mIoU %": ("segmentation", "mean_iou", ".1f"),
        "mask of one click, IoU %": ("masks", "point", ".1f"),
        "mask of a box, IoU %": ("masks", "box", ".1f"),
    }
    names = sorted(results["k-NN"]["rows"], key=lambda name: (name.startswith("teacher/"), "/" in name, name))
    rows = [[f"`{name}`", *(cell(results[e]["rows"].get(name, {}), key, form) for e, key, form in columns.values())] for name in names]
    floors = ["floor", *(cell(results[evaluation]["floors"], key, form) for evaluation, key, form in columns.values())]
    return table(["model", *columns], [*rows, floors])


def quickstart_agreement() -> str:
    """How the heads of the quickstart's student agree with their teachers on held-out scenes."""
    found = read("quickstart")["results"]["agreement"]
    keys = [f"{kind}_{measure}" for kind in ("summary", "spatial") for measure in ("standardized_cosine", "norm_ratio")]
    heads = [key.replace("spatial", "map").replace("_", " ") for key in keys]
    return table(["head", *heads], [[f"`{name}`", *(cell(row, key, ".3f") for key in keys)] for name, row in found["rows"].items()])


def quickstart_cost() -> str:
    """Parameters and multiplications of the student with all its heads, and of its teachers together."""
    rows = read("quickstart")["results"]["throughput"]["rows"]
    one = rows["student"]
    heads = [row for name, row in rows.items() if name.startswith("student/")]
    teachers = [row for name, row in rows.items() if name.startswith("teacher/")]

    def sums(key: str) -> tuple[float, float]:
        return one[key] + sum(row[key] - one[key] for row in heads), sum(row[key] for row in teachers)

    (million, of_teachers), (gmacs, gmacs_of_teachers) = sums("parameters_m"), sums("gmacs")
    return (
        f"The student with all its heads has {million:.2f} M parameters and takes {gmacs:.3f} GMACs an image; the {len(teachers)} "
        f"teachers\ntogether have {of_teachers:.2f} M and take {gmacs_of_teachers:.3f}."
    )


def recipe_cost() -> str:
    """What a step of a recipe costs, of every `recipe_cost_*.json`."""
    rows = []
    for path in sorted(RESULTS.glob("recipe_cost_*.json")):
        found = read(path.stem)
        gpus = found["environment"]["gpus"]
        rows.append(
            [
                f"`{found['recipe']}`",
                f"{len(gpus)} x {gpus[0]}",
                f"{found['seconds_a_step']:.2f} s",
                f"{found['images_per_second']:,.0f}",
                f"{found['memory_gib']:.1f} GiB",
                f"{found['shares']['teachers_share']:.0%}",
                f"{found['hours']:.1f} h",
                f"`{path.name}`",
            ]
        )
    return table(["recipe", "GPU", "a step", "images/s", "memory", "of which teachers", "in all", "source"], rows)


def students_scenes() -> str:
    """Students of several architectures, each trained as long as the others."""
    columns = {
        "M parameters": ("parameters_m", ".2f"),
        "GMACs": ("gmacs", ".3f"),
        "loss": ("fd_loss", ".2f"),
        "20-NN %": ("k-NN/k20", ".1f"),
        "mIoU %": ("segmentation/mean_iou", ".1f"),
        "zero-shot %": ("zero-shot/top1", ".1f"),
    }
    rows = []
    for name, row in read("students_scenes")["rows"].items():
        scores = {key: value for found in row["scores"]["scores"].values() for key, value in found.items()}  # zero-shot is of the head
        values = row["cost"] | row.get("distillation", {}) | scores
        rows.append([f"`{name}`", *(cell(values, key, form) for key, form in columns.values())])
    return table(["student", *columns], rows)


def photographs() -> str:
    """Students of a real teacher on real photographs, that teacher, and the floors."""
    columns = {
        "5-NN %": "k-NN/k5",
        "20-NN %": "k-NN/k20",
        "probe top-1 %": "probe/top1",
        "street scenes mIoU %": "street scenes/mean_iou",
    }
    rows = []
    for name, row in read("photographs")["rows"].items():
        scores = next(iter(row["scores"]["scores"].values()))  # the first is the backbone's, or the teacher's own
        steps = row["distillation"]["steps"] if "distillation" in row else "-"
        rows.append([f"`{name}`", f"{steps:,}" if isinstance(steps, int) else steps, *(cell(scores, key) for key in columns.values())])
    return table(["row", "steps", *columns], sorted(rows, key=lambda row: (row[0].startswith(("`teacher", "`floor")), row[0])))


def detection() -> str:
    """Detectors on a student that is frozen, has low-rank additions or is trained, and on a backbone of random weights."""
    runs = read("detection")["runs"]
    rows = []
    for data, backbone in dict.fromkeys((run["data"], run["row"]) for run in runs):
        alike = [run for run in runs if (run["data"], run["row"]) == (data, backbone)]
        cells = []
        for metric in ("box_ap", "box_ap50"):
            values = [run[metric] for run in alike]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        rows.append([data, backbone, str(len(alike)), *cells])
    return table(["data", "backbone", "seeds", "AP", "AP50"], rows)


def vlm() -> str:
    """What a language model answers with a student, with raw pixels and without an image: % right, standard error over questions."""
    content = read("vlm")
    rows = content["accuracy"]
    kinds = list(next(iter(rows.values())))
    return table(
        ["row", *(f"{kind} %" for kind in kinds)],
        [[row, *(f"{cells[kind]['mean']:.0f} ± {cells[kind]['standard_error']:.0f}" for kind in kinds)] for row, cells in rows.items()],
    )


def ablation(name: str) -> str:
    """The variants of a group of `benchmarks/ablations.py`, and what papers say of them beside what was measured."""
    group = read("ablations")["groups"][name]
    measures = list(group["rows"]["recipe"])
    rows = [[variant, *(spread(cells.get(measure, [])) for measure in measures)] for variant, cells in group["rows"].items()]
    heads = ["claim", "gap", "spread of the recipe", "verdict", "source"]
    return f"{table(['variant', *measures], rows)}\n\n{table(heads, [claim(stated) for stated in group['claims']], texts=2)}"


def ablation_by_size(name: str) -> str:
    """How the maps of each head agree with their teacher at every size, for each variant of a group."""
    by_size = read("ablations")["groups"][name]["by_size"]
    sizes = list(next(iter(by_size["recipe"].values())))
    rows = [[f"{v}, `{head}`", *(spread(cosines[head][size]) for size in sizes)] for v, cosines in by_size.items() for head in cosines]
    return table(["variant and head", *(f"{size} px" for size in sizes)], rows)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation over seeds."""
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.1g}" if len(values) > 1 else "-"


def claim(stated: Mapping[str, Any]) -> list[str]:
    """The row of a claim."""
    numbers = ["", ""] if stated["gap"] is None else [f"{stated['gap']:+.3g}", f"{stated['spread']:.2g}"]
    return [f"{stated['better']} above {stated['worse']}: {stated['measure']}", *numbers, stated["verdict"], stated["source"]]


ABLATIONS = tuple(read("ablations")["groups"]) if (RESULTS / "ablations.json").is_file() else ()
"""Groups of variants that were run."""
PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part
    for part in (quickstart, quickstart_agreement, quickstart_cost, recipe_cost, students_scenes, photographs, detection, vlm)
} | {f"ablation_{name}": partial(ablation, name) for name in ABLATIONS}
PARTS |= {
    f"ablation_{name}_by_size": partial(ablation_by_size, name) for name in ABLATIONS if "by_size" in read("ablations")["groups"][name]
}


def filled(text: str) -> str:
    """A document with its blocks as they should be. Raises KeyError for a block of an unknown name."""
    return BLOCK.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


def outdated() -> dict[Path, str]:
    """{document: what it should be} of those whose numbers are not those of the result files."""
    return {path: new for path, new in _filled_documents() if new != path.read_text(encoding="utf-8")}


def _filled_documents() -> Iterator[tuple[Path, str]]:
    for path in documents():
        yield path, filled(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main(outdated, "make_numbers.py", __doc__))
