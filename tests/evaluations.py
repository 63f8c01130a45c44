"""What tests of evaluations share: a tiny student with tiny teachers that read text, and a small setting of every evaluation."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import tiny
from amradio.data.scenes import CLASS_NAMES
from amradio.evaluation import Bench
from amradio.evaluation.progress import silent
from amradio.evaluation.reading import Broken, num_windows, read_image_windows
from amradio.labelled.base import ImageSet
from amradio.model import Model
from amradio.recipe import Recipe
from amradio.teachers import ClipSettings, SamSettings, Teacher
from amradio.training.initialization import network_config

SCENES = {"type": "scenes", "length": 20, "image_size": 32}
SMALL: dict[str, dict] = {
    "knn": {"database": {**SCENES, "seed": 2, "length": 30}, "queries": SCENES, "k": [1, 5]},
    "zero_shot": {"data": SCENES, "templates": ["a {}", "the {} thing"]},
    "retrieval": {"data": SCENES},
    "linear_segmentation": {"train": {**SCENES, "seed": 2}, "test": SCENES, "schedule": {"type": "short", "steps": 5}},
    "open_vocabulary_segmentation": {"data": SCENES, "templates": ["a {}"]},
    "depth": {"train": {**SCENES, "seed": 2}, "test": SCENES, "head": "linear", "schedule": {"type": "short", "steps": 3}},
    "normals": {"train": {**SCENES, "seed": 2}, "test": SCENES, "head": "linear", "schedule": {"type": "short", "steps": 3}},
    "multiview_correspondence": {"data": {**SCENES, "length": 6}, "stride": 2},
    "promptable_segmentation": {"data": {**SCENES, "length": 6}, "bins": [5, 10]},
    "agreement": {"data": SCENES, "image_sizes": [32, 48]},
    "statistics": {"data": SCENES},
    "linear_classification": {"train": {**SCENES, "seed": 2}, "test": SCENES, "epochs": 2},
    "throughput": {"seconds": 0.001, "batch_sizes": [1, 2]},
}
"""type -> keys of an evaluation that takes well under a second."""


def add_tokenizer(folder: Path) -> Path:
    """Words of scenes as tokens, for a `tiny.tiny_clip`: 97 begins, 98 ends and pads."""
    words = [*" ".join(CLASS_NAMES).split(), *["a", "the", "photo", "of", "picture", "thing", "object"]]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))} | {"[UNK]": 96, "[BOS]": 97, "[EOS]": 98}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 97), ("[EOS]", 98)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[EOS]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def tiny_teachers(folder: Path) -> dict[str, Teacher]:
    """A CLIP that reads, and a SAM."""
    clip = ClipSettings(model=str(add_tokenizer(tiny.tiny_clip(folder / "clip")))).build()
    return {"clip": clip, "sam": SamSettings(model=str(tiny.tiny_sam(folder / "sam"))).build()}


def tiny_model(teachers: dict[str, Teacher], **words: str) -> Model:
    """A random student of 32 px with a head per teacher."""
    torch.manual_seed(0)
    recipe = Recipe.load(
        f"teachers={{{', '.join(f'{name}: custom' for name in teachers)}}}",
        "data.train=scenes",
        "student={type: vit, dim: 32, depth: 1, num_heads: 2, patch_size: 8, max_image_size: 64}",
        "stages.0.partitions.0.image_size=32",
        "out=unused",
        *(f"{key}={value}" for key, value in words.items()),
    )
    config = network_config(recipe, teachers)
    return Model(config, config.build())


def read_all(images: ImageSet, broken: Broken) -> list[tuple[int, torch.Tensor]]:
    """(index, uint8 [3, H, W]) of every image that can be read; the reasons of the others go into `broken`."""
    found: list[tuple[int, torch.Tensor]] = []
    broken.tell(images.notes())
    for window in read_image_windows(images, range(num_windows(images)), 0, silent):
        found += [image for batch in window.batches for image in batch]
        broken.reasons |= window.reasons
    return found


def tiny_bench(folder: Path, **options: int) -> Bench:
    """Both on the CPU."""
    teachers = tiny_teachers(folder)
    return Bench(tiny_model(teachers), teachers, **options)
