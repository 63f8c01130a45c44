"""The model folder: config.json, model.safetensors and README.md (the model card)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import validate
from ..errors import UserError
from ..network import Network, NetworkConfig, load_exactly
from .base import Format, Found

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class ModelFolder(Format):
    """`amradio`: our own format, which carries everything."""

    name = "amradio"

    def recognises(self, path: Path) -> bool:
        """A folder whose config.json says `format: amradio` (or is no JSON at all: `read` says so), or a run folder with one in `model`."""
        file = folder_of(path) / CONFIG_FILE
        if not file.is_file():
            return False
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return True
        return isinstance(found, dict) and found.get("format") == "amradio"

    def read(self, path: Path, align_corners: bool | None = None) -> Found:
        """See the base."""
        folder = folder_of(path)
        config = read_config(folder)
        if align_corners is not None and "align_corners" in type(config.student).model_fields:
            config = config.model_copy(update={"student": config.student.model_copy(update={"align_corners": align_corners})})
        network = config.without_start().build()
        load_exactly(network, read_weights(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
        return Found(config, network)


def folder_of(path: Path) -> Path:
    """The model folder: `path` itself, or `path/model` of a run folder."""
    return path / "model" if (path / "model" / CONFIG_FILE).is_file() and not (path / CONFIG_FILE).is_file() else path


def read_config(folder: Path) -> NetworkConfig:
    """The config.json of a model folder."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder}: there is no {CONFIG_FILE}; give a model folder (RUN/model) or a run folder")
    data = read_json(file)
    if data.get("format") != "amradio":
        raise UserError(f"{file}: it does not say `format: amradio`; it is not a model folder of amradio")
    return validate(NetworkConfig, data, where=f"{file}: ")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError where it is missing, damaged or something else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); the folder is not complete") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); the file is damaged") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: found {type(data).__name__}; it holds an object in a model's folder")
    return data


def read_weights(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; raises UserError where it is missing or damaged."""
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; the model folder is not complete")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); copy it again") from None


def write_folder(folder: Path, config: NetworkConfig, network: Network, notes: Mapping[str, Any]) -> None:
    """Writes a model folder, file by file aside and then renamed, so that a reader always finds whole files.

    network: with the normalisers folded into its heads. notes: what the card says beside it (see `card`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    aside = folder / f".{WEIGHTS_FILE}.part"
    save_file(weights, aside, metadata={"format": "pt"})
    aside.replace(folder / WEIGHTS_FILE)
    _write(folder / CONFIG_FILE, json.dumps(config.without_start().model_dump(mode="json"), indent=1) + "\n")
    _write(folder / "README.md", card(config, network, notes))


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def card(config: NetworkConfig, network: Network, notes: Mapping[str, Any]) -> str:
    """The model card in Markdown. notes: `step`, `num_steps`, `data`, `agreement` (rows as of `evaluation.agreement`)."""
    student = network.student
    parameters = sum(p.numel() for p in student.parameters()) / 1e6
    lines = [
        "---",
        "library_name: amradio",
        "tags: [image-feature-extraction, distillation, am-radio]",
        "---",
        f"# {config.student.type} student of {', '.join(config.heads) or 'no teacher'}",
        "",
        f"One backbone of {parameters:.2f} M parameters, patch {student.patch_size} px, with a head per teacher that speaks",
        f"the teacher's own feature space. Trained for {notes['step']} of {notes['num_steps']} steps on {notes['data']}.",
        "",
        "```python",
        "import amradio",
        'model = amradio.load("PATH/OF/THIS/FOLDER")',
        f"features = model(images, heads={list(config.heads)})  # images: RGB in [0, 1], [B, 3, H, W]",
        "```",
        "",
        f"Input: RGB float in [0, 1], which the model normalises itself; sides are multiples of {student.patch_size} px, ",
        f"trained at {config.image_size} px.",
        "",
        "| head | summary | spatial | teacher | licence of the teacher's weights |",
        "|---|--:|--:|---|---|",
    ]
    for name, head in config.heads.items():
        dims = [str(part.dim) if part else "-" for part in (head.summary, head.spatial)]
        lines.append(f"| {name} | {dims[0]} | {dims[1]} | {head.teacher.get('source')} | {head.teacher.get('licence')} |")
    lines += ["", "A model distilled from weights under a licence may be bound by it: read the licences of the teachers.", ""]
    if notes.get("agreement"):
        lines += ["Held-out agreement with the teachers (cosine of features standardised per channel; a constant answer scores 0):", ""]
        lines += agreement_table(notes["agreement"])
    return "\n".join(lines) + "\n"


def agreement_table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown lines of `{name: {standardised_cosine, cosine, constant_cosine}}`."""
    lines = ["| feature | standardised cosine | raw cosine | raw cosine of a constant |", "|---|--:|--:|--:|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['standardised_cosine']:.3f} | {row['cosine']:.3f} | {row['constant_cosine']:.3f} |")
    return lines
