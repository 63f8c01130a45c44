"""Backbones of timm as students: the comparison's rows, levels, necks, summaries, sizes, weights, and what goes wrong."""

import pytest
import torch

from amradio.students import StudentRow
from amradio.students.timm import WELL_KNOWN, TimmSettings, TimmStudent

PYRAMID = "resnet10t"
"""Five levels of 2 to 32 px; channels 32, 64, 128, 256, 512."""
TRANSFORMER = "vit_tiny_patch16_224"
MILLIONS = {
    "tf_efficientnetv2_s": 21,
    "resnetv2_101": 44,
    "regnety_064": 30,
    "convnext_base": 88,
    "dm_nfnet_f3": 254,
    "swinv2_small_window8_256": 49,
    "maxvit_base_tf_224": 119,
    "poolformerv2_m36": 56,
    "mvitv2_base": 51,
}
"""AM-RADIO, table 7. EfficientViT-L1 is left out: the paper counts 38 M, timm's trunk has 37.5 M and its head, which is kept, 12 M more."""


def build(num_summaries: int = 2, **settings) -> TimmStudent:
    torch.manual_seed(0)
    return TimmSettings(**settings).build(num_summaries).eval()


def photo(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("row", WELL_KNOWN, ids=lambda row: row.size)
def test_the_rows_of_the_comparison_are_as_listed(row: StudentRow) -> None:
    with torch.device("meta"):
        student = TimmSettings(model=row.size).build(4).eval()
        side = student.nearest_size(224, 224)
        features = student(torch.empty(1, 3, *side))
    assert sum(p.numel() for p in student.parameters()) == row.parameters
    assert (student.patch_size, student.spatial_dim) == (row.patch_size, row.dim)
    assert features.spatial.shape == (1, side[0] // 16, side[1] // 16, row.dim)
    assert features.summary.shape == (1, student.summary_dim)
    if row.size in MILLIONS:
        assert row.parameters / 1e6 == pytest.approx(MILLIONS[row.size], rel=0.05)
