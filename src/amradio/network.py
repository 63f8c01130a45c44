"""The network that is trained and handed over: one student and a head per teacher, and its model folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .config import Settings, one_of, validate
from .errors import UserError
from .features import Features
from .heads import HEADS, Head
from .students import STUDENTS
from .students.base import Student

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class HeadPart(Settings):
    """One kind of one head."""

    head: one_of(HEADS)  # type: ignore[valid-type]
    """The layers."""
    dim: int
    """Channels of the teacher's feature."""


class HeadConfig(Settings):
    """The head of one teacher."""

    summary: HeadPart | None = None
    spatial: HeadPart | None = None
    slot: int = 0
    """Which of the student's summaries it reads."""
    teacher: dict[str, str | int | float | None] = pydantic.Field(default_factory=dict)
    """What the model card says of the teacher: kind, source, licence."""


class NetworkConfig(Settings):
    """What `config.json` of a model folder says, and all that is needed to build the network."""

    format: Literal["amradio"] = "amradio"
    version: int = 1
    student: one_of(STUDENTS)  # type: ignore[valid-type]
    num_summaries: int
    heads: dict[str, HeadConfig] = pydantic.Field(default_factory=dict)
    image_size: int | None = None
    """Pixels at which it was trained last; the size to prefer."""

    def build(self) -> "Network":
        """A network with fresh weights (or started from those that the student's settings name)."""
        student = self.student.build(self.num_summaries)
        return Network(student, {name: _build_head(head, student) for name, head in self.heads.items()})

    def without_start(self) -> "NetworkConfig":
        """The same network, to be filled from its own weights and from nothing else."""
        if getattr(self.student, "start_from", None) is None:
            return self
        return self.model_copy(update={"student": self.student.model_copy(update={"start_from": None})})


def _build_head(config: HeadConfig, student: Student) -> Head:
    summary = config.summary and config.summary.head.build(student.summary_dim, config.summary.dim)
    spatial = config.spatial and config.spatial.head.build(student.spatial_dim, config.spatial.dim)
    return Head(summary, spatial, config.slot, student.summary_dim)


class Network(nn.Module):
    """A student and its heads, by the name of their teacher."""

    def __init__(self, student: Student, heads: dict[str, Head]):
        super().__init__()
        self.student = student
        self.heads = nn.ModuleDict(heads)

    def forward(self, images: Tensor, draws: Tensor | None = None, heads: Iterable[str] = ()) -> dict[str, Features]:
        """Features of the backbone and of the named heads.

        images: [B, 3, H, W], RGB in [0, 1]; draws: [B, 8] uniform in [0, 1), the random numbers of a training step.
        Returns `backbone` (summary [B, num_summaries * summary_dim], spatial [B, H', W', D]) and one entry a head.
        """
        backbone = self.student(images, draws)
        return {"backbone": backbone} | {name: self.heads[name](backbone) for name in heads}


def read_folder(path: str | Path) -> tuple[NetworkConfig, Network]:
    """Reads a model folder (config.json and model.safetensors), or that of a run folder, on the CPU.

    Raises UserError where there is none, a file is damaged, or weights and config do not fit.
    """
    folder = Path(path)
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder; give a model folder (RUN/model) or a run folder")
    if not (folder / CONFIG_FILE).is_file() and (folder / "model" / CONFIG_FILE).is_file():
        folder = folder / "model"
    config = read_config(folder)
    network = config.without_start().build()
    weights = read_weights(folder / WEIGHTS_FILE)
    load_exactly(network, weights, str(folder / WEIGHTS_FILE))
    return config, network


def read_config(folder: Path) -> NetworkConfig:
    """The config.json of a model folder."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder}: there is no {CONFIG_FILE}; give a model folder (RUN/model) or a run folder")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid JSON ({error}); the file is damaged") from None
    if not isinstance(data, dict) or data.get("format") != "amradio":
        kind = data.get("model_type") if isinstance(data, dict) else None
        raise UserError(f"{file}: not a model folder of amradio (model_type: {kind}); this version reads its own format only")
    return validate(NetworkConfig, data, where=f"{file}: ")


def read_weights(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; raises UserError where it is missing or damaged."""
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; the model folder is not complete")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); copy it again") from None


def load_exactly(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Fills `module` from `weights`; raises UserError that names every missing, left-over and misshapen key (at most 10 each)."""
    own = module.state_dict()
    missing = [key for key in own if key not in weights]
    extra = [key for key in weights if key not in own]
    shapes = [
        f"{k} is {list(weights[k].shape)}, not {list(own[k].shape)}" for k in own if k in weights and weights[k].shape != own[k].shape
    ]
    found = [
        f"{where}: {what}: {', '.join(keys[:10])}{f' and {len(keys) - 10} more' if len(keys) > 10 else ''}"
        for what, keys in (("missing", missing), ("not known", extra), ("wrong shape", shapes))
        if keys
    ]
    if found:
        raise UserError(*found)
    with torch.no_grad():
        module.load_state_dict(weights)
