"""Models on the hub, as data: weights in safetensors, configuration and card are fetched and uploaded, and no code ever is."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub import HfApi, constants, errors

from .errors import UserError
from .libraries import first_line

FILES = ("*.safetensors", "*.json", "README.md", "LICENSE*", "NOTICE*")
"""What a model consists of; programs and pickles are left where they are."""
_may_download: ContextVar[bool] = ContextVar("_may_download", default=True)


class HubName(NamedTuple):
    """`owner/name` or `owner/name@revision`."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def answers(timeout: float = 5.0) -> bool:
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


def may_download() -> bool:
    """Whether this is not within `no_downloads`."""
    return _may_download.get()


@contextmanager
def no_downloads() -> Iterator[None]:
    """Within it, models are looked for on this machine alone; the hub is not contacted."""
    before = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(before)


def fetch_model(wanted: HubName) -> Path | None:
    """The folder of a model's data files: its newest snapshot from the hub, or where that does not answer the one in the cache.

    None where the hub does not answer and the cache has no such model. Raises UserError where the hub refuses: a name that it does not
    have, or a licence that has to be accepted first.
    """
    options = {"revision": wanted.revision, "allow_patterns": list(FILES), "ignore_patterns": ["*/*"]}
    if not answers():
        return _cached(wanted, options)
    try:
        folder = Path(huggingface_hub.snapshot_download(wanted.name, endpoint=constants.ENDPOINT, **options))
    except errors.GatedRepoError:
        raise UserError(
            f"{wanted}: its owner asks you to accept a licence first: do so on {constants.ENDPOINT}/{wanted.name}, "
            "then `hf auth login` on this machine"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        what = "no model of this name" if wanted.revision is None else "no model of this name with this revision"
        raise UserError(
            f"{wanted}: there is no such file or folder, and {what} on {constants.ENDPOINT} (or it is private: `hf auth login`); "
            "check the name"
        ) from None
    except (OSError, errors.HfHubHTTPError) as error:
        cached = _cached(wanted, options)
        if cached is not None:
            return cached
        raise UserError(f"{wanted}: could not be fetched from {constants.ENDPOINT}: {first_line(error)}; try again") from None
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{wanted}: this model on {constants.ENDPOINT} has no weights in safetensors, and no others are read from there")
    return folder


def _cached(wanted: HubName, options: dict) -> Path | None:
    try:
        folder = Path(huggingface_hub.snapshot_download(wanted.name, local_files_only=True, **options))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def files_to_upload(folder: Path) -> list[Path]:
    """The data files of a model folder that would go to the hub, by name."""
    return sorted(path for pattern in FILES for path in folder.glob(pattern) if path.is_file())


def upload_model(folder: Path, name: str, private: bool) -> str:
    """Creates the repository where it is missing, and makes one commit of the data files of `folder`; returns the commit's address.

    Raises UserError where nobody is logged in, the hub refuses, or it cannot be reached.
    """
    api = HfApi(endpoint=constants.ENDPOINT, library_name="amradio")
    if not answers():
        raise UserError(f"{name}: {constants.ENDPOINT} cannot be reached; nothing was uploaded")
    if huggingface_hub.get_token() is None:
        raise UserError(f"{name}: nobody is logged in to {constants.ENDPOINT}; run `hf auth login` with a token that may write")
    try:  # what the hub refuses is an OSError as well
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[path.name for path in files_to_upload(folder)],
            commit_message="Upload a model with amradio",
        )
    except errors.HfHubHTTPError as error:
        raise UserError(f"{name}: {constants.ENDPOINT} refused the upload: {first_line(error)}; check the name and your rights") from None
    except OSError as error:
        raise UserError(f"{name}: the upload from {folder} failed: {first_line(error)}; run the same command again") from None
    return str(commit.commit_url)
