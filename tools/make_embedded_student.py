#!/usr/bin/env python
"""Puts the model of a run into the package, as `amradio.load("embedded/NAME")`, with its card.

    OMP_NUM_THREADS=1 python benchmarks/photographs.py benchmarks/photographs.yaml --only mobilenetv4-s-long   # 70 minutes on one core
    python tools/make_embedded_student.py runs/photographs/mobilenetv4-s-long photos

Matrices and kernels are stored in float16, all else in float32; a loaded model has float32. The texts of the card are in `ABOUT`.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from amradio.files import read_json
from amradio.tensors import read_tensors, write_tensors

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "src" / "amradio" / "formats" / "embedded"
ABOUT = {
    "photos": (
        "3,490 photographs of caltech101 (100 classes, CC BY 4.0: Li, Andreeto, Ranzato & Perona), ten views of each",
        """\
By benchmarks/photographs.py, row `mobilenetv4-s-long`: MobileNetV4-S from random weights, 12,000 steps of 32 views at 64 and 96 px, in
an hour on one CPU core, from the answers of EfficientNet-Lite0 (ImageNet, Apache-2.0) at 128 px to views of the training photographs of
caltech101 alone. On the 1,743 photographs that are not for training its backbone has 70.1 % 5-NN accuracy, 69.9 in float16 as stored;
the teacher has 85.4, HOG 34 and pixels 27 (benchmarks/results/photographs.json). It is small and saw 100 kinds of objects: it shows
something real offline and is in no other way a match for published models.
""",
    )
}


def main() -> None:
    """Writes the folder, in place of one that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder, finished")
    parser.add_argument("name", choices=ABOUT)
    options = parser.parse_args()
    data, made = ABOUT[options.name]
    model, folder = options.run / "model", FOLDER / options.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = {
        key: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for key, tensor in read_tensors(model / "model.safetensors").items()
    }
    write_tensors(tensors, folder / "model.safetensors")
    config = read_json(model / "config.json")
    was, config["training"]["data"] = config["training"]["data"], data
    config["training"].pop("recipe", None)  # it names folders of the machine; the list of the benchmark has the same words
    card = (model / "README.md").read_text(encoding="utf-8").replace(was, data)
    card = card.replace(str(model), f"embedded/{options.name}").replace("PATH/OF/THIS/FOLDER", f"embedded/{options.name}")
    card = re.sub(r"^# ", f"# embedded/{options.name}: ", card, count=1, flags=re.M)
    card = card.replace("## Intended use and limits", f"## How it was made\n\n{made}\n## Intended use and limits")
    card = re.sub(r"<details>.*?</details>\n\n", "", card, flags=re.S)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"{folder}: {size:.1f} MiB")


if __name__ == "__main__":
    main()
