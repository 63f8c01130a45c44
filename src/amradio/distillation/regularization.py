"""What keeps the student from fitting its targets too closely: settings, all of them off by default."""

from typing import Annotated

import pydantic

from ..config import Depth, Positive, Probability, Settings, WindowSide


class SelfDistillationSettings(Settings):
    """The student's map on a shifted crop is that of its moving average (SE-MESA of C-RADIOv4); needs `engine.ema`."""

    weight: Annotated[float, pydantic.Field(gt=0, le=1e6)] = 1.0
    """Of this loss beside those of the teachers; C-RADIOv4 does not state its own."""
    max_shift: Positive = 1
    """Largest shift between the two crops, in steps of the student (patches of a ViT); drawn for each image."""


class WindowsSettings(Settings):
    """In some steps the patches of the student see one another within windows only, but for a few blocks (ViTDet), so that the model can be
    run in that mode at high resolution. For ViTs."""

    sizes: Annotated[list[WindowSide], pydantic.Field(min_length=1, max_length=100)] = pydantic.Field(
        default_factory=lambda: [6, 7, 8, 9, 12, 16, 18, 24, 32]
    )
    """Patches along the side of a window; each step draws one of those that divide the map and are smaller (C-RADIOv4: 6 to 32)."""
    probability: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5
    """Of windows in a step; not stated in the papers."""
    num_global: Depth = 4
    """Blocks in which all patches see one another, the last one among them (RADIOv2.5, C-RADIOv4: 4)."""


class RegularizeSettings(Settings):
    """Regularisation of the student; all of it is off in evaluation, and a model folder has plain weights."""

    spectral: bool = False
    """Each linear layer is a matrix of norm 1 times a learned scale, queries, keys and values apart; the scale decays in place of the
    matrix (AM-RADIO, for stability at high resolution)."""
    weight_noise: Probability = 0.0
    """Deviation of a random factor on each weight of linear layers, drawn in each step (DAMP; C-RADIOv4 does not state its own)."""
    drop_path: Probability = 0.0
    """Probability that a sample goes without a residual branch of the student's last block; it falls to 0 at the first (UNIC: 0.1)."""
    self_distillation: SelfDistillationSettings | None = None
    """Consistency with the moving average; null for none."""
    windows: WindowsSettings | None = None
    """Windowed attention in some steps; null for none."""
