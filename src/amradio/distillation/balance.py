"""Balance: how the losses of teachers and kinds become one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from ..config import Settings

if TYPE_CHECKING:
    from torch import Tensor

Weights = Mapping[str, float]
Balance = Callable[[Mapping[str, "Tensor"]], "Tensor"]


class FixedSettings(Settings):
    """The sum of the losses times their teacher's weights: AM-RADIO's final choice (Table 4: nothing adaptive did better overall)."""

    type: Literal["fixed"] = "fixed"

    def build(self, weights: Weights) -> Balance:
        """weights: by name of the loss, e.g. `clip/summary`. The result maps losses (float32 scalars) to their weighted sum."""

        def fixed(losses: Mapping[str, Tensor]) -> Tensor:
            return sum((weights[name] * loss for name, loss in losses.items() if weights[name]), start=next(iter(losses.values())) * 0)

        return fixed


BALANCES = (FixedSettings,)
