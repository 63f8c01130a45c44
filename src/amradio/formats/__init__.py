"""Formats: how a model is read from and handed over to others. `FORMATS` lists them; a new one is a file and an entry here."""

from pathlib import Path

from .base import ExportSettings, Format, Found, refuse
from .folder import ModelFolder

FORMATS: tuple[Format, ...] = (ModelFolder(),)


def read(path: str | Path, align_corners: bool | None = None) -> Found:
    """Reads a model in whichever format it is; see `Format.read`. Raises UserError, also where no format recognises it."""
    for form in FORMATS:
        if form.recognises(Path(path)):
            return form.read(Path(path), align_corners)
    raise refuse(Path(path), FORMATS)


__all__ = ["FORMATS", "ExportSettings", "Format", "Found", "read"]
