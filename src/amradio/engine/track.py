"""Loggers of other projects, beside metrics.jsonl: TensorBoard, Weights & Biases. Their libraries are imported at the first number."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

WandbMode = Literal["offline", "online"]
PROJECT = "amradio"
"""Of Weights & Biases, unless the variable WANDB_PROJECT names another."""


class Tracker(Protocol):
    """One of these loggers, for one run."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers by name; steps never go back."""
        ...

    def close(self) -> None:
        """After the last number."""
        ...


Opener = Callable[[Path, int], Tracker]
"""(run folder, step from which the run resumed, 0 for a new one) -> a tracker."""


class TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, folder: Path, resumed_at: int):
        from torch.utils.tensorboard import SummaryWriter  # an extra, and slow to import

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """As of `Tracker`."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """As of `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `amradio`, with its files in `wandb/` of the run folder.

    Resuming a run folder resumes the same run there: its id is made of the folder's path. Steps that a resumed run computes again have the
    numbers that are there already, and Weights & Biases leaves them out.
    """

    def __init__(self, mode: WandbMode, folder: Path, resumed_at: int):
        """mode: offline writes files alone, which `wandb sync` uploads when the user wants it; online sends every number."""
        import wandb  # pyright: ignore[reportMissingImports] - an extra

        path = folder.resolve()
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=path.name,
            id=hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:16],
            dir=str(folder),
            config={"out": str(path), "resumed_at": resumed_at},
            mode=mode,
            resume="allow",
        )

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """As of `Tracker`."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """As of `Tracker`."""
        self._run.finish()


def openers(tensorboard: bool, wandb: WandbMode | None) -> Sequence[Opener]:
    """Those that a run wants."""
    wanted: list[Opener] = [TensorBoard] if tensorboard else []
    if wandb is not None:
        wanted.append(lambda folder, resumed_at: WeightsAndBiases(wandb, folder, resumed_at))
    return wanted
