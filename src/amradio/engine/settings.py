"""Settings of the engine: device, precision, optimizer, checkpoints, logs."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Literal, Self

import pydantic

from ..config import AsTuple, Autocast, Decay, Device, Factor, Momentum, Natural, Positive, Rate, Settings, Threads
from .track import Opener, openers


class RateSettings(Settings):
    """Factors of the learning rate for parts of the network."""

    body: Factor = 1.0
    """Of the student."""
    heads: Factor = 1.0
    """Of the heads."""
    norms: Factor = 1.0
    """Of weights and biases of norms, times that of the part that they are in."""


Milestone = Annotated[float, pydantic.Field(gt=0, lt=1)]
"""A share of a stage, without its ends."""


class OptimizerSettings(Settings):
    """The optimizer, with warm-up and cosine (or milestones) in every stage."""

    algorithm: Literal["adamw", "lamb", "nadamw", "lion"] = "adamw"
    """adamw (AM-RADIO); lamb, which scales the update of each matrix to the matrix's norm (PHI-S); nadamw, AdamW with Nesterov momentum;
    lion, which has one average in place of two and wants a learning rate 3 to 10 times smaller (arXiv 2302.06675)."""
    learning_rate: Rate = 1e-3
    """Peak learning rate (AM-RADIO: 1e-3 at a batch of 1024)."""
    final_learning_rate: Rate = 0.0
    """Where the cosine ends."""
    milestones: Annotated[list[Milestone], pydantic.Field(max_length=100)] = pydantic.Field(default_factory=list)
    """Shares of the stage, in order, at each of which the rate falls to a tenth, in place of the cosine; empty for the cosine."""
    warmup_steps: Natural = 1000
    """Steps of linear warm-up at the start of each stage, at most a tenth of the stage."""
    weight_decay: Decay = 0.02
    """Decay of matrices (AM-RADIO: 0.02); norms, biases, tokens and position tables are left alone."""
    betas: Annotated[tuple[Momentum, Momentum], AsTuple] = (0.9, 0.999)
    """Decay of Adam's averages of the gradient and of its square; torch's own."""
    epsilon: Annotated[float, pydantic.Field(gt=0, le=1)] = 1e-8
    """Added to the root of Adam's second average; torch's own. Not for lion, which has no second average."""
    clip: Annotated[float, pydantic.Field(gt=0, le=1e6)] | None = 1.0
    """Largest norm of the gradient; null for none."""
    rates: RateSettings = RateSettings()
    """Learning rates of parts of the network."""
    layer_decay: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each layer of the student to the one before it (BEiT: 0.65 to 0.95); 1 for the same rate everywhere.
    The last layer has the rate of the body."""

    @pydantic.model_validator(mode="after")
    def _milestones_in_order(self) -> Self:
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones: shares of the stage, each larger than the one before, found {self.milestones}")
        if self.milestones and self.final_learning_rate:
            raise ValueError("final_learning_rate: there is no cosine where milestones are given; leave one of the two out")
        return self

    @pydantic.model_validator(mode="after")
    def _no_idle_epsilon(self) -> Self:
        if self.algorithm == "lion" and "epsilon" in self.model_fields_set and self.epsilon != type(self).model_fields["epsilon"].default:
            raise ValueError(f"epsilon: lion divides by no average, so {self.epsilon:g} would do nothing; leave it out")
        return self


class RunEngineSettings(Settings):
    """How a run is carried out, whatever is trained. Nothing here changes what is learnt but `precision` and `accumulate`."""

    device: Device = "auto"
    precision: Autocast = "auto"
    accumulate: Positive = 1
    """Pieces into which a step's batch is cut to save memory; the gradients are added up."""
    threads: Threads | None = None
    """CPU threads a process, at most one for each core; null leaves torch's choice."""
    log_every: Positive = 50
    """Steps between log lines; losses are averages over the interval, cosines of its last step."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints; there is one more at the end and on SIGINT and SIGTERM."""
    keep: Positive = 2
    """Checkpoints that are kept, the newest."""
    track: bool = False
    """Also write TensorBoard event files (needs `pip install 'amradio[track]'`)."""

    wandb: Literal["offline", "online"] | None = None
    """Also log to Weights & Biases (needs `pip install 'amradio[wandb]'`): offline writes files into `wandb/` of the run, which
    `wandb sync` uploads; online sends the numbers while the run goes."""

    def trackers(self) -> Sequence[Opener]:
        """The loggers of other projects that these settings ask for."""
        return openers(self.track, self.wandb)

    def missing_extras(self) -> list[str]:
        """What these settings ask for and is not installed, one sentence each."""
        wanted = {("track", "tensorboard"): self.track, ("wandb", "wandb"): self.wandb is not None}
        return [
            f"engine.{key}: {library} is not installed; pip install 'amradio[{key}]', or leave the key out"
            for (key, library), is_wanted in wanted.items()
            if is_wanted and find_spec(library) is None
        ]


class EngineSettings(RunEngineSettings):
    """How a run is carried out. Nothing here changes what is learnt but `precision`, `compile`, `accumulate` and `ema`."""

    compile: bool = False
    """torch.compile for student and teachers: slower to start, faster on a GPU."""
    ema: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which is then what is evaluated and handed over (C-RADIOv4: 0.9996)."""
    channels_last: bool = False
    """Convolutions of the student in the memory format `channels_last`: the same numbers but for their last bits. Forward and backward of
    timm's MobileNetV4 and EfficientNet take 0.62 to 0.73 of the time on a CPU, of a ResNet 0.9, of a ConvNeXt as long
    (`memory_format.json`). E-RADIO always has it."""
    prepare_ahead: bool = False
    """Teachers look at the next step's images in a thread of their own while the student learns, each with half of the CPU threads. For
    small models on a CPU, which gain little from a second thread each; GPUs work ahead by themselves."""
    report: bool = True
    """Write the page report.html into the run folder at the end, as `amradio report` does."""


WITHOUT_EFFECT = tuple(
    f"engine.{key}" for key in ("device", "log_every", "checkpoint_every", "keep", "track", "wandb", "report", "threads", "prepare_ahead")
)
"""Keys that may change when a run is resumed: they change nothing of what is learnt."""
