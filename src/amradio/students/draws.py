"""More random numbers of a sample than it has columns of draws."""

import torch
from torch import Tensor

COLUMN = 5
"""Of the draws, from which others are derived."""


def derived(draws: Tensor, number: int) -> Tensor:
    """Random number `number` of each sample, float32 [B] uniform in [0, 1): the mixing function of MurmurHash3 on its draw and `number`.

    draws: [B, 8] uniform in [0, 1). A function of them alone, so the same on all processes, on a CPU and on a GPU.
    """
    mask = 0xFFFFFFFF
    state = (draws[:, COLUMN].float() * 2**24).long() ^ ((number + 1) * 0x9E3779B1 & mask)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        state = (state ^ (state >> shift)) * factor & mask
    return (state >> 8).to(torch.float32) / 2**24
