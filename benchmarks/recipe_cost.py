"""What a recipe costs on this machine: images/s, memory and hours, with teachers of the real architectures and random weights.

    python benchmarks/recipe_cost.py starter [--steps 60] [--images 512] [--json FILE] [key=value ...]

The speed of a network does not depend on its weights, so nothing is downloaded: each teacher is built from its published configuration,
with random weights, and saved as on the hub. Images are generated JPEGs of 640 x 480 px, read and cropped by the recipe's own loader.
Words change the recipe (`student.size=tiny`, `stages.0.partitions.0.batch_size=64`, `engine.compile=true`).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from amradio.environment import environment
from amradio.recipe import Recipe
from amradio.run_folder import RunFolder
from amradio.training import Trainer

WARM = 20
"""Steps before the time is taken: cuDNN chooses its kernels, compiled graphs are made."""


def clip(width: int, depth: int, patch: int, size: int, text: int, projection: int) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth, "num_attention_heads": width // 64}
        config = transformers.CLIPConfig(
            text_config={"hidden_size": text, "intermediate_size": 4 * text, "num_attention_heads": text // 64, "num_hidden_layers": 12},
            vision_config=vision | {"image_size": size, "patch_size": patch},
            projection_dim=projection,
        )
        transformers.CLIPModel(config).save_pretrained(folder)
        crop = {"height": size, "width": size}
        transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=crop).save_pretrained(folder)

    return save


def dinov2(width: int, depth: int) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        config = transformers.Dinov2WithRegistersConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64, image_size=518, patch_size=14
        )
        transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
        transformers.BitImageProcessor(
            size={"shortest_edge": 256},
            crop_size={"height": 224, "width": 224},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ).save_pretrained(folder)

    return save


def sam(width: int, depth: int, global_layers: list[int]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        vision = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 64, "mlp_dim": 4 * width}
        config = transformers.SamConfig(vision_config=vision | {"global_attn_indexes": global_layers})
        transformers.SamModel(config).save_pretrained(folder)
        transformers.SamImageProcessor().save_pretrained(folder)

    return save


MODELS = {
    "openai/clip-vit-base-patch16": clip(768, 12, 16, 224, 512, 512),
    "openai/clip-vit-large-patch14-336": clip(1024, 24, 14, 336, 768, 768),
    "facebook/dinov2-with-registers-small": dinov2(384, 12),
    "facebook/dinov2-with-registers-base": dinov2(768, 12),
    "facebook/dinov2-with-registers-large": dinov2(1024, 24),
    "facebook/sam-vit-base": sam(768, 12, [2, 5, 8, 11]),
    "facebook/sam-vit-large": sam(1024, 24, [5, 11, 17, 23]),
}


def make_images(folder: Path, count: int) -> None:
    """JPEGs with edges and grain, of about the size in bytes of a photograph."""
    for number in range(count):
        draws = np.random.default_rng(number)
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse, np.float32) + draws.normal(0, 6, (480, 640, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)


def local_teachers(recipe: Recipe, folder: Path) -> list[str]:
    """Words that replace every teacher's model by a folder with random weights."""
    words = []
    for name, settings in recipe.teachers.items():
        model = settings.model  # pyright: ignore[reportAttributeAccessIssue]
        if model not in MODELS:
            raise SystemExit(f"the configuration of {model} is not among those of this script; add it to MODELS: {', '.join(MODELS)}")
        path = folder / model.replace("/", "_")
        if not path.exists():
            path.mkdir()
            MODELS[model](path)
        words.append(f"teachers.{name}.model={path}")
    return words


def run(recipe: Recipe) -> list[float]:
    """Trains; returns the time at the end of each step."""
    from amradio import distill

    stamps: list[float] = []
    take = Trainer._take_step

    def timed(self: Trainer, step: int) -> None:
        take(self, step)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    Trainer._take_step = timed
    try:
        distill(recipe)
    finally:
        Trainer._take_step = take
    return stamps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name or file")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="*", help="changes to the recipe")
    options = parser.parse_intermixed_args()
    planned = Recipe.load(options.recipe, *options.words)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        make_images(folder / "images", options.images)
        words = [*options.words, *local_teachers(planned, folder), f"data.train.path={folder / 'images'}", f"out={folder / 'run'}"]
        words += [f"stages.0.steps={options.steps}", "evaluate.every=null", "engine.checkpoint_every=100000", "engine.log_every=20"]
        stamps = run(Recipe.load(options.recipe, *words))
        last = RunFolder(folder / "run").records()[-1]
    seconds = [after - before for before, after in zip(stamps[WARM:-1], stamps[WARM + 1 :], strict=True)]
    images = sum(partition.batch_size for partition in planned.stages[0].partitions)
    a_step = float(np.mean(seconds))
    result = {
        "images_a_step": images,
        "seconds_a_step": a_step,
        "seconds_a_step_from_to": [min(seconds), max(seconds)],
        "images_per_second": images / a_step,
        "hours": planned.num_steps * a_step / 3600,
        "memory_gib": last["memory_gib"],
        "shares": {name: value for name, value in last.items() if name.endswith("_share")},
    }
    print(json.dumps(result, indent=1))
    if options.json:
        told = {"recipe": options.recipe, "words": options.words, "steps": options.steps, "environment": environment()}
        options.json.write_text(json.dumps(told | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
