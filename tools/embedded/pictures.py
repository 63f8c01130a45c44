"""What the embedded teachers learn from: scenes drawn from a seed, or real photographs with COCO annotations.

Everything is held in memory at the training size: pictures are uint8 [N, 3, S, S] RGB.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amradio.data.scenes import draw_scene

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class Pictures(NamedTuple):
    """A pool to train on. What a teacher does not need is left empty."""

    images: Tensor  # uint8 [N, 3, S, S]
    labels: Tensor  # int64 [N]; -1 where there is none
    captions: list[tuple[str, ...]]  # of each picture
    masks: list[Tensor]  # of each picture: bool [objects, S, S]


def scenes(seed: int, length: int, image_size: int, *, masks: bool = False) -> Pictures:
    """The first `length` scenes of the world `seed`; their masks only on demand, for they are large."""
    images = np.empty((length, image_size, image_size, 3), dtype=np.uint8)
    labels, captions, objects = [], [], []
    for index in range(length):
        scene = draw_scene(seed, index, image_size)
        images[index] = scene.image
        labels.append(scene.label)
        captions.append(scene.captions)
        if masks:
            objects.append(torch.from_numpy(scene.instance_masks))
    return Pictures(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels), captions, objects)


def folder(path: Path, image_size: int) -> Pictures:
    """Every picture under `path`: short side to `image_size`, centre crop."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"--images {path}: no picture found there")
    return _stack([_square(Image.open(file), image_size) for file in files])


def captioned(path: Path, annotations: Path, image_size: int) -> Pictures:
    """The pictures of a COCO caption file, found by name under `path`: short side to `image_size`, centre crop."""
    document = json.loads(annotations.read_text())
    captions = defaultdict(list)
    for entry in document["annotations"]:
        captions[entry["image_id"]].append(entry["caption"].strip())
    known = [image for image in document["images"] if captions[image["id"]]]
    pool = _stack([_square(_open(path, image, annotations), image_size) for image in known])
    return pool._replace(captions=[tuple(captions[image["id"]]) for image in known])


def segmented(path: Path, annotations: Path, image_size: int) -> Pictures:
    """The pictures of a COCO instance file with their masks: long side to `image_size`, padded below and right."""
    document = json.loads(annotations.read_text())
    entries = defaultdict(list)
    for entry in document["annotations"]:
        if not entry.get("iscrowd"):
            entries[entry["image_id"]].append(entry["segmentation"])
    images, masks = [], []
    for image in document["images"]:
        if not entries[image["id"]]:
            continue
        picture = _open(path, image, annotations).convert("RGB")
        width, height = picture.size
        whole = [Image.fromarray(_decode(entry, height, width)) for entry in entries[image["id"]]]
        images.append(_padded(picture, image_size, Image.Resampling.BILINEAR))
        masks.append(torch.stack([torch.from_numpy(_padded(mask, image_size, Image.Resampling.BOX) >= 128) for mask in whole]))
    return _stack(images)._replace(masks=masks)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8, or float in [0, 1], [B, 3, H, W] -> float32, centred and scaled per channel."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    return (pixels - torch.tensor(mean, device=images.device)[:, None, None]) / torch.tensor(std, device=images.device)[:, None, None]


def _open(path: Path, image: dict, annotations: Path) -> Image.Image:
    file = path / image["file_name"]
    if not file.is_file():
        raise ValueError(f"--images {path}: no {image['file_name']}, which {annotations} names")
    return Image.open(file)


def _stack(arrays: list[np.ndarray]) -> Pictures:
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return Pictures(images, torch.full((len(arrays),), -1), [], [])


def _square(picture: Image.Image, image_size: int) -> np.ndarray:
    picture = picture.convert("RGB")
    scale = image_size / min(picture.size)
    width, height = (max(image_size, round(side * scale)) for side in picture.size)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + image_size, top + image_size)))


def _padded(picture: Image.Image, image_size: int, resampling: Image.Resampling) -> np.ndarray:
    scale = image_size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    resized = np.asarray(picture.resize((width, height), resampling))
    # SAM pads with what is zero after normalisation: the mean colour, not black.
    ground = [round(255 * level) for level in IMAGENET_MEAN] if resized.ndim == 3 else 0
    canvas = np.full((image_size, image_size, *resized.shape[2:]), ground, dtype=np.uint8)
    canvas[:height, :width] = resized
    return canvas


def _decode(segmentation: dict | list, height: int, width: int) -> np.ndarray:
    """uint8 [H, W], 0 or 255, from COCO polygons or (compressed) run lengths."""
    if isinstance(segmentation, list):
        from PIL import ImageDraw

        canvas = Image.new("L", (width, height))
        for polygon in segmentation:
            ImageDraw.Draw(canvas).polygon(polygon, fill=255)
        return np.asarray(canvas)
    counts = segmentation["counts"]
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    values = np.arange(len(runs)) % 2 * 255
    return np.repeat(values.astype(np.uint8), runs).reshape(width, height).T.copy()


def _run_lengths(text: str) -> list[int]:
    """COCO's compressed run lengths: base 32 digits, five bits a character; from the third on, differences to two before."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            digit = ord(text[position]) - 48
            value |= (digit & 31) << shift
            more = bool(digit & 32)
            position, shift = position + 1, shift + 5
        if digit & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
