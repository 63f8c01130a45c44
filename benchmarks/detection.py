#!/usr/bin/env python
"""Which part of a student a detector should train: none, LoRA or all, beside a backbone of random weights; on scenes and photographs.

    python benchmarks/detection.py embedded/quickstart --photographs FOLDER --out benchmarks/results/detection.json

Faster R-CNN in small (64 channels), boxes alone. scenes: generated, 512 to learn from and 128 to measure. photographs: a folder with
`instances.json` and `images` in COCO's format, the first 300 by id to learn from and the others to measure. That is tiny: it shows that the
path works and cannot rank backbones. Each row is trained `--seeds` times; the JSON has all numbers, the table means and spreads (highest
less lowest). The same command again trains what the JSON lacks.

What it should show, written before it was run in full: on scenes, which the student knows, trained above LoRA above frozen, and frozen far
above a backbone of random weights; on photographs, of which the student has seen none, all rows below 5 AP50 and no order among them.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from stored_runs import StoredRuns

import amradio
from amradio.commands.detect import train_detector
from amradio.console import note
from amradio.downstream.detection.settings import DetectionRecipe
from amradio.formats.model_folder import write_folder

SMALL = (
    "detector={type: faster_rcnn, channels: 64, box_convs: 0, rpn_convs: 1, box_dim: 128, num_proposals: 200, num_samples: 64, "
    "anchor_size: %d}"
)
ROWS = {
    "frozen": ("student", "frozen"),
    "LoRA": ("student", "lora"),
    "trained": ("student", "all optimizer.rates.body=0.1"),
    "random, frozen": ("random", "frozen"),
}
NUM_TRAIN = 300


def random_student(model: amradio.Model, folder: Path) -> Path:
    """A model folder with the architecture of `model` and random weights."""
    torch.manual_seed(0)
    config = model.config.without_start().model_copy(update={"heads": {}, "training": None})
    write_folder(folder, config, config.build(), {"step": 1, "num_steps": 1, "data": "nothing: random weights"})
    return folder


def parts_of(photographs: Path, folder: Path) -> list[str]:
    """Words for `data`: the first images by id to learn from, the others to measure."""
    content = json.loads((photographs / "instances.json").read_text())
    images = sorted(content["images"], key=lambda image: image["id"])
    words = []
    for name, part in (("train", images[:NUM_TRAIN]), ("val", images[NUM_TRAIN:])):
        ids = {image["id"] for image in part}
        chosen = [entry for entry in content["annotations"] if entry["image_id"] in ids]
        file = folder / f"{name}.json"
        file.write_text(json.dumps({"images": part, "annotations": chosen, "categories": content["categories"]}))
        words.append(f"data.{name}={{type: coco_instances, annotations: {file}, images: {photographs / 'images'}}}")
    return words


def data_sets(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Words of a recipe by the name of the data."""
    scenes = ["data.train={type: scenes, length: 512, seed: 3}", "data.val={type: scenes, length: 128, seed: 4}"]
    common = [
        "schedule.batch_size=8",
        "optimizer.learning_rate=1e-3",
        "data.num_workers=0",
        "engine.log_every=100",
    ]
    sets = {"scenes": [*scenes, *common, SMALL % 8, "schedule.image_size=64", f"schedule.epochs={options.steps * 8 / 512}"]}
    if options.photographs is not None:
        epochs = f"schedule.epochs={options.photograph_steps * 8 / NUM_TRAIN}"
        photographs = parts_of(options.photographs, folder)
        sets["photographs"] = [*photographs, *common, SMALL % 16, f"schedule.image_size={options.image_size}", epochs]
    return sets


def main() -> None:
    """Trains every row on every data set and writes the numbers after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or folder of a model")
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--image-size", type=int, default=192, help="px of the photographs' canvas")
    parser.add_argument("--steps", type=int, default=800, help="of 8 scenes")
    parser.add_argument("--photograph-steps", type=int, default=300, help="of 8 photographs")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {"steps": options.steps, "photograph_steps": options.photograph_steps, "image_size": options.image_size}
    stored = StoredRuns(options.out, {"model": options.model} | chosen)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        students = {"student": options.model, "random": random_student(amradio.load(options.model), folder / "random")}
        for name, words in data_sets(options, folder).items():
            for seed in range(options.seeds):
                for row, (weights, backbone) in ROWS.items():
                    if stored.has(data=name, row=row, seed=seed):
                        continue
                    start, out = time.perf_counter(), folder / f"{name}_{row}_{seed}".replace(", ", "_")
                    chosen = (
                        f"model={students[weights]}",
                        *f"backbone={backbone}".split(),
                        f"seed={seed}",
                        "engine.device=cpu",
                        "engine.threads=1",
                    )
                    train_detector(DetectionRecipe.load(*words, *chosen, "engine.precision=float32", f"out={out}"))
                    scores = json.loads(next((out / "evaluations").glob("step_*/detection.json")).read_text())
                    stored.add({"data": name, "row": row, "seed": seed, "seconds": time.perf_counter() - start} | scores)
                    note(f"{name}, {row}, seed {seed}: AP {scores['box_ap']:.1f}, AP50 {scores['box_ap50']:.1f}")
    print("| data | backbone | AP | spread | AP50 | spread | s a run |\n|---|---|--:|--:|--:|--:|--:|")
    for name, row in dict.fromkeys((run["data"], run["row"]) for run in stored.runs):
        of_row = [run for run in stored.runs if (run["data"], run["row"]) == (name, row)]
        cells = []
        for metric in ("box_ap", "box_ap50"):
            values = [run[metric] for run in of_row]
            cells += [f"{statistics.mean(values):.1f}", f"{max(values) - min(values):.1f}"]
        print(f"| {name} | {row} | {' | '.join(cells)} | {statistics.mean(run['seconds'] for run in of_row):.0f} |")


if __name__ == "__main__":
    main()
