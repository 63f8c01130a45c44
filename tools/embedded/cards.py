"""The card of an embedded teacher: what it is, how it was made, what it can do and what it cannot."""

import json
from pathlib import Path

from amradio.data.scenes import CLASS_NAMES

from .measure import knn_of, pixels
from .pictures import Pictures

WHAT = {
    "clip": "a small `CLIPModel`, trained contrastively on pictures and their captions",
    "dino": "a small `Dinov2WithRegistersModel`, trained by self-distillation, with texture statistics of the picture to foretell"
    " beside it, without any label or caption",
    "sam": "a small `SamModel`, trained to draw the mask of whatever a click or a box points at",
}
WEAKNESS = {
    "clip": "It draws no masks, and its patches do not follow outlines: it was asked only for one vector a picture.",
    "dino": "It knows no words and draws no masks. Shapes and sizes it hardly groups.",
    "sam": "It does not know what an object is: it has no summary, no words, and its features, averaged, tell classes apart poorly.",
}
SCORES = {
    "zero_shot": "zero-shot accuracy, prompts averaged",
    "knn_20": "20-NN accuracy of the summary (for SAM: of its averaged embeddings)",
    "one_click_iou": "mask IoU from one click in the middle of an object, objects of 64 px or more",
    "box_iou": "mask IoU from a box round it",
    "likeness_iou": "mask IoU by likeness of patches to the clicked one, the best single threshold",
    "raw_pixels_knn_20": "for comparison: 20-NN accuracy of raw pixels",
}


def read(folder: Path) -> dict:
    """How the model in `folder` was made, as `write` left it; empty where there is none."""
    path = folder / "scores.json"
    return json.loads(path.read_text())["made"] if path.exists() else {}


def write(folder: Path, name: str, made: dict, scores: dict[str, float], held_out: tuple[Pictures, Pictures] | None) -> None:
    """Writes README.md and scores.json beside the model."""
    scores = {key: round(value, 4) for key, value in scores.items()}
    if held_out:
        scores["raw_pixels_knn_20"] = round(knn_of(pixels, *held_out), 4)
    (folder / "scores.json").write_text(json.dumps({"teacher": name, "made": made, "scores": scores}, indent=2) + "\n")
    rows = "\n".join(f"| {SCORES[key]} | {100 * value:.1f} % |" for key, value in scores.items())
    how = f"`{made.get('command', 'tools/make_embedded_teachers.py')}`\n(seed {made.get('seed')}, {made.get('steps')} steps, "
    how += f"{made.get('minutes')} minutes, {made.get('pictures')} pictures)."
    how += f" {made['note']}" if "note" in made else ""
    where = (
        f"{len(held_out[1].images)} held-out scenes of another seed, {len(CLASS_NAMES)} classes" if held_out else "not measured: no scenes"
    )
    parts = [
        f"# {name}: an embedded teacher",
        f"This is {WHAT[name]}, in transformers' own format. It is a stand-in for the large model of its family, made so that"
        " everything runs offline and on a CPU; it knows the procedural world of `amradio.data.scenes` and nothing else.",
        "## How it was made",
        how,
        f"## What it can do ({where})",
        f"| measure | score |\n|---|---|\n{rows}" if rows else "Not measured.",
        "## What it cannot",
        WEAKNESS[name],
        "## Licence",
        "Apache-2.0, as the rest of the project. No third-party picture, text or weight went into it.",
    ]
    if not held_out:
        parts[1] = f"This is {WHAT[name]}, in transformers' own format, trained on photographs of the user's own."
        parts[-1] = "That of the pictures it was trained on permitting, as its maker says."
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")
