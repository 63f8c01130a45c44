"""The speed of a training step, of the loader and of k-NN against another commit, on one machine with the same threads and inputs.

    python benchmarks/against_commit.py COMMIT [--rounds 5] [--json benchmarks/results/against_commit.json]

The other commit is checked out into a temporary worktree. Each measurement is a process of its own; the two trees take turns, and which
one begins alternates. What is compared is CPU seconds (user and system, with child processes), which other programs on the machine
disturb less than the clock on the wall. A ratio is the other commit's time over the present one's, so above 1 is faster than before;
the median of the rounds and their range are printed.

step    a run of `amradio distill` from the embedded teachers over JPEGs of 64 px: the time of a long run less that of a short one
loader  benchmarks/data.py of each tree: CPU time of an image without workers
k-NN    benchmarks/knn.py of each tree: 2,048 queries against 61,440 rows of 1,024
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from amradio.environment import environment

HERE = Path(__file__).resolve().parent.parent
STEPS = (20, 120)
RECIPE = """\
data: {{train: {{type: folder, path: {pictures}}}, val: {{type: folder, path: {pictures}}}, num_workers: 0}}
teachers:
  clip: {{type: embedded, name: clip, precision: float32}}
  dino: {{type: embedded, name: dino, summary_weight: 0, precision: float32}}
  sam: {{type: embedded, name: sam, summary_weight: 0, precision: float32}}
student: {{type: vit, dim: 144, num_heads: 3, mlp_dim: 288, depth: 4, patch_size: 8, max_image_size: 128}}
loss: {{summary: mse, spatial: mse}}
normalize: {{summary: per_channel, spatial: per_channel, batches: 4}}
evaluate: {{every: null}}
engine: {{device: cpu, precision: float32, log_every: 20, checkpoint_every: 1000}}
"""


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "-C", str(HERE), "worktree", "add", "--quiet", "--detach", str(other), options.commit], check=True)
        try:
            result = compare({"before": other, "now": HERE}, Path(folder), options)
        finally:
            subprocess.run(["git", "-C", str(HERE), "worktree", "remove", "--force", str(other)], check=True)
    if options.json:
        head = {"command": " ".join(["python", *sys.argv]), "before": options.commit, "environment": environment()}
        options.json.write_text(json.dumps(head | result, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(MEASUREMENTS), help="one measurement alone")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def compare(trees: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, dict]:
    """Of each measurement: the CPU seconds of each tree and round, the median ratio and its range."""
    make_pictures(folder / "pictures")
    (folder / "recipe.yaml").write_text(RECIPE.format(pictures=folder / "pictures"))
    result = {}
    for name, measure in MEASUREMENTS.items():
        if options.only not in (None, name):
            continue
        seconds: dict[str, list[float]] = {tree: [] for tree in trees}
        for number in range(options.rounds):
            for tree in sorted(trees, reverse=number % 2 == 1):
                seconds[tree].append(measure(trees[tree], folder))
        ratios = [before / now for before, now in zip(seconds["before"], seconds["now"], strict=True)]
        median = statistics.median(ratios)
        print(f"{name:8} before / now: median {median:.3f}, {min(ratios):.3f} to {max(ratios):.3f}", flush=True)
        result[name] = {"cpu_seconds": seconds, "median": median, "min": min(ratios), "max": max(ratios)}
    return result


def make_pictures(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(64):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number:02d}.jpg")


def step(tree: Path, folder: Path) -> float:
    """CPU seconds of a step of 16 images."""
    spent = []
    for steps in STEPS:
        words = [f"stages=[{{steps: {steps}, partitions: [{{image_size: 64, batch_size: 16}}]}}]"]
        with tempfile.TemporaryDirectory(dir=folder) as out:
            spent.append(run(tree, "-m", "amradio", "distill", str(folder / "recipe.yaml"), *words, f"out={out}/run"))
    return (spent[1] - spent[0]) / (STEPS[1] - STEPS[0])


def loader(tree: Path, folder: Path) -> float:
    """CPU seconds of an image, from the tree's benchmark."""
    file = folder / "loader.json"
    run(tree, "benchmarks/data.py", "--files", "16", "--batches", "4", "--repeats", "1", "--json", str(file))
    return float(json.loads(file.read_text())["cpu_ms_per_image"]["amradio"]) / 1e3


def neighbours(tree: Path, _: Path) -> float:
    """CPU seconds of a search through 65,536 rows less those of one through 4,096, so that start-up and queries are in neither."""
    spent = [run(tree, "benchmarks/knn.py", "--only-ours", "--database", str(rows), "--queries", "2048") for rows in (4096, 65536)]
    return spent[1] - spent[0]


MEASUREMENTS: dict[str, Callable[[Path, Path], float]] = {"step": step, "loader": loader, "k-NN": neighbours}


def run(tree: Path, *words: str) -> float:
    """CPU seconds of `python WORDS` in a tree, with its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree / "src")}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{tree}: python {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
