"""What every student is: a backbone with its own preprocessing that speaks `Features`."""

import torch
from torch import Tensor, nn

from ..config import Settings
from ..features import Features

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class StudentSettings(Settings):
    """What is common to all students; each kind adds its own keys and `build`."""

    def build(self, num_summaries: int) -> "Student":
        """A freshly initialised student (or one started from the weights that the settings name).

        num_summaries: how many summaries the heads read, one per teacher that has one.
        """
        raise NotImplementedError


class Student(nn.Module):
    """A backbone that is trained.

    Attributes: `patch_size` px per cell of the spatial output; `summary_dim` channels of ONE summary; `num_summaries` of them;
    `spatial_dim` channels of the map. Images are RGB in [0, 1]; mean and std are buffers of the model.
    """

    mean: Tensor
    std: Tensor
    patch_size: int
    summary_dim: int
    spatial_dim: int
    num_summaries: int

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def nearest_size(self, height: int, width: int) -> tuple[int, int]:
        """The legal input size nearest to height x width px."""
        raise NotImplementedError

    def no_decay(self) -> set[str]:
        """Names of parameters beyond norms and biases that weight decay leaves alone (tokens, position tables)."""
        return set()

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Features:
        """Features of a batch.

        images: [B, 3, H, W], RGB in [0, 1], of a legal size, else ValueError that names the nearest.
        draws: [B, 8] uniform in [0, 1), the random numbers of each sample in training (None: drawn from the global generator).
        Returns summary [B, num_summaries * summary_dim], summaries one after another, and spatial [B, H', W', spatial_dim].
        """
        raise NotImplementedError
