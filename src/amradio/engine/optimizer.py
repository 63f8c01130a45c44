"""The optimizer and its schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from .settings import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings, no_decay: Iterable[str]) -> torch.optim.AdamW:
    """Fused AdamW over all parameters of `model`; vectors and the names in `no_decay` (tokens, position tables) do not decay."""
    spared = set(no_decay)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in named if parameter.ndim >= 2 and name not in spared]
    kept = [parameter for name, parameter in named if parameter.ndim < 2 or name in spared]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon, fused=True)


def learning_rate(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Learning rate of `step` (from 0) in a stage of `num_steps`: linear warm-up, then cosine to `final_learning_rate`."""
    warmup = min(settings.warmup_steps, num_steps // 10)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    spread = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + spread * 0.5 * (1 + math.cos(math.pi * progress))
