"""The command line of tools that write parts of documents: `python tools/NAME.py` writes, with `--check` it only looks."""

import argparse
from collections.abc import Callable
from pathlib import Path


def main(outdated: Callable[[], dict[Path, str]], tool: str, description: str | None) -> int:
    """Writes the documents in `outdated`, {document: what it should be}; with `--check` names them and returns 1 where there is one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; the exit code is 1 where a document is out of date")
    options = parser.parse_args()
    documents = outdated()
    if options.check:
        print("\n".join(f"{file} is out of date; run python tools/{tool}" for file in documents) or "up to date")
        return int(bool(documents))
    for file, text in documents.items():
        file.write_text(text, encoding="utf-8")
        print(file)
    return 0
