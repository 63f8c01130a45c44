"""From our network to a published model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...features import KINDS, Kind
from ...heads import AttentionHeadSettings, MlpHeadSettings
from ...network import HeadConfig, NetworkConfig
from ...students.base import CLIP_MEAN, CLIP_STD
from ...students.eradio import Eradio
from ...students.eradio_settings import EradioSettings
from ...students.reparametrization import parametrizations
from ...students.vit_settings import VitSettings
from ..base import LoadedModel
from ..model_folder import ANCESTRY, plain_ancestors
from .eradio import eradio_architecture, eradio_weights, lacks_eradio
from .heads import ATTENTION_DEPTH, ATTENTION_HEADS, OWN_KEY, entry_of, silent_head, silent_part
from .layout import Published
from .vit import lacks_vit, vit_architecture, vit_extras


def supported_heads(config: NetworkConfig) -> tuple[str, ...]:
    """Heads whose layers the published code has: MLPs, and attention heads of its own shape that do not upsample."""
    return tuple(name for name, head in config.heads.items() if all(_has_place(head, kind) for kind in KINDS))


def _has_place(head: HeadConfig, kind: Kind) -> bool:
    part = head.part(kind)
    if part is None:
        return True
    settings = part.head
    if isinstance(settings, AttentionHeadSettings):
        return (settings.num_heads, settings.depth, settings.upsample_factor) == (ATTENTION_HEADS, ATTENTION_DEPTH, 1)
    return isinstance(settings, MlpHeadSettings)


def unsupported_reasons(config: NetworkConfig) -> tuple[str, ...]:
    """Why the published code could not rebuild this model; empty where it can."""
    slots = list(range(config.num_summaries)) if config.summary_slots is None else config.summary_slots
    reasons = [] if slots == sorted(set(slots)) else [f"summary_slots {slots} do not ascend, and the published code reads them so"]
    if isinstance(config.student, VitSettings):
        return (*reasons, *lacks_vit(config, len(_entries(config))))
    if isinstance(config.student, EradioSettings):
        return (*reasons, *lacks_eradio(config.student))
    return (f"its student is of type '{config.student.type}'; only 'vit' and 'eradio' have a place in it",)


def publish(model: LoadedModel) -> Published:
    """The model as the published code rebuilds it; `unsupported_reasons` is empty and all heads are among `supported_heads`.

    A head of one kind gets a silent one of the other, because the official loader wants both.
    """
    config, network = model.config, model.network
    weights = dict(network.state_dict())
    if isinstance(network.student, Eradio):
        weights |= eradio_weights(network.student)
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    dtype = next(tensor.dtype for key, tensor in weights.items() if key.startswith("student.") and tensor.is_floating_point())
    if isinstance(config.student, VitSettings):
        weights |= vit_extras(config.student, dtype)
    for name, head in config.heads.items():
        for kind in KINDS:
            if head.part(kind) is None:
                in_dim = network.student.summary_dim if kind == "summary" else network.spatial_dim
                silent = silent_head(in_dim, silent_part(head).dim, dtype)
                weights |= {f"heads.{name}.{kind}.{key}": tensor for key, tensor in silent.items()}
    conditioner = {"norm_mean": torch.tensor(CLIP_MEAN).view(3, 1, 1), "norm_std": torch.tensor(CLIP_STD).view(3, 1, 1)}
    spectral = {"spectral_reparam": any(parametrizations(network.student))}
    return Published(_settings(config, dtype) | spectral, weights, conditioner, {})


def _settings(config: NetworkConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Every attribute that the official loader asks `args` for, and `amradio` with what it has no word for."""
    training = config.training and config.training.model_dump(mode="json")
    stored: dict[str, Any] = {"image_size": config.image_size, "training": training, "origin": config.origin}
    stored[ANCESTRY] = plain_ancestors(config)
    entries = _entries(config)
    if isinstance(config.student, EradioSettings):
        stored["window"] = config.student.window
        architecture = eradio_architecture(config)
    else:
        architecture = vit_architecture(config, len(entries))
    unused = dict.fromkeys(("in_chans", "input_size", "drop_path", "drop_block", "gp", "bn_momentum", "bn_eps", "damp"))
    return {
        "model_norm": False,
        **architecture,
        **unused,
        "pretrained": False,
        "num_classes": 0,
        "drop": 0.0,
        "torchscript": False,
        "initial_checkpoint": "",
        "teachers": entries,
        "cls_token_per_teacher": config.num_summaries > 1,
        "dtype": dtype,
        "mlp_version": "v2",
        "spatial_mlp_version": None,
        "spectral_heads": False,
        OWN_KEY: stored,
    }


def _entries(config: NetworkConfig) -> list[dict[str, Any]]:
    """The list of teachers: the head that reads token n stands at place n, because that is how the published code counts.

    A token without a head gets an entry of its own; heads without a summary, or that share a token, follow behind.
    """
    slots = range(config.num_summaries) if config.summary_slots is None else config.summary_slots
    readers: dict[int, str] = {}
    for name, head in config.heads.items():
        if head.summary is not None:
            readers.setdefault(head.slot, name)
    if config.num_summaries == 1:
        order = sorted(config.heads, key=lambda name: name != readers.get(0))
        entries = [entry_of(name, config.heads[name]) for name in order] or [{"name": "unread_0", "type": "none"}]
        # The remote-code class counts use_summary even where all heads share one token.
        return [entry | {"use_summary": number == 0} for number, entry in enumerate(entries)]
    entries = []
    for slot in range(config.num_summaries):
        entry: Mapping[str, Any] = {"name": f"unread_{slot}", "type": "none"}
        if slot in readers:
            entry = entry_of(readers[slot], config.heads[readers[slot]])
        entries.append({**entry, "use_summary": slot in slots})
    behind = [name for name in config.heads if name not in readers.values()]
    return entries + [entry_of(name, config.heads[name]) | {"use_summary": False, "token_slot": config.heads[name].slot} for name in behind]


def weights_in_file(published: Published, groups: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights under the names of a file. groups: start of our name -> start of the file's name."""
    return {published._replace(prefixes=groups).name_in_file(key): tensor for key, tensor in published.weights.items()}
