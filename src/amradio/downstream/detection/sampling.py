"""What is drawn for each image from its own seed: the anchors and proposals that the losses see, and the branches that are dropped."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.stateless_random import key_of

_BRANCHES = 14
"""The stream of random numbers that decides which branches are dropped."""


def numbers_of(seeds: Sequence[int]) -> Tensor:
    """float32 [B, 8] uniform in [0, 1): the random numbers of each image by which residual branches are dropped."""
    return torch.stack([torch.rand(8, generator=torch.Generator().manual_seed(key_of(seed, _BRANCHES) >> 1)) for seed in seeds])


class ImageSampler:
    """As torchvision's `BalancedPositiveNegativeSampler`, but what is drawn for an image depends on its seed alone, so that it is the
    same on any number of processes and after a resume.

    Attributes: `seeds`, one for each image of the batch to come; `num_chosen`, how many samples and how many positives among them the last
    batch had.
    """

    def __init__(self, num_samples: int, positive_share: float):
        """num_samples: of an image. positive_share: of the samples, at most."""
        self.num_samples, self.num_positive = num_samples, int(num_samples * positive_share)
        self.seeds: Sequence[int] = ()
        self.num_chosen = 0, 0

    def __call__(self, matched: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Matches [N] of each image (-1 ignored, 0 negative, from 1 on positive) -> masks uint8 [N] of the positives and the negatives."""
        chosen: tuple[list[Tensor], list[Tensor]] = [], []
        num_chosen = [0, 0]
        for matches, seed in zip(matched, self.seeds, strict=True):
            draws = torch.Generator().manual_seed(seed)
            room = self.num_samples
            for candidates, most, masks in ((matches >= 1, self.num_positive, chosen[0]), (matches == 0, self.num_samples, chosen[1])):
                numbers = candidates.nonzero()[:, 0]
                count = min(len(numbers), most, room)
                room -= count
                num_chosen[masks is chosen[1]] += count
                order = torch.randperm(len(numbers), generator=draws)[:count].to(numbers.device)
                masks.append(torch.zeros_like(matches, dtype=torch.uint8).index_fill_(0, numbers[order], 1))
        self.num_chosen = sum(num_chosen), num_chosen[0]
        return chosen
