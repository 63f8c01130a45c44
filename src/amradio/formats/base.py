"""What every format is: how a model in it is recognised, read and written, and how a user loads what was written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import UserError, near_names
from ..features import Features
from ..files import read_json
from ..names import hub_name, not_a_folder, recognise
from ..network import Network, NetworkConfig
from ..tensors import check_weights
from .embedded_models import embedded_models


class LoadedModel(NamedTuple):
    """A model that was read."""

    config: NetworkConfig
    network: Network
    """On the CPU; in float32, or in the half precision that all weights of the file share."""
    ignored_keys: tuple[str, ...] = ()
    """Keys of the file that are known to do nothing, and were left out."""
    ours: bool = False
    """Whether the file was written by amradio, and so states what it was distilled from."""


class ExportSettings(NamedTuple):
    """What a user may choose at export; a format refuses what it has no place for."""

    heads: tuple[str, ...]
    """Names of the heads that go along, in this order; the model that `Format.write` gets has these and no others."""
    dtype: str = "float32"
    """`float32`, `float16` or `bfloat16`: of the weights."""
    image_size: int | None = None
    """Pixels at which a format of one fixed size is made; None for the model's own."""
    spectral: bool = False
    """Whether linear layers are written in the form of spectral reparametrisation, for training code that goes on in it."""


class Format:
    """One format. Reading and writing never run code from a file."""

    name: str
    """The word of `amradio export --format`."""
    suffix: str = ""
    """How a written file ends; empty where a folder is written."""
    reader: str = "amradio's own reader"
    """What `outputs` computes with: the target library, or our reader where there is none to be installed."""

    takes_image_size: bool = False
    """Whether `ExportSettings.image_size` means something to it; the command refuses it elsewhere."""
    takes_spectral: bool = False
    """The same of `ExportSettings.spectral`."""

    def recognises(self, path: Path) -> bool:
        """Whether the file or folder is of this format: from its content, reading little, running nothing, raising nothing."""
        raise NotImplementedError

    def read(self, path: Path, align_corners: bool | None = None) -> LoadedModel:
        """Reads a model. align_corners: how a ViT's position table is stretched; None for what the format says, or false.

        Raises UserError for a damaged file, a missing or left-over key, a wrong shape.
        """
        raise NotImplementedError

    def unsupported_reasons(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """Why this model cannot be written in this format, one sentence each; empty where it can, as in a format for every network.

        Heads without a place are no reason: see `supported_heads`.
        """
        del config, network
        return ()

    def supported_heads(self, config: NetworkConfig) -> tuple[str, ...]:
        """Names of the heads that this format has a place for: all, unless a format says otherwise."""
        return tuple(config.heads)

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        """Writes to `target`: a file that does not exist, or an empty folder where `suffix` is empty. Raises UserError where it cannot.

        model: its floating-point weights have the dtype of the settings already. The card of a folder is not written here.
        """
        raise NotImplementedError

    def tolerance(self, settings: ExportSettings) -> float:
        """Largest difference of an output that counts as the same model, as a share of the output's deviation (of 1 where that is less)."""
        del settings
        return 1e-4

    def sizes(self, model: LoadedModel, settings: ExportSettings) -> tuple[tuple[int, int], ...]:
        """(height, width) in px at which the written model is compared with ours: two, one of them not square, where both are legal."""
        del settings
        return model.network.student.nearest_size(128, 128), model.network.student.nearest_size(96, 160)

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> Mapping[str, Features] | None:
        """What the written model says of images [B, 3, H, W] in [0, 1], computed by `reader`; None where that is not installed.

        In float32 from the written weights, so that half weights compare as exactly as full ones (a format whose file computes in half
        says so in its `tolerance`). By name: `backbone` and the heads. Inside a `Features`, a kind that the library has not is None.
        """
        raise NotImplementedError

    def stated_ancestors(self, target: Path) -> Any:
        """`NetworkConfig.distilled_from` as plain values, from the metadata of a file that was written here."""
        raise NotImplementedError

    def rules(self, target: Path, model: LoadedModel, settings: ExportSettings) -> str | None:
        """What a reader that is not run here makes of the written file by its published rules, in words; None where none is needed.

        Raises UserError where that is not the model.
        """
        del target, model, settings

    def snippet(self, target: Path, settings: ExportSettings) -> str:
        """The Python lines with which a user loads `target`."""
        raise NotImplementedError


CONFIG_FILE = "config.json"
NAMED_RUNS = 5
"""Runs that a message names; the rest is counted."""
WANTED = "a model folder (RUN/model), a run folder or a checkpoint file"


def peek(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no whole one."""
    try:
        return read_json(file)
    except UserError:
        return None


def absent(text: str) -> UserError:
    """Of a text that names no file or folder."""
    before, _, revision = text.partition("@")
    name_given = recognise(before)
    name = name_given.text if name_given.kind == "hub" else hub_name(name_given.text) if name_given.kind == "url" else None
    if name is not None:
        what = "this is a URL" if name_given.kind == "url" else "there is no such file or folder"
        revision = f" --revision {revision}" if revision else ""
        way = f"to load it from the hub run `hf download {name}{revision} --local-dir FOLDER`, and give FOLDER"
        return UserError(f"{text}: {what}; {_shipped_near(before)}{way}; or give {WANTED}")
    if name_given.kind in ("url", "windows"):
        return UserError(f"{text}: {not_a_folder(name_given, WANTED)}")
    return UserError(f"{text}: there is no such file or folder; {_shipped_near(before)}give {WANTED}")


def _shipped_near(name: str) -> str:
    """The models of the package whose names are near, for a message; empty where there is none."""
    near = near_names(name, embedded_models())
    return f"did you mean {' or '.join(repr(other) for other in near)}, which comes with the package? Else " if near else ""


def refuse(path: Path, forms: tuple[Format, ...]) -> UserError:
    """Of a file or folder that no format recognises."""
    names = ", ".join(form.name for form in forms)
    kind = (peek(path / CONFIG_FILE) or {}).get("model_type") if path.is_dir() else None
    if isinstance(kind, str) and kind != "radio":
        return UserError(f"{path}: its config.json says model_type '{kind[:60]}', which is no student; {_for(kind)}")
    reason = _of_a_run(path) or _of_runs(path)
    if reason is not None:
        return UserError(f"{path}: {reason}")
    if path.is_dir():
        if not (path / CONFIG_FILE).exists():
            return UserError(f"{path}: there is no {CONFIG_FILE} in it; give {WANTED}")
        return UserError(f"{path}: not a model in a format that is read here ({names})")
    try:
        check_weights(path)
    except UserError as error:
        return error
    return UserError(f"{path}: not a model in a format that is read here ({names})")


def _for(kind: str) -> str:
    """What a folder of another kind is good for. kind: its model_type."""
    if kind == "llava":
        return "it is a vision-language model, for `amradio evaluate` and `amradio vlm export`"
    return "it may be a teacher in a recipe"


def _of_a_run(path: Path) -> str | None:
    """What to give in place of a run folder without a model that can be read, or of a part of a run folder."""
    config = path / "model" / CONFIG_FILE
    if _is_run(path) or config.exists():
        if config.exists():
            kind = (peek(config) or {}).get("model_type")
            if isinstance(kind, str):
                return f"{config} says model_type '{kind[:60]}', which is no student; {_for(kind)}"
            return f"{config} does not say `format: amradio`, so it is damaged; restore it, or resume the run, which writes it again"
        return "this run has no model yet: it is written with the first checkpoint; resume the run by the command that began it"
    above = next((parent for parent in list(path.parents)[:3] if _is_run(parent)), None)
    if above is not None:
        return f"this is a part of the run folder {above}; give {above}, or {above / 'model'}"
    return None


def _of_runs(path: Path) -> str | None:
    """What to give in place of a folder of several runs or models."""
    if not path.is_dir() or (path / CONFIG_FILE).exists():
        return None
    try:
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    except OSError:
        return None
    inside = [folder for folder in folders if _is_run(folder) or _format_in(folder / CONFIG_FILE) == "amradio"]
    if not inside:
        return None
    named = ", ".join(str(folder) for folder in inside[:NAMED_RUNS])
    more = f" and {len(inside) - NAMED_RUNS} more" if len(inside) > NAMED_RUNS else ""
    return f"this folder is no model, but {len(inside)} in it {'is' if len(inside) == 1 else 'are'}; give {named}{more}"


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and any((path / name).exists() for name in ("model", "checkpoints", "network.json"))


def _format_in(file: Path) -> Any:
    """The key `format` of a JSON file; None where there is no such file or key."""
    return (peek(file) or {}).get("format") if file.is_file() else None
