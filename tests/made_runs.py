"""Run folders that are written by hand, so that reports are tested without training."""

import json
from pathlib import Path
from typing import Any

from amradio.config import to_yaml
from amradio.recipe import Recipe
from amradio.run_folder import RunFolder

MEASURES = {"cosine": 0.7, "constant_cosine": 0.2, "norm_ratio": 0.9}


def make_run(recipe: Recipe, path: Path, score: float = 80.0, cosine: float = 0.8) -> RunFolder:
    """A run with three lines of metrics, held-out agreement and one evaluation. score: top-1 of the student in %."""
    recipe = recipe.model_copy(update={"out": str(path)})
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write("config.yaml", to_yaml(recipe))
    folder.write("environment.json", json.dumps({"time": "2026-01-01T00:00:00+00:00", "libraries": {"torch": "2.8.0"}, "cores": 2}))
    folder.write("data.json", json.dumps({"data.train": {"source": "24 images in <pictures>", "fingerprint": "fedcba9876543210"}}))
    teachers = {"clip": {"source": "a/clip", "sizes": [[32, 48]]}}
    manifest = {"batches": 2, "target_spaces": {"summary": "per_channel"}, "teachers": teachers}
    folder.write("calibration/stage_0/manifest.json", json.dumps(manifest))
    lines: list[dict[str, Any]] = [
        {
            "step": 6,
            "loss": 2.0,
            "clip/summary/standardized_cosine": 0.4,
            "learning_rate": 1e-3,
            "images_per_second": 50.0,
            "data_share": 0.1,
        },
        {
            "step": 12,
            "loss": 1.0,
            "clip/summary/standardized_cosine": 0.6,
            "learning_rate": 1e-4,
            "images_per_second": 60.0,
            "data_share": 0.2,
        },
        {"step": 12, "val/clip/summary/standardized_cosine": cosine},
    ]
    folder.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    folder.write("train.log", "data: 24 images in <pictures>\nwarning: few images & <b>many</b> words\n")
    folder.write("evaluations/step_000000012/held_out.json", json.dumps({"clip/summary": {"standardized_cosine": cosine, **MEASURES}}))
    folder.write("evaluations/step_000000012/zero-shot.json", json.dumps({"step": 12, **zero_shot(score)}))
    return folder


def zero_shot(score: float) -> dict[str, Any]:
    """A result as JSON: the student below, at or above a floor of 25 %."""
    return {
        "metrics": [
            {"name": "top1", "title": "top-1", "unit": "%", "better": "higher", "headline": True},
            {"name": "hidden", "title": "hidden", "unit": "%", "better": "higher", "headline": False},
        ],
        "rows": {"student/clip": {"top1": score, "hidden": 1.0}, "teacher/clip": {"top1": 90.0, "hidden": 2.0}},
        "counts": {"images": 100, "classes": 4, "broken": 0},
        "fingerprint": "0123456789abcdef",
        "floors": {"top1": 25.0},
        "row_floors": {},
        "floor": "always the most frequent class",
        "inputs": {"student/clip": {"px": "32"}, "teacher/clip": {"px": "32"}},
        "notes": [],
        "details": {},
        "settings": {},
        "seconds": 1.5,
        "below_floor": {"top1": ["student/clip"]} if score <= 25 else {},
    }
