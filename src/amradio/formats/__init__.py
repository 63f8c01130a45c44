"""Formats: how a model is read from and handed over to others. `FORMATS` lists them; a new one is a file and an entry here."""

from pathlib import Path

from ..files import user_path
from ..students.base import Student
from .base import ExportSettings, Format, Found, refuse
from .folder import ModelFolder
from .onnx import Onnx
from .remote_code import RemoteCode
from .timm import Timm
from .torchhub import TorchHub
from .transformers import Transformers

FORMATS: tuple[Format, ...] = (ModelFolder(), RemoteCode(), Transformers(), Timm(), Onnx(), TorchHub())
"""The first that recognises a path reads it; torchhub takes any file of torch.save, so it stands last."""


def read(path: str | Path, align_corners: bool | None = None, own: Student | None = None) -> Found:
    """Reads a model in whichever format it is; see `Format.read`. Raises UserError, also where no format recognises it.

    own: the object that takes the weights of a student of type `own`; only our own model folder can have one.
    """
    path = user_path(path)
    if own is not None:
        return ModelFolder().read(path, align_corners, own)
    for form in FORMATS:
        if form.recognises(path):
            found = form.read(path, align_corners)
            if form.name == ModelFolder.name or found.config.origin:
                return found
            return found._replace(config=found.config.model_copy(update={"origin": f"{path.name} ({form.name})"}))
    raise refuse(path, FORMATS)


__all__ = ["FORMATS", "ExportSettings", "Format", "Found", "read"]
