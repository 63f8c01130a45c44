"""What a text is that names a model: a folder, a file, a name on the hub, or something that is neither."""

import re
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from .files import is_path, path_problem, user_path

Kind = Literal["folder", "file", "hub", "url", "windows", "path", "word"]
HUBS = ("huggingface.co", "hf.co", "www.huggingface.co")
ON_HUB = re.compile(r"(?!.*(--|\.\.|\.git$))\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)
"""`owner/name` as the hub's client takes it (`huggingface_hub.utils.validate_repo_id`, which takes longer to import)."""


class Name(NamedTuple):
    """A text that names a model."""

    kind: Kind
    """`folder`, `file`: there on disk; `hub`: owner/name, and no such path on disk; `url`, `windows` (a path with backslashes or a drive);
    `path`: written as one, and nothing is there; `word`: one word."""
    text: str
    """The text without what libraries put before it (`hf-hub:`, `local-dir:`) and without a slash at the end."""
    path: Path
    """Of a folder or file; else of no use."""


def recognise(text: str) -> Name:
    """What `text` is; nothing is fetched."""
    plain = re.sub(r"^(hf-hub|hf_hub|hf|local-dir):(?!//)", "", text.strip())
    path = user_path(plain) if path_problem(plain) is None else Path()
    if path_problem(plain) is None and path.is_dir():
        return Name("folder", plain, path)
    if path_problem(plain) is None and path.exists():
        return Name("file", plain, path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", plain) or plain.startswith(tuple(f"{host}/" for host in HUBS)):
        return Name("url", plain, path)
    if "\\" in plain or re.match(r"[A-Za-z]:", plain):
        return Name("windows", plain, path)
    trimmed = plain.rstrip("/")
    if ON_HUB.fullmatch(trimmed) and not is_path(trimmed):
        return Name("hub", trimmed, path)
    return Name("path" if "/" in plain or is_path(plain) else "word", plain, path)


def hub_name(url: str) -> str | None:
    """`owner/name` of a page of the hub, None for other URLs."""
    address = urlsplit(url if "://" in url else f"https://{url}")
    parts = [part for part in address.path.split("/") if part]
    return "/".join(parts[:2]) if address.hostname in HUBS and len(parts) >= 2 and parts[0] not in ("datasets", "spaces") else None


def not_found(name: Name, wanted: str) -> str:
    """As `not_a_folder`, where no hub is asked."""
    absent = f"there is no such file or folder; give {wanted}"
    return absent if name.kind in ("path", "word", "hub") else not_a_folder(name, wanted)


def not_a_folder(name: Name, wanted: str) -> str:
    """Why `name` is neither a folder nor a hub name, and what to give in its place. wanted: what is read, in words."""
    if name.kind == "url":
        repository = hub_name(name.text)
        return f"this is a URL; write the hub name '{repository}'" if repository else f"this is a URL; download it and give {wanted}"
    if name.kind == "windows":
        return f"this is a path of Windows, and there is no such file or folder here; separate folders by '/', and give {wanted}"
    if name.kind == "file":
        return f"this is a file; give {wanted}"
    if name.kind == "path":
        return f"there is no such folder, and it is no hub name (owner/name); give {wanted}"
    return f"there is no such folder, and it is no hub name (owner/name); give {wanted}, or a hub name"
