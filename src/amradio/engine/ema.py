"""A moving average of a module's weights."""

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Ema(Generic[Module]):
    """Keeps `average`, a copy of a module whose floating-point state follows it with a decay."""

    def __init__(self, module: Module, decay: float, state_of: Callable[[nn.Module], dict[str, Tensor]] = nn.Module.state_dict):
        """decay: of the average per step; 0.9996 in C-RADIOv4. state_of: the state of what is trained, with the keys of `module`."""
        self.decay, self.state_of = decay, state_of
        self.average: Module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the module's present weights; other state is copied."""
        averages, present = self.average.state_dict(), self.state_of(module)
        floats = [key for key, value in averages.items() if value.is_floating_point()]
        torch._foreach_lerp_([averages[key] for key in floats], [present[key] for key in floats], 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
        for key in averages.keys() - floats:
            averages[key].copy_(present[key])

    def state_dict(self) -> dict[str, Tensor]:
        """That of the average."""
        return self.average.state_dict()
