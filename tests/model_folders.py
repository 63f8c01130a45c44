"""Model folders for the tests of formats: a network with three heads, and the notes that stand in its card."""

from pathlib import Path
from typing import Any

import torch

from amradio.formats.model_folder import write_folder
from amradio.heads import MlpHeadSettings
from amradio.network import HeadConfig, HeadPart, NetworkConfig
from amradio.students import VitSettings

AGREEMENT = {"clip/summary": {"standardized_cosine": 0.5, "norm_ratio": 0.9, "cosine": 0.75, "constant_cosine": 0.25}}
NOTES = {"step": 7, "num_steps": 9, "data": "12 images of teapots", "agreement": AGREEMENT, "recipe": "seed: 41\n"}


def config_of(student: Any, **heads: HeadConfig) -> NetworkConfig:
    def part(dim: int) -> HeadPart:
        return HeadPart(head=MlpHeadSettings(hidden_dim=24, num_inner=1), dim=dim)

    clip = {"source": "apple/DFN5B", "licence": "Apple AMLR (research only)"}
    second = 0 if student.shares_summary else 1
    named = {
        "clip": HeadConfig(summary=part(8), spatial=part(9), slot=0, teacher=clip),
        "dino": HeadConfig(summary=part(10), spatial=part(11), slot=second, teacher={"source": "facebook/dinov2-small"}),
        "sam": HeadConfig(spatial=part(12), teacher={"type": "sam", "source": "a folder", "licence": "Apache-2.0"}),
    }
    num_summaries = 1 if student.shares_summary else 2
    return NetworkConfig(student=student, num_summaries=num_summaries, heads=named | heads, image_size=64)


def layer_scale_vit(folder: Path) -> Path:
    """A ViT with LayerScale that every format can hold, with random weights everywhere; returns the folder."""
    torch.manual_seed(0)
    config = config_of(VitSettings(dim=64, depth=2, num_heads=4, num_registers=3, max_image_size=128, layer_scale=0.5))
    network = config.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write_folder(folder, config, network, NOTES)
    return folder
