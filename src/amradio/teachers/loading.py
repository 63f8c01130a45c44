"""From a hub name or a local folder to a frozen model of transformers, with one clear message where that cannot be.

transformers, timm and open_clip are imported where they are used: together they take three times as long as torch (seen: 20 s against
6 s on one busy core), and a run needs few of them.
"""

import difflib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ..errors import UserError
from ..files import read_json
from ..hub import answers as hub_answers
from ..hub import may_download
from ..libraries import NO_CODE, NO_PICKLE, first_line, need, no_remote_code
from ..names import not_a_folder, recognise
from .folder_checks import PROCESSORS, check_folder, check_size

KIND_OF = {
    "clip": "clip",
    "metaclip_2": "metaclip_2",
    "aimv2": "aimv2",
    "aimv2_vision_model": "aimv2",
    "internvl": "internvl",
    "internvl_vision": "internvl",
    "depth_anything": "depth_anything",
    "siglip": "siglip",
    "siglip2": "siglip",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "dinov3_convnext": "dinov3",
    "sam": "sam",
    "sam2": "sam2",
    "sam2_video": "sam2",
    "sam3": "sam3",
    "sam3_video": "sam3",
    "sam3_tracker": "sam3",
    "radio": "radio",
}
"""`model_type` of transformers -> our `type`."""

_BESIDE = ("*.json", "*.txt", "*.model", "README.md")
_WEIGHTS = {"open_clip": ("open_clip*.safetensors", "open_clip*.bin")}
_WEIGHTS_DEFAULT = ("model*.safetensors", "pytorch_model*.bin")
"""(safetensors, pickled): the second is taken where a repository has no first, and read with weights_only=True, so no code runs."""


class Source(NamedTuple):
    """Where a teacher comes from."""

    kind: str
    """Our `type`."""
    model: str
    """Hub name or local folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"teacher '{self.model}'"


def load_transformers(source: Source, classes: Mapping[str, str], renamed: Mapping[str, str] | None = None) -> tuple[Any, Path]:
    """Loads weights with the class that belongs to the checkpoint's model_type; returns (model on the CPU in float32, its folder).

    classes: model_type -> name of the class in transformers. renamed: pattern in the names of the weights -> what stands there in the
    model, where the checkpoint is of a larger model. Raises UserError where the files are not there, belong to another
    family, or do not fit the model.
    """
    transformers = need("transformers", source.where)
    folder = fetch(source)
    model_type = _model_type(source, folder)
    if model_type not in classes:
        raise UserError(_wrong_family(source, model_type, classes))
    cls = getattr(transformers, classes[model_type])
    with quiet(), reading(source, folder):
        config = cls.config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_size(source, folder, lambda: cls(config))
        model, report = cls.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            dtype="float32",
            trust_remote_code=False,
            key_mapping=dict(renamed) if renamed else None,
            attn_implementation="sdpa" if cls._supports_sdpa else "eager",  # the library's default
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{source.where}: the weights in {folder} lack {len(missing)} parameters of the model, first '{missing[0]}'")
    return model, folder


@contextmanager
def reading(source: Source, folder: Path | str) -> Iterator[None]:
    """Within it whatever a library raises about the files of `folder` becomes a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise whatever their readers do: a key that is missing, a value of another type, a wrong shape
        reason = first_line(error)
        way_out = "" if NO_CODE in reason or NO_PICKLE in reason else "; copy or download the folder again"
        raise UserError(f"{source.where}: config.json and the weights in {folder} cannot be read: {reason}{way_out}") from None


def load_processor(folder: Path, name: str, **defaults: Any) -> Any:
    """The image processor of transformers that the folder describes; where it describes none, the class `name` with `defaults`."""
    cls = getattr(need("transformers", str(folder)), name)
    file = next((candidate for file in PROCESSORS if (candidate := folder / file).is_file()), None)
    if file is None:
        return cls(**defaults)
    with quiet():
        try:
            return cls.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the library raises whatever its readers do
            raise UserError(f"{file}: not the settings of an image processor ({first_line(error)}); copy or download it again") from None


def fetch(source: Source, name: str | None = None) -> Path:
    """The local folder of a model: itself, its snapshot in the cache, or freshly downloaded. The cache comes first, the hub last.

    name: hub name or folder, where the user wrote it another way. Raises UserError where it is neither, cannot be fetched, or a file in
    it is damaged or asks for code (`check_folder`).
    """
    folder = _locate(source, name or source.model)
    check_folder(source, folder)
    return folder


def _locate(source: Source, text: str) -> Path:
    recognised = recognise(text)
    if recognised.kind == "folder":
        if source.revision is not None:
            raise UserError(f"{source.where}: a local folder has no revision, found revision '{source.revision}'; leave it out")
        return recognised.path
    if recognised.kind != "hub":
        raise UserError(f"{source.where}: {not_a_folder(recognised, _WANTED.get(source.kind, _WANTED_DEFAULT))}")
    name = recognised.text
    cached = cached_folder(name, source.revision, source.kind)
    if cached is not None:
        return cached
    if not hub_answers():
        raise UserError(absent(source, name, f"{_host()} cannot be reached"))
    with quiet():
        try:
            return _download(source, name)
        except errors.GatedRepoError:
            raise UserError(
                f"{source.where}: its owner asks you to accept a licence first: do so on {constants.ENDPOINT}/{name}, "
                "then `hf auth login` on this machine"
            ) from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            near = did_you_mean(name)
            raise UserError(f"{source.where}: {first_line(error)}; {near or 'check the name, or give a local folder'}") from None
        except (OSError, errors.HfHubHTTPError) as error:
            raise UserError(absent(source, name, first_line(error))) from None


_WANTED = {
    "open_clip": "the folder with open_clip_config.json and open_clip_model.safetensors",
    "timm": "the folder with timm's config.json and model.safetensors",
}
_WANTED_DEFAULT = "the folder that save_pretrained wrote (config.json and model.safetensors)"


def cached_folder(model: str, revision: str | None = None, kind: str = "") -> Path | None:
    """The complete snapshot of a hub model in this machine's cache, None where there is none. No network."""
    try:
        folder = Path(huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return folder if _is_complete(folder, kind) else None


def _is_complete(folder: Path, kind: str) -> bool:
    for pattern in _WEIGHTS.get(kind, _WEIGHTS_DEFAULT):
        index = next(folder.glob(f"{pattern}.index.json"), None)
        if index is None and any(folder.glob(pattern)):
            return True
        if index is not None:
            try:
                shards = read_json(index).get("weight_map")
            except UserError:
                return True  # a damaged index is named when the folder is read
            if isinstance(shards, dict) and all((folder / str(shard)).is_file() for shard in shards.values()):
                return True
    return False


def _download(source: Source, name: str) -> Path:
    safe, pickled = _WEIGHTS.get(source.kind, _WEIGHTS_DEFAULT)
    options: dict[str, Any] = {"revision": source.revision, "ignore_patterns": ["*/*", "*.fp16*"]}
    folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_BESIDE, safe], **options))
    if not any(folder.glob(safe)):
        huggingface_hub.snapshot_download(name, allow_patterns=[pickled], **options)
    return folder


def _host() -> str:
    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT


def absent(source: Source, name: str, reason: str) -> str:
    """The message for a model that is neither on this machine nor to be fetched."""
    revision = f" --revision {source.revision}" if source.revision else ""
    reason = reason if may_download() else "it is not fetched by itself"
    near = did_you_mean(name)
    return (
        f"{source.where}: {f'{near} ' if near else ''}there is no folder '{name}', it is not in the cache {constants.HF_HUB_CACHE}, and "
        f"{reason}; run `hf download {name}{revision}` where there is a network and copy the cache here (HF_HOME is its folder), "
        "or give the path of a local folder with its files"
    )


def did_you_mean(name: str) -> str:
    """`did you mean 'facebook/dinov2-small'?` where a hub name is nearly that of a well-known teacher, else nothing."""
    from .catalogue import repositories  # which imports this module

    known = repositories()
    near = [] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return f"did you mean '{near[0]}'?" if near else ""


def _model_type(source: Source, folder: Path) -> str:
    file = folder / "config.json"
    if not file.is_file():
        kind = "open_clip" if (folder / "open_clip_config.json").is_file() else None
        way_out = f"it is an OpenCLIP model: use type '{kind}'" if kind else "give the folder that save_pretrained wrote"
        raise UserError(f"{source.where}: {folder} has no config.json; {way_out}")
    config = read_json(file)
    model_type = config.get("model_type") or ("timm" if "architecture" in config else "unknown")
    if not isinstance(model_type, str):
        raise UserError(f"{file}: model_type: found {type(model_type).__name__}, it is a text; copy or download the file again")
    return model_type


def _wrong_family(source: Source, model_type: str, classes: Mapping[str, str]) -> str:
    kind = KIND_OF.get(model_type, "timm" if model_type == "timm" else None)
    way_out = f"use type '{kind}'" if kind else f"type '{source.kind}' takes model_type {' or '.join(sorted(classes))}"
    return f"{source.where}: it is a '{model_type}' model, which type '{source.kind}' cannot read; {way_out}"


def check_override(source: Source, input_size: int | None, patch_size: int, native: int | None = None) -> None:
    """Raises UserError where an `input_size` of the user's is no multiple of the patch (nor the model's own size)."""
    if input_size is not None and input_size != native and (input_size < patch_size or input_size % patch_size):
        near = max(patch_size, round(input_size / patch_size) * patch_size)
        raise UserError(f"{source.where}: input_size {input_size} is no multiple of its patch of {patch_size} px; the nearest is {near}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences progress bars and notes of transformers, the hub client, timm and open_clip; their errors still raise.

    No code of a folder or of the hub is run within it.
    """
    disabled, hub_bars = logging.getLogger().manager.disable, not are_progress_bars_disabled()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    try:
        with _quiet_transformers() if importlib.util.find_spec("transformers") else nullcontext():
            yield
    finally:
        if hub_bars:
            enable_progress_bars()
        logging.disable(disabled)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as log

    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with no_remote_code():
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
