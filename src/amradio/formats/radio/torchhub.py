"""The official `.pth.tar` of NVlabs/RADIO's torch hub: `arch, epoch, args, state_dict`, all heads included."""

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...features import Features
from ...network import Network, NetworkConfig
from ...students.reparametrization import reparametrize
from ..base import ExportSettings, Format, LoadedModel
from ..model_folder import ANCESTRY
from . import Published, compare_rules, network_of, publish, supported_heads, to_our_names, unsupported_reasons, weights_in_file
from .eradio import STEM
from .heads import own_part
from .layout import OWN_MEAN, OWN_STD
from .spectral import realise
from .tokens import first_of, teachers_in
from .unpickle import looks_like_checkpoint, read_checkpoint

BACKBONE, ROTATION, BETWEEN = "base_model.", "_feature_normalizer.", "_intermediate_feature_normalizer."
HEADS = {"summary": "_heads.", "spatial": "_feature_projections."}
CONDITIONER = "input_conditioner."


class TorchHub(Format):
    """`torchhub`: what `torch.hub.load("NVlabs/RADIO", "radio_model", version=FILE)` loads."""

    name = "torchhub"
    suffix = ".pth.tar"
    reader = "amradio's own reader, in a fresh model, because the official code is not run"
    takes_spectral = True

    def recognises(self, path: Path) -> bool:
        """Any file of torch.save: `read` says what it lacks."""
        return path.is_file() and looks_like_checkpoint(path)

    def read(self, path: Path, align_corners: bool | None = None) -> LoadedModel:
        """Reads a checkpoint. Averaged weights (`state_dict_ema`) are taken where there are any, as the official loader does."""
        return network_of(read_published(path), str(path), align_corners)

    def unsupported_reasons(self, config: NetworkConfig, network: Network) -> tuple[str, ...]:
        """What the published code cannot rebuild: students, heads and sizes that it has not."""
        del network
        return unsupported_reasons(config)

    def supported_heads(self, config: NetworkConfig) -> tuple[str, ...]:
        """Heads whose layers the published code has."""
        return supported_heads(config)

    def write(self, target: Path, model: LoadedModel, settings: ExportSettings) -> None:
        """Writes a checkpoint with the arguments of the published training code; UserError where `spectral` finds no linear layers."""
        if settings.spectral:
            model = model._replace(network=copy.deepcopy(model.network))
            reparametrize(model.network.student, spectral=True, deviation=0)
        published = publish(model)
        conditioner = {CONDITIONER + key: tensor for key, tensor in published.conditioner.items()}
        state = weights_in_file(published, groups_of({name: name for name in model.config.heads})) | conditioner
        training = argparse.Namespace(**published.settings)
        step = model.config.training.step if model.config.training else 0
        torch.save({"arch": training.model, "epoch": step, "args": training, "state_dict": state}, target)

    def outputs(self, target: Path, images: Tensor, settings: ExportSettings) -> Mapping[str, Features]:
        """What the file, read back by our own reader, computes: there is no library to install."""
        network = self.read(target).network.float().eval()
        with torch.inference_mode():
            return network(images, None, settings.heads)

    def rules(self, target: Path, model: LoadedModel, settings: ExportSettings) -> str:
        """Applies the published rules (positions, windows, layers) to what was written; UserError where they give another model."""
        content = read_checkpoint(target)
        shapes = {key.removeprefix(BACKBONE): tensor.shape for key, tensor in content["state_dict"].items() if key.startswith(BACKBONE)}
        return compare_rules(vars(content["args"]), shapes, model, self.sizes(model, settings))

    def stated_ancestors(self, target: Path) -> Any:
        """`distilled_from` as plain values, from the arguments in the checkpoint."""
        return own_part(vars(read_checkpoint(target)["args"]))[ANCESTRY]

    def snippet(self, target: Path, settings: ExportSettings) -> str:
        """Lines that load it with `torch.hub.load` and the published code."""
        names = f", adaptor_names={list(settings.heads)}" if settings.heads else ""
        answer = "outputs = model(images)" if names else "summary, features = model(images)"
        comment = "  # a dict: outputs['backbone'].summary, outputs['backbone'].features, ..." if names else ""
        return (
            f'import torch\nmodel = torch.hub.load("NVlabs/RADIO", "radio_model", version="{target}"{names}, trust_repo=True)\n'
            f"model.eval()  # images: RGB in [0, 1], [B, 3, H, W]\n{_windows(target)}{answer}{comment}\n"
            f'# or without that code: import amradio; model = amradio.load("{target}")'
        )


def _windows(target: Path) -> str:
    """The line by which the official E-RADIO is told to choose its windows by the image, where this one does."""
    optimal = own_part(vars(read_checkpoint(target)["args"])).get("window") == "optimal"
    return "model.model.set_optimal_window_size(images.shape[2:])  # E-RADIO: at each new size of the images\n" if optimal else ""


def groups_of(keys: Mapping[str, str]) -> dict[str, str]:
    """Start of our name -> start of the file's name. keys: head -> its name or number in the file."""
    groups = {"student.": BACKBONE, "rotation.": ROTATION, "block_normalizer.": BETWEEN}
    for name, key in keys.items():
        groups |= {f"heads.{name}.{kind}.": f"{start}{key}." for kind, start in HEADS.items()}
    return groups


def read_published(path: Path) -> Published:
    """The file's settings and weights; raises UserError where it is damaged or holds something else."""
    content = read_checkpoint(path)
    if _is_state(content) and STEM.removeprefix("student.") in content:
        return _bare_eradio(content)
    state = content.get("state_dict_ema") or content.get("state_dict") if isinstance(content, dict) else None
    settings = content.get("args") if isinstance(content, dict) else None
    if not isinstance(settings, argparse.Namespace) or not _is_state(state):
        holds = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: no RADIO checkpoint: `args` and `state_dict` are missing, it holds: {holds or 'nothing'}")
    assert state is not None
    state = realise({key.removeprefix("module."): tensor for key, tensor in state.items()}, str(path))
    conditioner = {key.removeprefix(CONDITIONER): tensor for key, tensor in state.items() if key.startswith(CONDITIONER)}
    state = {key: tensor for key, tensor in state.items() if not key.startswith(CONDITIONER)}
    keys, again = _head_keys(vars(settings), state, str(path))
    ignored_keys = tuple(key for key in state if key.startswith(again))
    weights, used = to_our_names({key: tensor for key, tensor in state.items() if key not in ignored_keys}, groups_of(keys))
    return Published(vars(settings), weights, conditioner, used, ignored_keys)


def _bare_eradio(state: Mapping[str, Tensor]) -> Published:
    """An E-RADIO's own state dict, without heads; it was trained on images normalised as all published models are."""
    weights, used = to_our_names(state, {"student.": ""})
    return Published({"model": "eradio"}, weights, {"norm_mean": OWN_MEAN, "norm_std": OWN_STD}, used)


def _is_state(state: Any) -> bool:
    return isinstance(state, dict) and bool(state) and all(isinstance(key, str) and isinstance(t, Tensor) for key, t in state.items())


def _head_keys(settings: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Head -> its name or number in the file, and the starts of heads that no one reads: those of a teacher's second entry."""
    present = {key.removeprefix(start).split(".")[0] for start in HEADS.values() for key in state if key.startswith(start)}
    teachers = teachers_in(settings, where)
    first = first_of(teachers)
    keys = {name: name if name in present else str(number) for name, (number, _) in first.items()}
    again = {str(number) for number, teacher in enumerate(teachers) if first[teacher["name"]][0] != number} - set(keys.values())
    return keys, tuple(f"{start}{key}." for key in again for start in HEADS.values())
