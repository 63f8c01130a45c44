"""CPU time of drawing generated scenes against the drawing of another commit, in one process, by turns; every picture is compared.

python benchmarks/scenes.py [--against COMMIT] [--repeats 40]
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from amradio.data.scenes import draw_image, draw_scene

ROOT = Path(__file__).parents[1]
MODULES = ("scenes", "scene_shapes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="90468f3", help="commit with the other src/amradio/data/scenes.py")
    parser.add_argument("--repeats", type=int, default=40, help="turns of 12 scenes each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = drawing_of(arguments.against, Path(folder))
        print(f"ms a scene, median and least of {arguments.repeats} turns; ratio: median of those of each turn")
        for size in (64, 128):
            compare(other, size, arguments.repeats)


def drawing_of(commit: str, folder: Path) -> Callable:
    """`draw_scene` of another commit."""
    package = folder / "other_scenes"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in MODULES:
        text = subprocess.run(["git", "show", f"{commit}:src/amradio/data/{name}.py"], cwd=ROOT, check=True, capture_output=True, text=True)
        (package / f"{name}.py").write_text(text.stdout)
    sys.path.insert(0, str(folder))
    return importlib.import_module("other_scenes.scenes").draw_scene


def compare(other: Callable, size: int, repeats: int) -> None:
    """One line for each function."""
    drawings = {"other scene": other, "scene": draw_scene, "image": draw_image}
    times: dict[str, list[float]] = {name: [] for name in drawings}
    for turn in range(repeats):
        for name, draw in drawings.items():
            start = time.process_time()
            for index in range(12 * turn, 12 * turn + 12):
                draw(0, index, size)
            times[name].append((time.process_time() - start) / 12 * 1000)
        before = other(0, turn, size)
        assert all(np.array_equal(a, b) for a, b in zip(before, draw_scene(0, turn, size), strict=True)), f"scene {turn} is another"
        assert np.array_equal(before.image, draw_image(0, turn, size)), f"picture {turn} is another"
    for name, measured in times.items():
        ratio = statistics.median(old / new for old, new in zip(times["other scene"], measured, strict=True))
        print(f"{size} px  {name:12} {statistics.median(measured):6.2f} {min(measured):6.2f}  ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
