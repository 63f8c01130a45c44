"""What tests of detectors share: words of a small run on scenes, and the weights that it leaves."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from amradio.students.vit_settings import VitSettings

SMALL = {"channels": 16, "box_convs": 0, "rpn_convs": 1, "box_dim": 16, "num_proposals": 20, "num_samples": 16, "num_anchors": 16}
MASKS = f"detector={{type: mask_rcnn, mask_convs: 1, mask_dim: 8, anchor_size: 16, {', '.join(f'{k}: {v}' for k, v in SMALL.items())}}}"
WORDS = (
    "data={train: {type: scenes, length: 8}, val: {type: scenes, length: 3, seed: 2}, num_workers: 0}",
    "schedule={type: short, image_size: 64, batch_size: 4, epochs: 2}",
    "engine={device: cpu, precision: float32, log_every: 1, checkpoint_every: 2}",
    MASKS,
)
VIT = VitSettings(dim=32, depth=2, num_heads=2, patch_size=8, max_image_size=64)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The detector of the last checkpoint of a run, its student included."""
    return load_file(folder / "checkpoints" / "last" / "detector.safetensors")
