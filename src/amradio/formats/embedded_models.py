"""Trained models that come with the package: `amradio.load("embedded/quickstart")`."""

from pathlib import Path

from ..errors import UserError, nearest

FOLDER = Path(__file__).parent / "embedded"
PREFIX = "embedded/"


def embedded_models() -> list[str]:
    """Their names, as `load` takes them."""
    return sorted(PREFIX + path.name for path in FOLDER.iterdir() if path.is_dir())


def embedded_model(name: str) -> Path | None:
    """The folder of `embedded/NAME`; None for texts that do not begin so. Raises UserError where there is no such model."""
    if not name.startswith(PREFIX):
        return None
    if name not in embedded_models():
        raise UserError(f"{name}: the package has no such model; {nearest(name, embedded_models())}")
    return FOLDER / name.removeprefix(PREFIX)
