"""What every teacher is: a frozen model that owns its preprocessing and speaks `Features`."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Settings, Weight
from ..errors import UserError
from ..features import Features

Precision = Literal["float32", "bfloat16", "float16"]


class TeacherSettings(Settings):
    """What is common to all teachers; each kind adds its own keys and `build`."""

    summary_weight: Weight = 1.0
    """Weight of the summary loss; 0 where the summary is not to be learnt."""
    spatial_weight: Weight = 1.0
    """Weight of the spatial loss; 0 where the map is not to be learnt."""
    precision: Precision = "float32"
    """Weights of the frozen model; norms always stay in float32."""

    def build(self) -> "Teacher":
        """Loads the frozen teacher on the CPU; raises UserError where it is not on this machine and cannot be fetched."""
        raise NotImplementedError


class Teacher(nn.Module):
    """A frozen foundation model. One of the user's own subclasses this, calls `super().__init__` and writes `encode`.

    Attributes: `patch_size` px of one cell of the map; `summary_dim` and `spatial_dim` channels, None where there is no such output;
    `input_size` px of the only legal (square) input, None where any multiple of the patch is legal; `licence` of the weights;
    `source` says where they come from; `compute_dtype` in which `encode` gets its images.
    """

    mean: Tensor
    std: Tensor
    compute_dtype: torch.dtype = torch.float32
    has_text: bool = False
    """Whether `encode_text` works: the summary then lies in the space of its text encoder."""

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
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.patch_size = patch_size
        self.summary_dim, self.spatial_dim = dims
        self.input_size = input_size
        self.licence = licence
        self.source = source

    def freeze(self) -> Self:
        """Evaluation mode, no gradients."""
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - nn.Module's signature
        """Stays in evaluation mode whatever `mode` says: a frozen model has no other."""
        return super().train(False)

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The legal size to which a training view of height x width px is resized (the whole view stays in)."""
        if self.input_size is not None:
            return self.input_size, self.input_size
        step = self.patch_size
        return max(step, round(height / step) * step), max(step, round(width / step) * step)

    def prepare(self, images: Tensor) -> Tensor:
        """The original library's own preprocessing, less the normalisation: [B, 3, H, W] in [0, 1] of any size to a legal size.

        Here: the whole image is resized to the nearest legal size, bicubic.
        """
        return resize(images, self.size_for(*images.shape[-2:]))

    def encode(self, images: Tensor) -> Features:
        """Features of normalised images [B, 3, H, W] of a legal size, in `compute_dtype`."""
        raise NotImplementedError

    def encode_text(self, texts: Sequence[str]) -> Tensor:  # noqa: ARG002 - for those that have a text encoder
        """Embeddings of texts in the space of the summary: float32 [N, summary_dim] on the teacher's device, not normalised.

        Raises UserError where the teacher has no text encoder.
        """
        raise UserError(f"teacher '{self.source}' has no text encoder; CLIP, OpenCLIP and SigLIP have one")

    def drop_encoder(self) -> None:
        """Frees the image encoder where something else stays of use (texts, masks); `encode` does not work from then on."""

    def forward(self, images: Tensor) -> Features:
        """RGB [B, 3, H, W] in [0, 1] of a legal size -> float32 Features, without gradients.

        The tensors are ordinary ones (a loss may save them for its backward pass). Raises UserError at an illegal size.
        """
        self._check_size(*images.shape[-2:])
        with torch.inference_mode():
            summary, spatial = self.encode(((images.float() - self.mean) / self.std).to(self.compute_dtype))
        return Features(_ordinary(summary), _ordinary(spatial))

    def _check_size(self, height: int, width: int) -> None:
        legal = self.size_for(height, width)
        if (height, width) != legal:
            rule = f"multiples of {self.patch_size} px" if self.input_size is None else f"{self.input_size} x {self.input_size} px only"
            raise UserError(
                f"teacher '{self.source}': images of {height} x {width} px; it takes {rule}; resize to {legal[0]} x {legal[1]} px "
                "(Teacher.size_for), or use Teacher.prepare"
            )


def _ordinary(features: Tensor | None) -> Tensor | None:
    """A float32 copy made outside inference mode: autograd refuses to save inference tensors."""
    return None if features is None else features.to(torch.float32, copy=True)


def to_grid(tokens: Tensor, images: Tensor, patch_size: int) -> Tensor:
    """Patch tokens [B, N, D], row-major, of images [B, 3, H, W] -> [B, H // patch_size, W // patch_size, D]."""
    return tokens.unflatten(1, (images.shape[-2] // patch_size, images.shape[-1] // patch_size))


def resize(images: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Antialiased resize of [B, 3, H, W] in [0, 1] to [B, 3, *size], clamped to [0, 1]; mode: bicubic, bilinear or nearest."""
    if tuple(images.shape[-2:]) == size:
        return images
    if mode == "nearest":
        return F.interpolate(images, size, mode="nearest-exact")
    return F.interpolate(images, size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
