"""`amradio push`: hands a model over to the hub; without `--yes` it only says what would go where."""

from pathlib import Path

from ..console import PHASES, print_text
from ..errors import UserError
from ..files import user_path
from ..formats.base import WANTED
from ..hub import files_to_upload, upload_model
from ..licences import RESTRICTED, UNKNOWN
from ..model import load
from ..names import recognise
from ..network import NetworkConfig
from .tables import print_table

CARD = "README.md"


def push(path: str | Path, name: str, *, yes: bool = False, private: bool = False) -> str | None:
    """Uploads a model folder to the hub, after reading it; returns the address of the commit, None where nothing was uploaded.

    Args:
        path: a run folder, of which the model folder is taken, or an exported folder (amradio, hf, transformers or timm).
        name: `owner/name` on the hub; the repository is created where it is missing.
        yes: upload; without it, what would be uploaded is printed and nothing leaves this machine.
        private: a repository that is created is private.

    Raises:
        UserError: where the folder is no model that can be read, has no card, the name is none of the hub, or the hub refuses.
    """
    folder = _folder(path)
    recognised = recognise(name)
    problems = [] if recognised.kind == "hub" else [f"{name}: a name on the hub is owner/name, and no folder of this machine"]
    if not folder.is_dir():
        problems.append(f"{path}: a folder goes to the hub, and this is none; give {WANTED.replace('a file', 'a folder')}")
    elif not (folder / CARD).is_file():
        problems.append(f"{folder}: there is no model card ({CARD}); write the folder anew with amradio export")
    if problems:
        raise UserError(*problems)
    name = recognised.text
    with PHASES.phase(f"reading {folder}"):
        config = load(folder).config
    files = files_to_upload(folder)
    others = sorted(entry.name for entry in folder.iterdir() if entry not in files)
    rows = [(file.name, f"{file.stat().st_size / 1e6:,.2f}") for file in files]
    where = f"the hub as {name}{' (private, where it is created)' if private else ''}"
    print_table(f"{'Uploading' if yes else 'Would go'} to {where}", ("file", "MB"), rows)
    for line in (*_terms(config), *([f"Left here: {', '.join(others)}."] if others else [])):
        print_text(line)
    if not yes:
        print_text("Nothing was uploaded. To upload it: the same command with --yes.")
        return None
    with PHASES.phase(f"uploading to {name}"):
        address = upload_model(folder, name, private)
    print_text(f"Uploaded: {address}. Load it: amradio.load('{name}')")
    return address


def _folder(path: str | Path) -> Path:
    folder = user_path(path)
    if not folder.exists():
        raise UserError(f"{path}: there is no such folder; give {WANTED}")
    return folder / "model" if (folder / "config.yaml").is_file() else folder


def _terms(config: NetworkConfig) -> list[str]:
    """What the teachers' licences mean for whoever publishes the model."""
    strict = [a.name for a in config.distilled_from if a.implies in RESTRICTED]
    unknown = [a.name for a in config.distilled_from if a.implies == UNKNOWN]
    lines = [f"The weights of {', '.join(dict.fromkeys(strict))} are not for commercial use, which binds this model."] if strict else []
    return lines + ([f"The terms of {', '.join(dict.fromkeys(unknown))} are not known; read them before you publish."] if unknown else [])
