"""How long a training runs: a number of steps (reproducible), a number of minutes, or whichever ends first."""

import math
import time


class Budget:
    def __init__(self, steps: int | None, minutes: float | None) -> None:
        if not steps and not minutes:
            raise ValueError("give --steps or --minutes")
        self.steps, self.minutes, self.step, self.start = steps, minutes, 0, time.monotonic()

    @property
    def elapsed(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.start) / 60

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        parts = [self.step / self.steps if self.steps else 0.0, self.elapsed / self.minutes if self.minutes else 0.0]
        return min(1.0, max(parts))

    def rate(self, peak: float, warm_up: float = 0.04) -> float:
        """The learning rate now: linear warm-up, then half a cosine down to 1 % of `peak`."""
        progress = self.progress
        if progress < warm_up:
            return peak * max(progress, 1e-3) / warm_up
        return peak * (0.01 + 0.99 * half_cosine((progress - warm_up) / (1 - warm_up)))


def half_cosine(progress: float) -> float:
    """1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))
