"""Balances as modules: the losses of teachers and kinds -> one number, and what some of them learn or follow meanwhile."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .balance import Weights
from .random_numbers import uniform

SMALLEST_MEAN = 1e-8
"""Of a loss: what is learnt perfectly is not multiplied by more than its inverse."""


class StepLosses(NamedTuple):
    """The losses of one partition's images, by name."""

    means: Mapping[str, Tensor]
    """float32 [] each."""
    samples: Mapping[str, Tensor]
    """float32 [B] each."""
    draws: Tensor | None = None
    """float32 [B, 8] uniform in [0, 1), the random numbers of a training step."""


class Balance(nn.Module):
    """Base: what the task needs to know of a balance."""

    follows_losses = False
    """Whether `follow` is to be called."""

    def __init__(self, weights: Weights):
        """weights: by name of the loss; those of weight 0 are left out."""
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def forward(self, losses: StepLosses) -> Tensor:
        """The loss to be minimized, float32 []."""
        raise NotImplementedError

    def follow(self, means: Mapping[str, Tensor]) -> None:
        """Takes in the losses of a whole step, over all pieces and processes, after its update."""

    def learnt(self, names: set[str]) -> list[nn.Parameter]:
        """The parameters that belong to these losses."""
        del names
        return []

    def factors(self, names: set[str]) -> dict[str, Tensor]:
        """What these losses are multiplied by beside their weights, float32 [] each; none where that is always 1."""
        del names
        return {}


class Fixed(Balance):
    """The sum of the losses times their weights."""

    def forward(self, losses: StepLosses) -> Tensor:
        """sum of weight * L, float32 []; losses without a weight are left out."""
        means = losses.means
        weighted = (self.weights[name] * loss for name, loss in means.items() if name in self.weights)
        return sum(weighted, start=next(iter(means.values())) * 0)


class AdaLoss(Balance):
    """The sum of the losses over their running means, times their weights (AM-RADIO, section 3.4: 1 / E[L]).

    Buffer `expected` [K]: the running means in the order of the weights; 0 until a loss was seen, which then counts as it is. They are
    those before the step, so pieces and processes of a step share them.
    """

    follows_losses = True
    expected: Tensor

    def __init__(self, weights: Weights, decay: float):
        super().__init__(weights)
        self.decay = decay
        self.register_buffer("expected", torch.zeros(len(self.weights)))

    def forward(self, losses: StepLosses) -> Tensor:
        """sum of weight * L / E[L], float32 []; E[L] is the running mean before this step, and 1 for a loss that was never seen."""
        factors = self.factors(set(losses.means))
        weighted = (self.weights[name] * factor * losses.means[name] for name, factor in factors.items())
        return sum(weighted, start=next(iter(losses.means.values())) * 0)

    @torch.no_grad()
    def follow(self, means: Mapping[str, Tensor]) -> None:
        """Moves the running means of the losses of the step."""
        for number, name in enumerate(self.weights):
            if name in means:
                before = self.expected[number].clone()
                self.expected[number] = torch.where(before > 0, before.lerp(means[name].to(before), 1 - self.decay), means[name].to(before))

    def factors(self, names: set[str]) -> dict[str, Tensor]:
        """One over the running means."""
        factors = torch.where(self.expected > 0, 1 / self.expected.clamp_min(SMALLEST_MEAN), torch.ones_like(self.expected))
        return {name: factor for name, factor in zip(self.weights, factors, strict=True) if name in names}


class Uncertainty(Balance):
    """The sum of weight * (exp(-b) L + softplus(b)); parameters `b` [] by name, which begin at 0."""

    def __init__(self, weights: Weights):
        super().__init__(weights)
        self.b = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in self.weights})

    def forward(self, losses: StepLosses) -> Tensor:
        """sum of weight * (exp(-b) L + softplus(b)), float32 [], with gradients for b."""
        names = [name for name in losses.means if name in self.weights]
        weighted = (self.weights[name] * ((-self.b[name]).exp() * losses.means[name] + F.softplus(self.b[name])) for name in names)
        return sum(weighted, start=next(iter(losses.means.values())) * 0)

    def learnt(self, names: set[str]) -> list[nn.Parameter]:
        """Their b."""
        return [parameter for name, parameter in self.b.items() if name in names]

    def factors(self, names: set[str]) -> dict[str, Tensor]:
        """exp(-b)."""
        return {name: (-parameter).exp().detach() for name, parameter in self.b.items() if name in names}


class TeacherDropping(Fixed):
    """The sum over teachers of which, for each image, all but the one with the largest loss are left out with a probability.

    A teacher's loss is that of its summary and map together, times their weights. The sum is divided by the expected share of teachers that
    are kept, so that it is that of `Fixed` on average over equal losses; UNIC divides by the number kept in the batch, which would depend
    on pieces and processes. In evaluation nothing is left out.
    """

    def __init__(self, weights: Weights, probability: float):
        super().__init__(weights)
        self.probability = probability

    def forward(self, losses: StepLosses) -> Tensor:
        """Weighted losses of the teachers kept for an image, summed; mean over images, divided by the expected share kept: float32 []."""
        names = [name for name in losses.samples if name in self.weights]
        teachers = list(dict.fromkeys(name.partition("/")[0] for name in names))
        if not self.training or len(teachers) < 2:
            return super().forward(losses)
        assert losses.draws is not None, "a training step has random numbers"
        table = torch.stack(
            [
                torch.stack([self.weights[name] * losses.samples[name] for name in names if name.partition("/")[0] == teacher]).sum(0)
                for teacher in teachers
            ]
        )  # [T, B]
        kept = uniform(losses.draws, range(1, len(teachers) + 1)) >= self.probability
        kept = kept | F.one_hot(table.detach().argmax(0), len(teachers)).T.bool()
        share = (1 + (len(teachers) - 1) * (1 - self.probability)) / len(teachers)
        return table.where(kept, 0).sum(0).mean() / share
