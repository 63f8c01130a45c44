"""Images per second of the loader against torchvision's ImageFolder and DataLoader doing the same crops.

    python benchmarks/data.py [--json benchmarks/results/data.json]

Both read the same JPEGs of 2000x1500 px (made here, full of detail like photographs), cut out boxes of the same distribution, resize
them bicubically with antialiasing to the same size, mirror half of them, and hand over batches of the same size from the same number of
worker processes; what differs is that the loader decodes a JPEG at the scale that the crop needs. Beside the rate stands the CPU time of
an image without workers, which other programs on the machine disturb less.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from amradio.data import DataSettings, Feed, OpenData
from amradio.data.folder import FolderSettings
from amradio.data.scenes import Scenes

WIDTH, HEIGHT = 2000, 1500


def main() -> None:
    arguments = parse_arguments()
    # Ours and theirs take turns, so that a busy spell of the machine falls on both.
    rates: dict[str, list[float]] = {"amradio": [], "torchvision": []}
    with tempfile.TemporaryDirectory() as folder:
        make_photographs(Path(folder), arguments.files)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.jpg")) / arguments.files
        for _ in range(arguments.repeats):
            for name, start in (("amradio", ours), ("torchvision", theirs)):
                rates[name].append(measure(lambda start=start: start(folder, arguments), arguments, time.perf_counter))
        alone = argparse.Namespace(**{**vars(arguments), "workers": 0, "batches": 4})
        torch.set_num_threads(1)
        cpu = {
            name: round(1000 / measure(lambda start=start: start(folder, alone), alone, time.process_time), 2)
            for name, start in (("amradio", ours), ("torchvision", theirs))
        }
    result = summarise(rates, size, arguments) | {"cpu_ms_per_image": cpu, "cpu_ratio": round(cpu["torchvision"] / cpu["amradio"], 2)}
    print(table(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=48, help="JPEGs of 2000x1500 px")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=16, help="timed batches, after three of each worker")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def make_photographs(folder: Path, count: int) -> None:
    """JPEGs of quality 90: scenes with detail of all octaves and grain, about as many bytes as a camera's."""
    scenes = Scenes(count, seed=1, image_size=256)
    (folder / "class").mkdir()
    for index in range(count):
        rng = np.random.default_rng(index)
        picture = np.asarray(Image.fromarray(scenes.image(index)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
        for octave in range(6):
            cells = rng.normal(0, 12 * 0.8**octave, (HEIGHT >> (6 - octave), WIDTH >> (6 - octave))).astype(np.float32)
            picture = picture + np.asarray(Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))[..., None]
        picture += rng.normal(0, 2, (HEIGHT, WIDTH, 1))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "class" / f"{index:04d}.jpg", quality=90)


def ours(folder: str, arguments: argparse.Namespace) -> Iterator[torch.Tensor]:
    settings = DataSettings(train=FolderSettings(path=folder), num_workers=arguments.workers)
    for batch in OpenData(settings).train_batches(settings.train, Feed(arguments.image_size, arguments.batch_size)):
        yield batch.images


def theirs(folder: str, arguments: argparse.Namespace) -> Iterator[torch.Tensor]:
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(arguments.image_size, scale=(0.4, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    images = torchvision.datasets.ImageFolder(folder, view)
    endless = torch.utils.data.RandomSampler(images, replacement=True, num_samples=10**9)
    loader = torch.utils.data.DataLoader(images, arguments.batch_size, sampler=endless, num_workers=arguments.workers)
    for batch, _ in loader:
        yield batch


def measure(start: Callable[[], Iterator[torch.Tensor]], arguments: argparse.Namespace, clock: Callable[[], float]) -> float:
    """Images per second of the clock, once all workers run and what they fetched ahead while starting is used up."""
    batches = start()
    for _ in range(max(1, 3 * arguments.workers)):
        next(batches)
    began = clock()
    for _ in range(arguments.batches):
        images = next(batches)
        assert images.shape == (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
        assert images.dtype == torch.uint8
    rate = arguments.batches * arguments.batch_size / (clock() - began)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return rate


def summarise(rates: dict[str, list[float]], size: float, arguments: argparse.Namespace) -> dict:
    ratios = [mine / other for mine, other in zip(rates["amradio"], rates["torchvision"], strict=True)]
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0]},
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()},
        "images": {"width": WIDTH, "height": HEIGHT, "files": arguments.files, "mean_bytes": round(size)},
        "setting": {name: getattr(arguments, name) for name in ("image_size", "batch_size", "workers", "batches", "repeats")},
        "images_per_second": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "median": {name: round(statistics.median(found), 1) for name, found in rates.items()},
        "ratio": {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2), "max": round(max(ratios), 2)},
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(result: dict) -> str:
    lines = [f"{'loader':12} {'median':>8} {'min':>8} {'max':>8}   images/s"]
    for name, found in result["images_per_second"].items():
        lines.append(f"{name:12} {result['median'][name]:8.1f} {min(found):8.1f} {max(found):8.1f}")
    ratio = result["ratio"]
    lines.append(f"{'ratio':12} {ratio['median']:8.2f} {ratio['min']:8.2f} {ratio['max']:8.2f}")
    cpu = result["cpu_ms_per_image"]
    lines.append(f"CPU time: {cpu['amradio']} ms against {cpu['torchvision']} ms an image, ratio {result['cpu_ratio']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
