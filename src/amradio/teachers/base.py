"""What every teacher is: a frozen model that owns its preprocessing and speaks `Features`."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Settings
from ..features import Features

Precision = Literal["float32", "bfloat16", "float16"]


class TeacherSettings(Settings):
    """What is common to all teachers; each kind adds its own keys and `build`."""

    summary_weight: float = 1.0
    """Weight of the summary loss; 0 where the summary is not to be learnt."""
    spatial_weight: float = 1.0
    """Weight of the spatial loss; 0 where the map is not to be learnt."""
    precision: Precision = "float32"
    """Weights of the frozen model; norms always stay in float32."""

    def build(self) -> "Teacher":
        """Loads the frozen teacher on the CPU; raises UserError where it is not on this machine and cannot be fetched."""
        raise NotImplementedError


class Teacher(nn.Module):
    """A frozen foundation model.

    Attributes: `patch_size` px of one token; `summary_dim` and `spatial_dim` channels, None where there is no such output;
    `input_size` px of the only legal (square) input, None where any multiple of the patch is legal; `licence` of the weights;
    `source` says where they come from.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        patch_size: int,
        dims: tuple[int | None, int | None],
        input_size: int | None,
        licence: str,
        source: str,
    ):
        """mean, std: of RGB in [0, 1]; dims: channels of (summary, spatial)."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.patch_size = patch_size
        self.summary_dim, self.spatial_dim = dims
        self.input_size = input_size
        self.licence = licence
        self.source = source

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The legal size to which a training view of height x width px is resized (the whole view stays in)."""
        if self.input_size is not None:
            return self.input_size, self.input_size
        step = self.patch_size
        return max(step, round(height / step) * step), max(step, round(width / step) * step)

    def prepare(self, images: Tensor) -> Tensor:
        """The original library's own preprocessing, less the normalisation: [B, 3, H, W] in [0, 1] of any size to a legal size."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Features:
        """Features of normalised images [B, 3, H, W] of a legal size."""
        raise NotImplementedError

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Features:
        """RGB [B, 3, H, W] in [0, 1] of a legal size -> float32 Features."""
        summary, spatial = self.encode((images - self.mean) / self.std)
        return Features(None if summary is None else summary.float(), None if spatial is None else spatial.float())


def resize(images: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Antialiased resize of [B, 3, H, W] in [0, 1] to [B, 3, *size], clamped to [0, 1]."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
