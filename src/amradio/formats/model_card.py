"""The model card: what a model is, whose terms it is under, how it was made and measured, and how each format of it is loaded."""

from collections.abc import Mapping

from ..errors import UserError
from ..licences import RESTRICTED, UNKNOWN, front_matter
from ..names import recognise
from ..network import Network, NetworkConfig, TrainingFacts
from ..students.base import CLIP_MEAN, CLIP_STD
from ..yaml12 import parse_yaml

LIBRARIES = {"transformers": "transformers", "timm": "timm", "onnx": "onnx"}
"""Format -> the library that the front matter names; amradio for the others."""
AGREEMENT = {
    "standardized_cosine": "standardized cosine",
    "norm_ratio": "norm ratio",
    "cosine": "raw cosine",
    "constant_cosine": "raw cosine of a constant",
}
"""Measure of held-out agreement -> its column."""


def card(config: NetworkConfig, network: Network, loading: Mapping[str, str]) -> str:
    """The model card in Markdown with a YAML front matter. loading: format -> the lines that load the model in it."""
    parts = [
        _front_matter(config, loading),
        _introduction(config, network),
        _loading(loading),
        _input(config, network),
        _use(config),
        _teachers(config),
        _training(config.training) if config.training else "",
        CITATION,
    ]
    return "\n".join(part for part in parts if part)


CITATION = """## Citation

The method is that of AM-RADIO; the software is amradio (Apache-2.0).

```bibtex
@inproceedings{ranzinger2024amradio,
  title     = {AM-RADIO: Agglomerative Vision Foundation Model Reduce All Domains Into One},
  author    = {Ranzinger, Mike and Heinrich, Greg and Kautz, Jan and Molchanov, Pavlo},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024}
}
```
"""


def _use(config: NetworkConfig) -> str:
    """What the model is for, and what it cannot be expected to do."""
    lines = [
        "## Intended use and limits",
        "",
        "Features of images: for retrieval, classification by a linear layer, dense prediction, or as the backbone of a larger model.",
    ]
    if config.heads:
        lines.append(
            f"The heads ({', '.join(config.heads)}) stand in for their teachers, with the teachers' own text encoders and mask decoders."
        )
    lines += [
        "It has learnt what its teachers predict for its training images: on other images, at other sizes and on what the teachers",
        "do not know it is worse than they are, and it shares their biases. Measure it on your images before you rely on it",
        "(`amradio evaluate`).",
        "",
    ]
    return "\n".join(lines)


def _front_matter(config: NetworkConfig, loading: Mapping[str, str]) -> str:
    library = next((LIBRARIES[name] for name in loading if name in LIBRARIES), "amradio")
    tags = "[image-feature-extraction, distillation, am-radio, amradio]"
    lines = [f"library_name: {library}", "pipeline_tag: image-feature-extraction", f"tags: {tags}", *front_matter(config.distilled_from)]
    lines += _datasets(config.training.recipe) if config.training and config.training.recipe else []
    lines += _model_index(config.training) if config.training and config.training.agreement else []
    return "\n".join(["---", *lines, "---"])


def _datasets(recipe: str) -> list[str]:
    """The data sets of the hub that a recipe trains on; folders and shards of a machine have no name there."""
    try:
        content = parse_yaml(recipe, "recipe")
    except UserError:  # of a folder that was written by hand
        return []
    train = content.get("data", {}).get("train", {}) if isinstance(content, dict) and isinstance(content.get("data"), dict) else {}
    sources = [train, *train.get("sources", {}).values()] if isinstance(train, dict) else []
    paths = [str(source.get("path")) for source in sources if isinstance(source, dict) and source.get("type") == "huggingface"]
    names = dict.fromkeys(path for path in paths if recognise(path).kind == "hub")
    return ["datasets:", *(f"- {name}" for name in names)] if names else []


def _model_index(training: TrainingFacts) -> list[str]:
    """The held-out agreement as results that the hub shows."""
    lines = ["model-index:", "- name: student", "  results:"]
    for feature, row in training.agreement.items():
        if "standardized_cosine" in row:
            value = f"{row['standardized_cosine']:.4f}"
            lines += [
                "  - task: {type: image-feature-extraction}",
                "    dataset: {type: held-out, name: held-out images of the run}",
                f'    metrics: [{{type: standardized_cosine, name: "{feature} against its teacher", value: {value}}}]',
            ]
    return lines if len(lines) > 3 else []


def _introduction(config: NetworkConfig, network: Network) -> str:
    million = sum(parameter.numel() for parameter in network.student.parameters()) / 1e6
    heads = sum(parameter.numel() for parameter in network.heads.parameters()) / 1e6
    teachers = dict.fromkeys(ancestor.name for ancestor in config.distilled_from)
    lines = [
        f"# {config.student.type} student of {', '.join(teachers) or 'no teacher'}",
        "",
        f"One backbone of {million:.2f} M parameters: a summary of {network.summary_dim} channels for the image, and a map with a vector",
        f"of {network.spatial_dim} channels for every {network.student.patch_size} x {network.student.patch_size} px.",
    ]
    if config.heads:
        lines += [f"A head per teacher ({heads:.2f} M parameters together) predicts features in that teacher's space."]
    if config.origin:
        lines += ["", f"Made from {config.origin}; the terms of that model hold for this one."]
    return "\n".join([*lines, ""])


def _loading(loading: Mapping[str, str]) -> str:
    lines = ["## Load it", ""]
    for name, snippet in loading.items():
        lines += [f"Format `{name}`:", "", "```python", snippet, "```", ""]
    return "\n".join(lines)


def _input(config: NetworkConfig, network: Network) -> str:
    low, high = network.student.nearest_size(1, 1)
    lines = ["## Input", "", f"RGB. Sides are multiples of {low} px" + (f" and {high} px" if high != low else "") + "."]
    if config.image_size is not None:
        lines[-1] += f" The size to prefer is {config.image_size} px."
    if sizes := config.sizes_of_heads():
        lines.append(f"Heads were trained at several sizes: {sizes}.")
    lines += [
        f"Normalised with mean {list(CLIP_MEAN)} and std {list(CLIP_STD)} of values in [0, 1]; in amradio, torch hub and",
        "transformers the model does that itself.",
        "",
    ]
    return "\n".join(lines)


def _teachers(config: NetworkConfig) -> str:
    """All models that this one was distilled from, whether it has a head for them or not."""
    if not config.distilled_from:
        return ""
    lines = ["## Teachers and their terms", ""]
    lines += ["| head | summary | spatial | teacher | licence of the teacher's weights | which implies |", "|---|--:|--:|---|---|---|"]
    for ancestor in config.distilled_from:
        head = config.heads.get(ancestor.name)
        head = head if head is not None and (head.teacher.get("source") or "not stated") == ancestor.source else None
        dims = " | ".join(str(part.dim) if part else "-" for part in ((head.summary, head.spatial) if head else (None, None)))
        lines.append(
            f"| {_cell(ancestor.name)} | {dims} | {_cell(ancestor.source)} | {_cell(ancestor.licence)} | {_cell(ancestor.implies)} |"
        )
    lines += ["", "A model distilled from weights under a licence may be bound by it: read the licences of the teachers."]
    if any(ancestor.name not in config.heads for ancestor in config.distilled_from):
        lines.append("Teachers without channels have no head in this file; the backbone was distilled from them all the same.")
    strict = list(dict.fromkeys(ancestor.name for ancestor in config.distilled_from if ancestor.implies in RESTRICTED))
    unknown = list(dict.fromkeys(ancestor.name for ancestor in config.distilled_from if ancestor.implies == UNKNOWN))
    if strict:
        lines.append(f"**The weights of {', '.join(strict)} are not for commercial use.**")
    if unknown:
        lines.append(f"The terms of {', '.join(unknown)} are not known to amradio.")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """A text of a file as it can stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _training(training: TrainingFacts) -> str:
    lines = ["## Training", "", f"{training.step} of {training.num_steps} steps on {training.data}.", ""]
    if training.target_spaces:
        spaces = ", ".join(f"{_cell(space)} for {kind} features" for kind, space in training.target_spaces.items())
        lines += [f"Target spaces in training: {spaces}. Their inverse is folded into the heads, which predict raw teacher features.", ""]
    if training.agreement:
        at = "" if training.evaluated is None else f" at step {training.evaluated}"
        older = ", before the last steps of these weights" if training.evaluated not in (None, training.step) else ""
        lines += [
            f"Held-out agreement with the teachers{at}{older}.",
            "Standardized: centred and scaled per channel, where a constant prediction scores 0.",
            "Norm ratio: how much predictions vary around the mean against the teacher; 1 is right, and no standardized cosine shows it.",
            "",
        ]
        lines += agreement_table(training.agreement)
        lines.append("")
    if training.recipe:
        lines += ["<details><summary>The recipe</summary>", "", "```yaml", training.recipe.rstrip(), "```", "", "</details>", ""]
    return "\n".join(lines)


def agreement_table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown lines of the rows of `evaluation.agreement`, by feature; what an older run did not measure is `-`."""
    lines = [f"| feature | {' | '.join(AGREEMENT.values())} |", f"|---|{'--:|' * len(AGREEMENT)}"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{row[key]:.3f}' if key in row else '-' for key in AGREEMENT)} |")
    return lines
