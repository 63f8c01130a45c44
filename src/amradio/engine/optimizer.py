"""The optimizer and its schedule."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim.lamb import Lamb
from timm.optim.lion import Lion
from timm.optim.nadamw import NAdamW
from torch import Tensor, nn

from .settings import OptimizerSettings

FACTOR = "rate_factor"
"""Key of a parameter group: its learning rate over that of the schedule."""


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, no_decay: Iterable[str], rate_factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer over all trained parameters of `model`; vectors and the names in `no_decay` (tokens, position tables) do not decay.

    rate_factors: learning rates of single parameters over that of the schedule, by name; 1 for all others. Parameters of one factor make
    two groups, those that decay and those that do not.
    """
    spared, factors = set(no_decay), rate_factors or {}
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for factor in sorted({1.0, *factors.values()}):
        groups[factor, True], groups[factor, False] = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[factors.get(name, 1.0), parameter.ndim >= 2 and name not in spared].append(parameter)
    return _optimizer(
        [
            {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0, FACTOR: factor}
            for (factor, decays), parameters in groups.items()
            if parameters or factor == 1
        ],
        settings,
    )


def _optimizer(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas}
    if settings.algorithm == "lion":
        return Lion(groups, **common)
    common["eps"] = settings.epsilon
    if settings.algorithm == "lamb":
        return Lamb(groups, **common, max_grad_norm=None)  # gradients are clipped by the engine, over all processes
    return NAdamW(groups, **common) if settings.algorithm == "nadamw" else torch.optim.AdamW(groups, **common, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, rate: float, factors: Iterable[float]) -> None:
    """Sets the learning rate of each parameter group to `rate` times its factor."""
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group["lr"] = rate * factor


def learning_rate(settings: OptimizerSettings, step: int, num_steps: int) -> float:
    """Learning rate of `step` (from 0) in a stage of `num_steps`: linear warm-up, then cosine to `final_learning_rate`, or a tenth from
    each of the `milestones` on."""
    warmup = min(settings.warmup_steps, num_steps // 10)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.milestones:
        return settings.learning_rate * 0.1 ** sum(step >= milestone * num_steps for milestone in settings.milestones)
    progress = (step - warmup) / max(1, num_steps - warmup)
    spread = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + spread * 0.5 * (1 + math.cos(math.pi * progress))
