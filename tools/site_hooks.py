"""What mkdocs does to the documents on their way into the site: the README is its first page, and links to source files become names."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the README as index.md, its links as they are from within docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=re.sub(r"\]\(docs/", "](", text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page with its links to files beside docs/ as names; those to the README lead to the first page."""
    folder = PurePosixPath(page.file.src_uri).parent

    def written(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or "://" in target:
            return match[0]
        if PurePosixPath(target).name == "README.md":
            return f"[{text}]({'../' * len(folder.parts)}index.md{anchor})"
        if is_within_docs(folder, target):
            return match[0]
        name = target.removeprefix("../" * target.count("../"))
        return text if text.strip("`") in name else f"{text} (`{name}`)"

    return LINK.sub(written, markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """The index of the search as a script too: pages that are opened from the disk may read no other file."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")


def is_within_docs(folder: PurePosixPath, target: str) -> bool:
    """Whether a link of a page in `folder` of docs/ leads to a file there."""
    path = (ROOT / "docs" / folder / target).resolve()
    return path.is_relative_to(ROOT / "docs") and path.exists()
