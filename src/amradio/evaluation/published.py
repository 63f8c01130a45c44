"""Numbers that were published for other models, and how measured ones compare with them."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from .base import Result

SuiteName = Literal["paper", "dense", "detection", "vlm", "mieb", "clip"]


class Published(NamedTuple):
    """Numbers of one model, in %."""

    model: str
    source: str
    values: Mapping[str, float]
    """By evaluation."""


HEADLINES = {"knn": "k20", "zero_shot": "top1", "linear_segmentation": "mean_iou", "promptable_segmentation": "box"} | {
    "depth": "mean_delta",
    "normals": "mean_recall",
    "multiview_correspondence": "recall",
    "keypoint_correspondence": "pck",
    "coco_detection": "box_ap",
    "gqa": "accuracy",
    "pope": "f1",
    "textvqa": "accuracy",
    "vqav2": "accuracy",
}
"""Which metric of a type the published numbers are of."""
TABLE_1, README, TABLE_13 = "arXiv 2312.06709, table 1", "README of NVlabs/RADIO", "arXiv 2410.01680, table 13"
V4_TABLE_4 = "arXiv 2601.17237, table 4"
PAPER = ("zero-shot", "k-NN", "ADE20K", "VOC", "SAM-COCO")
PROBE3D = ("depth", "normals", "multi-view", "SPair-71k")
TEST_DEV = "VQAv2"
"""Published on test-dev, whose answers are not public."""


def _row(model: str, source: str, columns: Sequence[str], *values: float) -> Published:
    return Published(model, source, dict(zip(columns, values, strict=True)))


def _answers(model: str, source: str, gqa: float, pope: float, textvqa: float, vqav2: float) -> tuple[Published, Published]:
    """Of LLaVA-1.5 with this tower; VQAv2's source has its split."""
    return (
        Published(model, source, {"GQA": gqa, "POPE": pope, "TextVQA": textvqa}),
        Published(model, f"{source}, test-dev", {TEST_DEV: vqav2}),
    )


PUBLISHED: Mapping[SuiteName, Sequence[Published]] = {
    "paper": (
        _row("RADIO ViT-H/16", TABLE_1, PAPER, 82.93, 86.06, 51.34, 84.71, 76.23),
        _row("E-RADIO-L", TABLE_1, PAPER, 80.73, 83.89, 48.22, 81.64, 76.31),
        _row("RADIOv2.5-B", README, PAPER, 74.57, 81.89, 48.94, 84.35, 73.87),
        _row("RADIOv2.5-L", README, PAPER, 81.01, 84.68, 51.47, 85.49, 75.06),
        _row("RADIOv2.5-H", README, PAPER, 82.51, 85.81, 51.58, 85.97, 76.14),
    ),
    "dense": (
        _row("PHI-S ViT-B/16", TABLE_13, PROBE3D, 81.89, 56.79, 54.49, 43.92),
        _row("RADIOv2.5-H", V4_TABLE_4, PROBE3D, 85.69, 62.46, 60.89, 56.24),
        _row("C-RADIOv4-SO400M", V4_TABLE_4, PROBE3D, 85.29, 61.91, 62.44, 60.01),
        _row("C-RADIOv4-H", V4_TABLE_4, PROBE3D, 85.55, 61.70, 63.44, 60.57),
    ),
    "detection": (),
    "vlm": (
        *_answers("RADIO ViT-H/16, 432 px", TABLE_1, 63.01, 86.20, 56.32, 79.28),
        *_answers("E-RADIO-L, 512 px", TABLE_1, 61.70, 85.07, 51.47, 76.73),
        *_answers("RADIOv2.5-B, 768 px", README, 63.31, 87.54, 56.93, 79.22),
        *_answers("RADIOv2.5-L, 768 px", README, 64.13, 87.68, 61.93, 81.02),
        *_answers("RADIOv2.5-H, 768 px", README, 65.03, 87.36, 62.39, 81.56),
    ),
    "mieb": (),
    "clip": (),
}
"""No number of detection is of this detector and schedule, so none stands beside it; mieb and clip have no table of these models."""


class Comparison(NamedTuple):
    """A measured number beside a published one, in %."""

    evaluation: str
    name: str
    """The row that was measured: the student or the vision-language model, and where only the student's heads were, the best of them."""
    measured: float
    published: Published
    value: float


def comparison(name: SuiteName, results: Mapping[str, Result]) -> list[Comparison]:
    """Every published number of which one was measured, by evaluation."""
    rows: list[Comparison] = []
    for evaluation, result in results.items():
        metric = HEADLINES.get(str(result.settings.get("type")), "")
        measured = {
            row: values[metric] for row, values in result.rows.items() if (row == "vlm" or row.startswith("student")) and metric in values
        }
        if measured:
            best = next((row for row in ("student", "vlm") if row in measured), None) or max(measured, key=lambda row: measured[row])
            with_number = [published for published in PUBLISHED[name] if evaluation in published.values]
            rows += [Comparison(evaluation, best, measured[best], entry, entry.values[evaluation]) for entry in with_number]
    return rows
