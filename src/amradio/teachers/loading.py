"""From a hub name or a local folder to a frozen model of transformers, with one clear message where that cannot be.

transformers, timm and open_clip are imported where they are used: together they take three times as long as torch (seen: 20 s against
6 s on one busy core), and a run needs few of them.
"""

import json
import logging
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ..errors import UserError

KIND_OF = {
    "clip": "clip",
    "siglip": "siglip",
    "siglip2": "siglip",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "dinov3_convnext": "dinov3",
    "sam": "sam",
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


def load_transformers(source: Source, classes: Mapping[str, str]) -> tuple[Any, Path]:
    """Loads weights with the class that belongs to the checkpoint's model_type; returns (model on the CPU in float32, its folder).

    classes: model_type -> name of the class in transformers. Raises UserError where the files are not there, belong to another
    family, or do not fit the model.
    """
    import transformers

    folder = fetch(source)
    model_type = _model_type(source, folder)
    if model_type not in classes:
        raise UserError(_wrong_family(source, model_type, classes))
    with quiet():
        try:
            model, report = getattr(transformers, classes[model_type]).from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype="float32", trust_remote_code=False
            )
        except Exception as error:  # the library raises whatever its readers do
            raise UserError(f"{source.where}: the weights in {folder} cannot be read: {first_line(error)}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{source.where}: the weights in {folder} lack {len(missing)} parameters of the model, first '{missing[0]}'")
    return model, folder


def load_processor(folder: Path, name: str, **defaults: Any) -> Any:
    """The image processor of transformers that the folder describes; where it describes none, the class `name` with `defaults`."""
    import transformers

    cls = getattr(transformers, name)
    described = any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
    with quiet():
        return cls.from_pretrained(folder, local_files_only=True) if described else cls(**defaults)


def fetch(source: Source, name: str | None = None) -> Path:
    """The local folder of a model: itself, its snapshot in the cache, or freshly downloaded. The cache is asked first, the hub last.

    name: hub name or folder, where the user wrote it another way.
    """
    name = name or source.model
    path = Path(name).expanduser()
    if path.is_dir():
        if source.revision is not None:
            raise UserError(f"{source.where}: a local folder has no revision, found revision '{source.revision}'; leave it out")
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise UserError(f"{source.where}: there is no such folder, and it is no hub name (owner/name); give one of the two")
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
            raise UserError(f"{source.where}: {first_line(error)}; check the name, or give a local folder") from None
        except (OSError, errors.HfHubHTTPError) as error:
            raise UserError(absent(source, name, first_line(error))) from None


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
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if all((folder / shard).is_file() for shard in shards):
                return True
    return False


def _download(source: Source, name: str) -> Path:
    safe, pickled = _WEIGHTS.get(source.kind, _WEIGHTS_DEFAULT)
    options: dict[str, Any] = {"revision": source.revision, "ignore_patterns": ["*/*", "*.fp16*"]}
    folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_BESIDE, safe], **options))
    if not any(folder.glob(safe)):
        huggingface_hub.snapshot_download(name, allow_patterns=[pickled], **options)
    return folder


def hub_answers(timeout: float = 5.0) -> bool:
    """Whether the hub (or the proxy before it) takes a connection; the libraries themselves retry for 23 s before they give up."""
    if constants.HF_HUB_OFFLINE or not _may_download.get():
        return False
    url = urlsplit(getproxies().get("https") or constants.ENDPOINT)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout).close()
    except OSError:
        return False
    return True


_may_download: ContextVar[bool] = ContextVar("_may_download", default=True)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Within it, models are looked for on this machine alone; the hub is not asked."""
    before = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(before)


def _host() -> str:
    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT


def absent(source: Source, name: str, reason: str) -> str:
    """The message for a model that is neither on this machine nor to be fetched."""
    revision = f" --revision {source.revision}" if source.revision else ""
    reason = reason if _may_download.get() else "it is not fetched by itself"
    return (
        f"{source.where}: there is no folder '{name}', it is not in the cache {constants.HF_HUB_CACHE}, and {reason}; "
        f"run `hf download {name}{revision}` where there is a network and copy the cache here (HF_HOME says where it lies), "
        "or give the path of a local folder with its files"
    )


def _model_type(source: Source, folder: Path) -> str:
    file = folder / "config.json"
    if not file.is_file():
        kind = "open_clip" if (folder / "open_clip_config.json").is_file() else None
        way_out = f"it is an OpenCLIP model: use type '{kind}'" if kind else "give the folder that save_pretrained wrote"
        raise UserError(f"{source.where}: {folder} has no config.json; {way_out}")
    config = json.loads(file.read_text(encoding="utf-8"))
    return config.get("model_type") or ("timm" if "architecture" in config else "unknown")


def _wrong_family(source: Source, model_type: str, classes: Mapping[str, str]) -> str:
    kind = KIND_OF.get(model_type, "timm" if model_type == "timm" else None)
    way_out = f"use type '{kind}'" if kind else f"type '{source.kind}' takes model_type {' or '.join(sorted(classes))}"
    return f"{source.where}: it is a '{model_type}' model, which type '{source.kind}' cannot read; {way_out}"


def check_override(source: Source, input_size: int | None, patch_size: int, native: int | None = None) -> None:
    """Raises UserError where an `input_size` of the user's is no multiple of the patch (nor the model's own size)."""
    if input_size is not None and input_size != native and (input_size < patch_size or input_size % patch_size):
        near = max(patch_size, round(input_size / patch_size) * patch_size)
        raise UserError(f"{source.where}: input_size {input_size} is no multiple of its patch of {patch_size} px; the nearest is {near}")


def licence_in(folder: Path) -> str | None:
    """The licence that a model card states in its header, None where there is no card or it states none."""
    card = folder / "README.md"
    found = re.match(r"---\n.*?^license(?:_name)?:[ ]*([^\n]+)", card.read_text(encoding="utf-8"), re.S | re.M) if card.is_file() else None
    return found[1].strip() if found else None


def first_line(error: BaseException) -> str:
    """What a library's error says first, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silences progress bars and notes of transformers, the hub client, timm and open_clip; their errors still raise."""
    from transformers.utils import logging as log

    root = logging.getLogger()
    verbosity, disabled = log.get_verbosity(), root.manager.disable
    bars, hub_bars = log.is_progress_bar_enabled(), not are_progress_bars_disabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
        logging.disable(disabled)
