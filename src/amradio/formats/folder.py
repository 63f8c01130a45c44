"""The model folder: config.json, model.safetensors and README.md (the model card)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..network import CONFIG_FILE, WEIGHTS_FILE, Network, NetworkConfig


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
