"""The loop of every training: optimizer steps, and hooks that log, evaluate and save between them."""

from collections.abc import Callable, Sequence
from typing import Protocol

from ..console import duration
from ..interruption import Stop, StopAskedError
from .distributed import Processes
from .log import Log
from .monitor import Monitor


class Hook(Protocol):
    """Something that is done between two steps. Once it has run at a step, it is no longer due there."""

    def due(self, step: int, stopping: bool) -> bool:
        """Whether it is to be run when `step` steps are done. stopping: the run ends here, at a user's or a scheduler's wish."""
        ...

    def run(self, step: int) -> None:
        """Does it. May raise StopAskedError, with nothing changed, where a stop is asked for meanwhile."""
        ...


def is_due(step: int, period: int | None, num_steps: int) -> bool:
    """Whether `step` is a multiple of the period or the run's end; never for None."""
    return period is not None and (step % period == 0 or step == num_steps)


class Reporting:
    """Logs the numbers of the steps since the last report, and checks that they are finite, before anything is saved. A hook."""

    def __init__(self, monitor: Monitor, periods: Sequence[int], num_steps: int):
        """periods: steps between reports, and between whatever else needs a report before it. num_steps: of the whole run."""
        self.monitor, self.periods, self.num_steps = monitor, tuple(periods), num_steps

    def due(self, step: int, stopping: bool) -> bool:
        """Whether there is something to report, and `step` is a multiple of one of the periods."""
        return self.monitor.has_steps and (stopping or any(is_due(step, period, self.num_steps) for period in self.periods))

    def run(self, step: int) -> None:
        """One line; raises UserError where a number is not finite."""
        self.monitor.flush(step)


class Loop:
    """Takes one step after another; before the first and after each of them it runs its hooks, in order, until none is due."""

    def __init__(self, processes: Processes, log: Log, stop: Stop, num_steps: int, ask_every: int):
        """num_steps: of the whole run. ask_every: steps after which several processes ask one another whether to stop."""
        self.processes, self.log, self.stop = processes, log, stop
        self.num_steps, self.ask_every = num_steps, ask_every
        self._stopping = False

    def run(self, first: int, take_step: Callable[[int], None], hooks: Sequence[Hook]) -> int:
        """From step number `first` to the end, or until a signal asks to stop; returns the number of steps that are done."""
        step = first
        with self.stop as stop, self.log.alive():
            self._run_hooks(step, hooks)
            while step < self.num_steps and not self._stopping:
                take_step(step)
                step += 1
                self._run_hooks(step, hooks)
            is_pending = any(hook.due(step, False) for hook in hooks)
            stop.was_followed = self._stopping and (step < self.num_steps or is_pending)
        return step

    def _run_hooks(self, step: int, hooks: Sequence[Hook]) -> None:
        """Runs the hooks that are due when `step` steps are done, the first of the list first, until none is due."""
        if self.processes.world_size == 1 or is_due(step, self.ask_every, self.num_steps):
            self._stopping = self._stopping or self.processes.any(self.stop.asked)
        while (hook := next((hook for hook in hooks if hook.due(step, self._stopping)), None)) is not None:
            try:
                hook.run(step)
            except StopAskedError:
                self._stopping = True

    def conclude(self, first: int, step: int, seconds: float, result: str) -> None:
        """Logs how the run ended.

        first, step: steps that were done when it began and when it ended. seconds: how long it took. result: where the result is.
        """
        num_steps, log = self.num_steps, self.log
        if self.stop.was_followed:
            left = "" if step < num_steps else ", before the last evaluation"
            log.say(f"Stopped ({self.stop.name}) at step {step} of {num_steps}{left}. Run the same command to resume.")
            return
        steps = f"{num_steps} steps" if not first else f"the last {num_steps - first} of {num_steps} steps"
        took = f"{seconds:.0f} s" if seconds < 120 else duration(seconds)
        done = f"Finished {steps} in {took}" if step > first else f"All {num_steps} steps were done"
        log.say(f"{done}. {result}")
