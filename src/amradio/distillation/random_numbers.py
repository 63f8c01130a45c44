"""More random numbers of a sample than data loading delivers."""

import torch
from torch import Tensor

DRAWS = (6, 7)
"""The random numbers of a sample of which the method makes its own; the student uses 0 to 4."""
MIXERS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""The increment and the two multipliers of SplitMix64 (Steele, Lea and Flood, 2014), as signed integers."""


def uniform(draws: Tensor, numbers: range) -> Tensor:
    """float64 [len(numbers), B], uniform in [0, 1): made of two of the random numbers of each sample by SplitMix64.

    draws: float32 [B, 8]. numbers: which of a sample's numbers; teacher dropping has 1, 2, ..., shifts those from 1000 on.
    """
    high, low = ((draws[:, column].double() * 2**24).long() for column in DRAWS)
    places = torch.arange(numbers.start, numbers.stop, device=draws.device)[:, None]
    state = high * 2**24 + low + places * MIXERS[0]
    for shift, factor in zip((30, 27), MIXERS[1:], strict=True):
        state = (state ^ _shifted(state, shift)) * factor
    return _shifted(state ^ _shifted(state, 31), 11).double() / 2**53


def _shifted(state: Tensor, bits: int) -> Tensor:
    """A logical shift to the right of 64 bits."""
    return (state >> bits) & (2 ** (64 - bits) - 1)
