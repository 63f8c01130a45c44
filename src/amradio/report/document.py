"""The page of one run, or of several side by side."""

from collections.abc import Sequence

from PIL import Image

from ..config import to_yaml
from ..distillation.metrics import HEADLINE
from ..drawing.figures import figure
from ..errors import UserError
from ..evaluation.stored import counted
from ..files import read_text
from ..formats.model_folder import read_config
from ..image_input import one_picture
from ..run_folder import Series
from .charts import line_chart
from .comparison import Row, changed_keys, final_rows
from .page import Cell, page, section, table, text
from .runs import Run

DETECTOR_LOSSES = ("objectness", "rpn_box", "class", "box", "mask")
"""Parts of the loss of a detector, as metrics.jsonl names them."""
PRECISIONS = ("_ap", "_ap50", "_ap75")
"""Endings of the names of its scores that are drawn."""


def build_page(runs: Sequence[Run]) -> str:
    """The HTML of a report: what was trained, curves, tables, pictures, data, environment, warnings and licences. Loads nothing else."""
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs compared"
    rows = final_rows(runs)
    return page(title, [_about(runs), _warnings(runs), _keys(runs), _curves(runs), _tables(runs, rows), *map(_of_run, runs)])


def _about(runs: Sequence[Run]) -> str:
    items = [f"<li><b>{text(run.name)}</b>: {text(run.about)}; {text(run.state)}</li>" for run in runs]
    return f"<ul>{''.join(items)}</ul>"


def _warnings(runs: Sequence[Run]) -> str:
    items = [f"<li>{text(run.name)}: {text(warning)}</li>" for run in runs for warning in run.folder.warnings()]
    return section("Warnings", f"<ul>{''.join(items)}</ul>" if items else "")


def _keys(runs: Sequence[Run]) -> str:
    keys = changed_keys(runs) if len(runs) > 1 else {}
    rows = [[key, *(str(value) for value in values)] for key, values in keys.items()]
    return section("Changed keys", table("Keys in which the recipes differ", ["key", *(run.name for run in runs)], rows))


def _curves(runs: Sequence[Run]) -> str:
    def of(ending: str, start: str = "") -> dict[str, Series]:
        return {
            (f"{run.name}: " if len(runs) > 1 else "") + (name.removesuffix(ending).strip("/").removeprefix("val/") or name): series
            for run in runs
            for name, series in run.metrics.items()
            if name.endswith(ending) and name.startswith(start) and (bool(start) or not name.startswith(("val/", "eval/")))
        }

    parts = "teacher and kind" if all(run.teachers for run in runs) else "part"
    charts = (
        line_chart("Loss of the step", "loss", {n: line for n, line in of("").items() if n.rpartition(": ")[2] == "loss"}),
        line_chart(
            f"Loss by {parts}", "loss", of("/loss") | {n: line for n, line in of("").items() if n.rpartition(": ")[2] in DETECTOR_LOSSES}
        ),
        line_chart("Agreement in training", "standardized cosine", of("/standardized_cosine")),
        line_chart("Agreement on held-out images", "standardized cosine", of("/standardized_cosine", "val/")),
        line_chart("Average precision on held-out images", "%", {n: line for n, line in of("", "val/").items() if n.endswith(PRECISIONS)}),
        line_chart("Learning rate", "rate", of("learning_rate")),
        line_chart("Speed", "images per second", of("images_per_second")),
        line_chart("Shares of time", "share of the interval", of("_share")),
    )
    drawn = "".join(charts)
    return section("Curves", f'<div class="grid">{drawn}</div>' if drawn else "")


def _tables(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    tables = []
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        headings = ["number", *(run.name for run in runs), "floor"]
        cells = [[row.name + (f" ({row.unit})" if row.unit else ""), *_values(row), _number(_floor(row))] for row in members]
        tables.append(f"<div><h3>{text(group)}</h3>{table(f'{group}: last numbers', headings, cells)}</div>")
    legend = '<p class="faint">* best run of its row; ! not better than the floor, which is what a trivial answer scores</p>'
    return section("Results", f'<div class="tables">{"".join(tables)}</div>' if len(runs) <= 2 else "".join(tables), legend)


def _by_size(run: Run) -> str:
    """Agreement with the teachers over the px of the student's view, of the evaluations that measured several."""
    rows: list[list[tuple[str, float | None] | str]] = []
    for name, (_, result) in run.latest().items():
        for model, by_size in result.get("details", {}).get("by_size", {}).items():
            measures = dict.fromkeys(measure for values in by_size.values() for measure in values if measure.endswith(HEADLINE))
            rows += [
                [name, f"{model} {measure.replace('_', ' ')}", (f"{px} px", float(px)), _number(values.get(measure))]
                for measure in measures
                for px, values in by_size.items()
            ]
    return table("Agreement over sizes of the image", ["evaluation", "head", "size", "cosine"], rows)


def _floor(row: Row) -> float | None:
    return next((floor for floor in row.floors if floor is not None), None)


def _number(value: float | None) -> tuple[str, float | None]:
    return ("-" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}", value)


def _values(row: Row) -> list[tuple[str, float | None]]:
    cells = []
    for number, value in enumerate(row.values):
        shown, _ = _number(value)
        best, below = number in row.best, number in row.below
        shown = f"{'*' if best else ''}{'!' if below else ''}{shown}"
        css = "bad" if below else "good" if best else ""
        cells.append((Cell(f'<span class="{css}">{shown}</span>') if css else shown, value))
    return cells


def _of_run(run: Run) -> str:
    pictures = []
    for file in run.folder.pictures():
        picture = Image.fromarray(one_picture(file).permute(1, 2, 0).numpy())
        pictures.append(figure(picture, f"{run.name}, {_CAPTIONS.get(file.stem.partition('_')[0], '')}{file.stem.replace('_', ' ')}"))
    environment = run.folder.environment()
    libraries = environment.get("libraries") or {}
    facts = {**environment, "libraries": ", ".join(f"{name} {version}" for name, version in libraries.items())} if environment else {}
    prints = [
        [name, str(result.get("fingerprint") or "-"), counted(result.get("counts", {}))] for name, (_, result) in run.latest().items()
    ]
    data = [[key, facts["source"], facts["fingerprint"]] for key, facts in run.folder.data().items()]
    return section(
        run.name,
        f'<div class="pictures">{"".join(pictures)}</div>' if pictures else "",
        _by_size(run),
        table("Licences of the teachers", ["head", "teacher", "licence"], _licences(run)),
        table(
            "Calibration: the statistics that targets are scaled with",
            ["stage", "teacher", "sizes", "from", "target space"],
            _calibration(run),
        ),
        table("Data of the training", ["key", "source", "fingerprint of the names"], data),
        table("Data of the evaluations", ["evaluation", "fingerprint", "counts"], prints),
        table("Environment", ["what", "value"], [[name, "none" if value in ([], None) else str(value)] for name, value in facts.items()]),
        f"<details><summary>Recipe</summary><pre>{text(_recipe(run))}</pre></details>",
    )


_CAPTIONS = {"held": "teacher and student in the same colours: "}


def _calibration(run: Run) -> list[list[str]]:
    rows = []
    for stage, manifest in run.folder.calibrations().items():
        spaces = ", ".join(f"{kind} {space}" for kind, space in manifest.get("target_spaces", {}).items())
        for name, teacher in manifest["teachers"].items():
            sizes = ", ".join(" x ".join(map(str, size)) for size in teacher["sizes"])
            rows.append([stage.replace("_", " "), f"{name}: {teacher['source']}", f"{sizes} px", f"{manifest['batches']} batches", spaces])
    return rows


def _recipe(run: Run) -> str:
    try:
        return to_yaml(run.folder.recipe())
    except UserError:  # of another version, or no distillation
        return read_text(run.folder.path / "config.yaml")


def _licences(run: Run) -> list[list[str]]:
    try:
        heads = read_config(run.folder.model).heads
    except (UserError, OSError):  # not written yet
        return []
    return [[name, *(str(head.teacher.get(key) or "not stated") for key in ("source", "licence"))] for name, head in heads.items()]
