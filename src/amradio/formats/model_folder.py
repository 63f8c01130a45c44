"""The model folder: config.json, model.safetensors and README.md (the model card)."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import validate
from ..errors import UserError
from ..features import Features
from ..files import aside, read_json
from ..licences import Ancestor
from ..network import Network, NetworkConfig, TrainingFacts
from ..students.base import Student
from ..students.eradio import DEAD_NORM
from ..students.eradio_settings import EradioSettings
from ..tensors import read_tensors, tensor_shapes, write_tensors
from .base import CONFIG_FILE, ExportSettings, Format, LoadedModel, peek
from .building import check_fits, filled
from .model_card import card

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CARD_FILE = "README.md"
ANCESTRY = "distilled_from"
"""Key of metadata."""
PLACEHOLDER = "PATH/OF/THIS/FOLDER"
"""How a card names the folder that it lies in."""


class ModelFolder(Format):
    """`amradio`: our own format, which carries everything."""

    name = "amradio"

    def recognises(self, path: Path) -> bool:
        """A folder whose config.json says `format: amradio` (or is no JSON at all: `read` says so), or a run folder with one in `model`."""
        file = folder_of(path) / CONFIG_FILE
        if not os.path.lexists(file):
            return False
        config = peek(file)
        return config is None or config.get("format") == "amradio"

    def read(self, path: Path, align_corners: bool | None = None, custom_student: Student | None = None) -> LoadedModel:
        """Reads our folder.

        custom_student: the object that takes the weights of a student of type `custom`.
        """
        folder = folder_of(path)
        config = read_config(folder)
        if align_corners is not None and "align_corners" in type(config.student).model_fields:
            config = config.model_copy(update={"student": config.student.model_copy(update={"align_corners": align_corners})})
        file = folder / WEIGHTS_FILE
        if custom_student is None:
            check_fits(config, _alive(config, tensor_shapes(file)), str(file))
        return LoadedModel(config, filled(config, _alive(config, read_tensors(file)), str(file), custom_student=custom_student), ours=True)

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        """Writes config.json and model.safetensors."""
        del settings
        _write_model(target, model.config, model.network)

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> Mapping[str, Features]:
        """What the folder, read back, computes."""
        network = self.read(target).network.float().eval()
        with torch.inference_mode():
            return network(images, None, settings.heads)

    def stated_ancestors(self, target: Path) -> Any:
        """`distilled_from` as plain values, from config.json."""
        return read_json(target / CONFIG_FILE)["distilled_from"]

    def snippet(self, target: Path, settings: ExportSettings) -> str:
        """Lines that load it with `amradio.load`."""
        names = f", heads={list(settings.heads)}" if settings.heads else ""
        return (
            f'import amradio\nmodel = amradio.load("{target}")\nfeatures = model.features("photo.jpg"{names})\n'
            f"features = model(images{names})  # or images: RGB in [0, 1], [B, 3, H, W]"
        )


def _alive(config: NetworkConfig, named: dict[str, Any]) -> dict[str, Any]:
    """Less the norm behind E-RADIO's neck, which older folders have and nothing reads."""
    dead = isinstance(config.student, EradioSettings) and config.student.neck
    return {name: value for name, value in named.items() if not (dead and name.startswith(f"student.{DEAD_NORM}"))}


def plain_ancestors(config: NetworkConfig) -> list[dict[str, str]]:
    """`distilled_from` in the plain values that every format can store."""
    return [ancestor.model_dump() for ancestor in config.distilled_from]


def ancestors_in(stated: Mapping[str, Any], where: str) -> list[Ancestor]:
    """What was written under `ANCESTRY`; empty in files from before. Raises UserError, after `where`, where it is something else."""
    ancestry = stated.get(ANCESTRY)
    return [validate(Ancestor, entry, f"{where}{ANCESTRY}.{n}.") for n, entry in enumerate(ancestry if isinstance(ancestry, list) else [])]


def ancestry(config: NetworkConfig) -> dict[str, str]:
    """`distilled_from` as metadata of a file of tensors or a graph."""
    return {ANCESTRY: json.dumps(plain_ancestors(config))}


def folder_of(path: Path) -> Path:
    """The model folder: `path` itself, or `path/model` of a run folder."""
    inside = path / "model" / CONFIG_FILE
    return path / "model" if os.path.lexists(inside) and not os.path.lexists(path / CONFIG_FILE) else path


def read_config(folder: Path) -> NetworkConfig:
    """The config.json of a model folder."""
    file = folder / CONFIG_FILE
    if not os.path.lexists(file):
        raise UserError(f"{folder}: there is no {CONFIG_FILE}; give a model folder (RUN/model) or a run folder")
    data = read_json(file)
    if data.get("format") != "amradio":
        raise UserError(f"{file}: it does not say `format: amradio`; it is not a model folder of amradio")
    return validate(NetworkConfig, data, where=f"{file}: ")


def read_sharded(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of the Hugging Face layout: of `model.safetensors`, or of the shards that its index names."""
    index = folder / INDEX_FILE
    if not os.path.lexists(index):
        return read_tensors(folder / WEIGHTS_FILE)
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{index}: it has no weight_map that names files; copy it again")
    return {key: tensor for name in sorted(set(shards.values())) for key, tensor in read_tensors(folder / Path(name).name).items()}


def write_folder(folder: Path, config: NetworkConfig, network: Network, notes: Mapping[str, Any]) -> None:
    """Writes a model folder with its card: all files aside, then renamed, so that a reader always finds whole files.

    network: with the normalisers folded into its heads. notes: how it was trained, the fields of `TrainingFacts`. The step is in
    config.json and in the metadata of the weights, so that a folder whose files are of different steps is noticed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config.model_copy(update={"training": validate(TrainingFacts, notes)})
    snippet = ModelFolder().snippet(Path(PLACEHOLDER), ExportSettings(tuple(config.heads)))
    _write_model(folder, config, network, {CARD_FILE: card(config, network, {ModelFolder.name: snippet})})


def _write_model(folder: Path, config: NetworkConfig, network: Network, texts: Mapping[str, str] | None = None) -> None:
    """texts: files beside weights and config, by name."""
    metadata = ancestry(config) | ({"step": str(config.training.step)} if config.training else {})
    texts = {CONFIG_FILE: json.dumps(config.without_start().model_dump(mode="json"), indent=1) + "\n", **(texts or {})}
    with ExitStack() as files:  # renamed when all are written, the one that was opened last first
        unfinished = {name: files.enter_context(aside(folder / name)) for name in (*texts, WEIGHTS_FILE)}
        write_tensors(network.state_dict(), unfinished[WEIGHTS_FILE], metadata)
        for name, text in texts.items():
            unfinished[name].write_text(text, encoding="utf-8")
