"""Formats: how a model is read from and handed over to others. `FORMATS` lists them; a new one is a file and an entry here."""

from pathlib import Path

from ..errors import UserError
from ..files import path_problem, user_path
from ..libraries import first_line
from ..licences import official
from ..names import hub_name, recognise
from ..students.base import Student
from .base import ExportSettings, Format, LoadedModel, absent, refuse
from .embedded_models import embedded_model
from .model_folder import ModelFolder
from .onnx import Onnx
from .radio.hf_remote_code import RemoteCode
from .radio.torchhub import TorchHub
from .timm.format import Timm
from .transformers import Transformers

FORMATS: tuple[Format, ...] = (ModelFolder(), RemoteCode(), Transformers(), Timm(), Onnx(), TorchHub())
"""The first that recognises a path reads it; torchhub takes any file of torch.save, so it stands last."""


def read(path: str | Path, align_corners: bool | None = None, custom_student: Student | None = None) -> LoadedModel:
    """Reads a model in whichever format it is; see `Format.read`. Raises UserError, also where no format recognises it.

    path: a file or folder; where there is none, the name of a model that comes with the package (`embedded/NAME`), or `owner/name` or
    `owner/name@revision` on the hub, of which only data files are fetched.

    custom_student: the object that takes the weights of a student of type `custom`; only our own model folder can have one.
    """
    text = str(path)
    problem = path_problem(text)
    path = Path() if problem else user_path(text)
    fetched = embedded_model(text) or _from_hub(text) if problem or not path.exists() else None
    if fetched is not None:
        path = fetched
    elif problem or not path.exists():
        raise UserError(problem) if problem and not hub_name(text) else absent(text)
    form: Format | None = ModelFolder() if custom_student is not None else next((form for form in FORMATS if form.recognises(path)), None)
    if form is None:
        raise refuse(path, FORMATS)
    try:
        loaded = ModelFolder().read(path, align_corners, custom_student) if custom_student is not None else form.read(path, align_corners)
    except UserError:
        raise
    except Exception as error:  # values that no reader expects: a damaged file, or one of an unknown kind
        kind = type(error).__name__
        raise UserError(f"{path}: cannot be read as '{form.name}' ({kind}: {first_line(error)}); copy or download it again") from None
    name = text if fetched is not None else path.name
    if not loaded.ours:
        loaded = loaded._replace(config=loaded.config.descended([official(path, form.name)]))
    if form.name == ModelFolder.name or loaded.config.origin:
        return loaded
    return loaded._replace(config=loaded.config.model_copy(update={"origin": f"{name} ({form.name})"}))


def _from_hub(text: str) -> Path | None:
    """The fetched folder of `owner/name` or `owner/name@revision`; None for other texts, and where no hub answers and none was fetched."""
    name, _, revision = text.partition("@")
    recognised = recognise(name)
    if recognised.kind != "hub":
        return None
    from ..hub import HubName, fetch_model

    return fetch_model(HubName(recognised.text, revision or None))


__all__ = ["FORMATS", "ExportSettings", "Format", "LoadedModel", "read"]
