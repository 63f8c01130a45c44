"""Licences of weights: what is known of them, what they imply, and the list of models that a model was distilled from."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .config import Settings
from .errors import UserError
from .files import read_text

NOT_STATED = "not stated; see the model card"
"""Of a licence that nobody states."""
BY_NAME = (
    ("openai/clip-", "MIT"),
    ("laion/CLIP-", "MIT"),
    ("facebook/metaclip-", "CC BY-NC 4.0"),
    ("apple/DFN", "Apple AMLR (research only)"),
    ("google/siglip", "Apache-2.0"),
    ("PE-", "Apache-2.0"),
    ("vit_pe_", "Apache-2.0"),
    ("timm/PE-", "Apache-2.0"),
    ("timm/vit_pe_", "Apache-2.0"),
    ("apple/aimv2", "Apple AMLR (research only)"),
    ("OpenGVLab/InternV", "MIT"),
    ("depth-anything/Depth-Anything-V2-Small", "Apache-2.0"),
    ("depth-anything/Depth-Anything-V2", "CC BY-NC 4.0"),
    ("LiheYoung/depth-anything", "Apache-2.0"),
    ("facebook/dinov2", "Apache-2.0"),
    ("facebook/dinov3", "DINOv3 License"),
    ("facebook/sam-", "Apache-2.0"),
    ("facebook/sam2", "Apache-2.0"),
    ("facebook/sam3", "SAM License"),
    ("nvidia/C-RADIO", "NVIDIA Open Model License"),
    ("nvidia/RADIO", "NSCL (non-commercial)"),
    ("nvidia/E-RADIO", "NSCL (non-commercial)"),
    ("ViT-H-14 laion2b", "MIT"),
    ("ViT-L-14 datacomp", "MIT"),
    ("ViT-H-14-378-quickgelu dfn", "Apple AMLR (research only)"),
    ("ViT-H-14-quickgelu dfn", "Apple AMLR (research only)"),
    ("ViT-H-14-quickgelu metaclip", "CC BY-NC 4.0"),
    ("ViT-SO400M-14-SigLIP", "Apache-2.0"),
    ("vit_base_patch16_224.augreg", "Apache-2.0"),
    ("vit_base_patch16_224.mae", "CC BY-NC 4.0"),
    ("convnext_base.fb_in22k", "Apache-2.0"),
    ("vit_base_patch16_dinov3_qkvb.eupe", "FAIR Noncommercial Research License"),
    ("convnext_base.eupe", "FAIR Noncommercial Research License"),
    ("resnet50.a1_in1k", "Apache-2.0"),
    ("eva02_large_patch14_448", "MIT"),
    ("embedded ", "Apache-2.0"),
)
"""By the start of the name. Of the weights, as their owners state it; code may have another."""
OFFICIAL = (
    (r"(^|[/_.-])e-?_?radio", "NSCL (non-commercial)"),
    (r"(^|[/_.-])c-?_?radio", "NVIDIA Open Model License"),
    (r"radio_v[34]", "NVIDIA Open Model License"),
    (r"(^|[/_.-])radio", "NSCL (non-commercial)"),
)
"""Pattern in the lower-case name of a file or folder that NVIDIA published (or timm, of these weights) -> licence; the first that fits."""
TERMS = (
    (r"cc.by.nc", "no commercial use"),
    (r"non-?commercial", "no commercial use"),
    (r"research.only", "research only"),
    (r"dinov3", "terms of its own, also for what is derived from it"),
    (r"sam.license", "terms of its own, also for what is derived from it"),
    (r"nvidia.open.model", "commercial use under its terms"),
    (r"apache-2\.0|mit|bsd", "commercial use"),
)
"""Pattern of whole words in a licence's lower-case name -> what it implies, in a few words; the first that fits."""
UNKNOWN = "unknown: read its model card"
RESTRICTED = ("no commercial use", "research only")
ON_THE_HUB = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC BY-NC 4.0": "cc-by-nc-4.0"}
"""Licence -> its name in the front matter of a card; the others are `other`, with a `license_name`."""


class Ancestor(Settings):
    """A model that another one was distilled from, or began with."""

    name: str
    """Of the teacher in the recipe, or of the model."""
    source: str
    """Hub name, folder or file of its weights."""
    licence: str
    """Of its weights."""
    implies: str
    """What that licence implies, in a few words; not legal advice."""


def terms(licence: object) -> str:
    """What a licence implies, in a few words; not legal advice."""
    return next((implied for words, implied in TERMS if re.search(rf"\b({words})\b", str(licence).lower())), UNKNOWN)


def licence_by_name(model: str) -> str:
    """The licence that goes with a hub name, or with a name and tag of OpenCLIP or timm."""
    return next((licence for start, licence in BY_NAME if model.startswith(start)), NOT_STATED)


def licence_in(folder: Path) -> str | None:
    """The licence that a model card states in its header, None where there is no card or it states none."""
    card = folder / "README.md"
    try:
        text = read_text(card, largest=4 << 20) if card.is_file() else ""
    except UserError:
        return None  # a card is no part of the model
    header = re.match(r"---\s*\n(.*?)\n---", text, re.S)
    keys = (r"^license_name:[ ]*(\S[^\n]*)", r"^license:[ ]*(\S[^\n]*)")
    licence = next((line[1] for key in keys if header and (line := re.search(key, header[1], re.M))), None)
    return licence.strip().strip("'\"")[:100] if licence else None


def ancestor(name: str, source: str, licence: object = None) -> Ancestor:
    """licence: as it was stated; where it was not, that which is known by the name of the source."""
    stated = str(licence) if licence and str(licence) != NOT_STATED else licence_by_name(source)
    return Ancestor(name=name, source=source, licence=stated, implies=terms(stated))


def of_teachers(facts: Mapping[str, Mapping[str, Any]]) -> list[Ancestor]:
    """The ancestors that heads state. facts: name of a head -> `source` and `licence` of its teacher."""
    return [ancestor(name, str(teacher.get("source") or "not stated"), teacher.get("licence")) for name, teacher in facts.items()]


def official(path: Path, form: str) -> Ancestor:
    """A model of somebody else that was read from `path`. form: the format, in which the file is named."""
    cached = re.search(r"models--([\w.-]+)--([\w.-]+?)/", f"{path.absolute()}/")
    source = f"{cached[1]}/{cached[2]}" if cached else f"{path.name} ({form})"
    stated = licence_in(path) if path.is_dir() else None
    known = next((licence for pattern, licence in OFFICIAL if re.search(pattern, source.lower())), None)
    return ancestor(cached[2] if cached else path.name, source, known or stated)


def united(*groups: Iterable[Ancestor]) -> list[Ancestor]:
    """All of them, each once: of those of one name and source the first that states its licence."""
    ancestors: dict[tuple[str, str], Ancestor] = {}
    for ancestor in (ancestor for group in groups for ancestor in group):
        old = ancestors.get((ancestor.name, ancestor.source))
        if old is None or old.licence == NOT_STATED:
            ancestors[ancestor.name, ancestor.source] = ancestor
    return list(ancestors.values())


def front_matter(ancestors: Iterable[Ancestor]) -> list[str]:
    """Lines of a card's header: the licence where all ancestors state one and the same, else that theirs hold; the teachers on the hub."""
    listed = list(ancestors)
    licences = list(dict.fromkeys(ancestor.licence for ancestor in listed))
    lines = []
    if len(licences) == 1 and licences[0] in ON_THE_HUB:
        lines.append(f"license: {ON_THE_HUB[licences[0]]}")
    elif listed:
        name = licences[0] if len(licences) == 1 and licences[0] != NOT_STATED else "that of its teachers, see below"
        lines += ["license: other", f'license_name: "{_plain(name)}"']
    on_hub = list(
        dict.fromkeys(ancestor.source for ancestor in listed if "/" in ancestor.source and licence_by_name(ancestor.source) != NOT_STATED)
    )
    return lines + (["base_model:", *(f'- "{_plain(source)}"' for source in on_hub)] if on_hub else [])


def _plain(text: str) -> str:
    """For a text in double quotes of YAML."""
    return re.sub(r'[\\"\n\r]', " ", text)
